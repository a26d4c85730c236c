"""The page: its tabs over one run."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.themes import Default

from bezierdistill import __version__
from bezierdistill.app.compare import compare_tab
from bezierdistill.app.curves import curves_tab
from bezierdistill.app.generate import generate_tab
from bezierdistill.app.run import Shown
from bezierdistill.app.translate import translate_tab

# The machine's own fonts: nothing is asked of other hosts.
FONT, CODE_FONT = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
STYLE = "footer {display: none !important}"
KEPT = 3600  # seconds that pictures and uploads stay on disk


def build(run: Shown) -> gr.Blocks:
    """The page of a run."""
    kept = (KEPT, KEPT)
    with gr.Blocks(title="bezierdistill", analytics_enabled=False, delete_cache=kept) as page:
        gr.Markdown(
            f"# bezierdistill\nFlow models in one or two network passes. Showing **{run.name}**."
            f" Version {__version__}."
        )
        with gr.Tab("Curves", id="curves"):
            curves_tab(page)
        with gr.Tab("Generate", id="generate"):
            generate_tab(page, run)
        if run.translators:
            with gr.Tab("Translate", id="translate"):
                translate_tab(page, run)
        with gr.Tab("Compare", id="compare"):
            compare_tab(page, run)
    return page


def look() -> dict[str, Any]:
    """How the page looks, for ``launch``."""
    theme = Default(font=FONT, font_mono=CODE_FONT)
    return {"theme": theme, "css": STYLE, "footer_links": []}
