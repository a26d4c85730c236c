"""How `make docs` builds the site: Sphinx with Furo and MyST-NB, into site/. Nothing is fetched,
neither at build nor by a reader.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import matplotlib
from docutils import nodes
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import math_to_image
from sphinx.application import Sphinx

from bezierdistill import __version__

project, author, release = "bezierdistill", "The bezierdistill founders", __version__
copyright = author
html_title = f"bezierdistill {release}"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_math_renderer = "mathtext"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_cache_path = str(Path(__file__).parents[1] / ".docs_cache")
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Reference"]
python_maximum_signature_line_length = 100


def formula(source: str) -> str:
    """A formula of TeX as a picture within the page, by matplotlib: no script, no font, no network.
    Its colour is that of the text.
    """
    picture = io.BytesIO()
    drawn = " ".join(source.split())
    for known, plain in (  # to matplotlib, which has not all of TeX
        (r"\\t?frac\s*(\w)(\w)", r"\\frac{\1}{\2}"),
        (r"\\tfrac", r"\\frac"),
        (r"\\sqrt\s*(\w)", r"\\sqrt{\1}"),
        (r"\\[bB]ig+[lr]?(?![a-z])", ""),
        (r"\\operatorname", r"\\mathrm"),
        (r"\\bmod", r"\\,\\mathrm{mod}\\,"),
    ):
        drawn = re.sub(known, plain, drawn)
    with matplotlib.rc_context(
        {"savefig.transparent": True, "svg.hashsalt": source, "mathtext.fontset": "cm"}
    ):
        depth = math_to_image(f"${drawn}$", picture, FontProperties(size=14), dpi=72, format="svg")
    svg = picture.getvalue().decode()
    label = source.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    style = f"vertical-align: {-depth:.1f}pt"
    return svg[svg.index("<svg") :].replace(
        "<svg", f'<svg class="formula" role="img" aria-label="{label}" style="{style}"', 1
    )


def visit_inline(self: Any, node: nodes.math) -> None:
    """A formula within a line."""
    self.body.append(formula(node.astext()))
    raise nodes.SkipNode


def visit_block(self: Any, node: nodes.math_block) -> None:
    """A formula of its own."""
    self.body.append(f'<div class="formula">{formula(node.astext())}</div>\n')
    raise nodes.SkipNode


def keep_errors_with_figures(app: Sphinx, page: str, source: list[str]) -> None:
    """A figure and its standard error stay on one line."""
    source[0] = source[0].replace(" ± ", "\u00a0±\u00a0")


def setup(app: Sphinx) -> None:
    """Formulas are drawn when the site is built."""
    app.add_html_math_renderer("mathtext", (visit_inline, None), (visit_block, None))
    app.connect("source-read", keep_errors_with_figures)
