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
STYLE = """
footer {display: none !important}
#generate-speed h2 {font-size: 3rem; line-height: 1.1; margin: 0}
.table {overflow-x: auto}
.table table {width: 100%; border-collapse: collapse}
.table td, .table th {text-align: left; padding: 0.3rem 0.6rem}
.table tbody tr:nth-child(odd) {background: var(--background-fill-secondary)}
.table th button {font-weight: 600; cursor: pointer; text-align: left}
.table th[aria-sort=ascending] button::after {content: " \\25b2"}
.table th[aria-sort=descending] button::after {content: " \\25bc"}
@media (max-width: 640px) {
  .tab-container button {padding: 0 0.55rem !important}
  #translate-gallery .grid-container {grid-template-columns: repeat(2, 1fr) !important}
  .table td, .table th {padding: 0.2rem; font-size: 0.8rem}
}
"""
KEPT = 3600  # seconds that pictures and uploads stay on disk


def build(run: Shown) -> gr.Blocks:
    """The page of a run."""
    kept = (KEPT, KEPT)
    with gr.Blocks(title="bezierdistill", analytics_enabled=False, delete_cache=kept) as page:
        gr.Markdown(
            f"# bezierdistill\nFlow models in one or two network passes. Showing **{run.name}**."
            f" Version {__version__}."
        )
        with gr.Tabs(overflow_behavior="wrap"):  # none is hidden behind a menu
            with gr.Tab("Generate"):
                generate_tab(page.load, run)
            with gr.Tab("Curves") as tab:
                curves_tab(tab.select)
            if run.translators:
                with gr.Tab("Translate") as tab:
                    translate_tab(tab.select, run)
            with gr.Tab("Compare") as tab:
                compare_tab(tab.select, run)
    return page


def look() -> dict[str, Any]:
    """How the page looks, for ``launch``."""
    theme = Default(font=FONT, font_mono=CODE_FONT)
    return {"theme": theme, "css": STYLE, "footer_links": []}
