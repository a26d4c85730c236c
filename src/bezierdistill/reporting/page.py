"""One self-contained page: its parts as text of HTML, in which whatever a run says of itself is
escaped. No external request.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from bezierdistill import __version__
from bezierdistill.reporting.style import STYLE

DPI = 150
WORDS = {
    "pass": (
        "One evaluation of the network for one sample. The cost of sampling is passes a sample; in"
        " the account of training a forward pass counts 1, forward and backward 3, a row."
    ),
    "floor": (
        "The same distance between two sets of real data of the same size. Samples as good as real"
        " data come to it; an estimate without bias, such as that of the energy distance, may fall"
        " below."
    ),
    "excess": (
        "The Frechet distance of samples to held-out real data over its floor, minus one. 0 is as"
        " good as real data. The distance is that of means and covariances of fixed random"
        " features: it is not FID, and compares only with itself."
    ),
    "rank": (
        "Place among all methods of as many passes a sample, in brackets for the other distances."
    ),
    "straightness": (
        "Mean squared difference between velocity and displacement along the paths, a component; 0"
        " is a straight line at even speed."
    ),
    "drift": (
        "Mean squared distance, a component, of a flow's end points from those of round 1 from the"
        " same noise."
    ),
    "reconstruction": (
        "The same of states carried backwards by round 1's flow and forwards by this round's:"
        " held-out real data, and what round 1 has generated."
    ),
    "knots": "The times between which a sampler jumps, from noise at 0 to data at 1.",
    "guides": (
        "The inner control points of a curve: the curve is drawn towards them and does not pass"
        " through them."
    ),
}
NUMBER = re.compile(
    r"|[-+]?\d[\d.,]*(e[-+]?\d+)?x?( ± [\d.]+)?( \(\d+( %)?\))?"
)  # nothing, or a number with what belongs to it


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it.

    Args:
        title: plain text.
        body: HTML.
    """

    title: str
    body: str


def text(value: object) -> str:
    """Any value as text of HTML."""
    return html.escape(str(value))


def paragraph(value: object, kind: str = "note") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{text(value)}</p>'


def code(value: str) -> str:
    """Text as it is, to be copied."""
    return f"<pre>{text(value)}</pre>"


def folded(summary: str, body: str) -> str:
    """HTML behind a line of plain text; on paper it is unfolded."""
    return f"<details><summary>{text(summary)}</summary>{body}</details>"


def facts(values: Mapping[str, object]) -> str:
    """Figures that one sees first, each under its name."""
    return f'<dl class="facts">{_terms(values)}</dl>'


def explained(*words: str) -> str:
    """What some of the words of a report mean."""
    return f'<dl class="words">{_terms({word.capitalize(): WORDS[word] for word in words})}</dl>'


def _terms(values: Mapping[str, object]) -> str:
    return "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in values.items()
    )


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    key: int = 0,
    ours: Collection[int] = (),
    starts: Collection[int] = (),
) -> str:
    """A table that scrolls in its own box; columns of numbers stand right.

    Args:
        caption: plain text.
        head: headings; none for a list of properties and their values.
        rows: as many values each.
        key: the column that names the row.
        ours: rows to set off.
        starts: rows that begin a group.
    """
    cells = [[str(value) for value in row] for row in rows]
    right = [
        k != key and bool(head) and all(NUMBER.fullmatch(value) for value in column)
        for k, column in enumerate(zip(*cells, strict=True))
    ]

    def cell(k: int, value: str, scope: str) -> str:
        tag, scope = ("th", f' scope="{scope}"') if scope else ("td", "")
        return f"<{tag}{scope}{_class('n' * right[k])}>{text(value)}</{tag}>"

    lines = []
    for i, row in enumerate(cells):
        line = "".join(cell(k, value, "row" if k == key else "") for k, value in enumerate(row))
        lines.append(f"<tr{_class('ours' * (i in ours), 'starts' * (i in starts))}>{line}</tr>")
    top = (
        f"<thead><tr>{''.join(cell(k, name, 'col') for k, name in enumerate(head))}</tr></thead>"
        if head
        else ""
    )
    return (
        '<figure class="table"><div class="wide" tabindex="0" role="region"'
        f' aria-label="{text(caption)}">'
        f"<table>{top}<tbody>{''.join(lines)}</tbody></table></div><figcaption>{text(caption)}</figcaption></figure>"
    )


def _class(*names: str) -> str:
    given = " ".join(filter(None, names))
    return f' class="{given}"' if given else ""


def picture(
    drawn: Figure | np.ndarray, alt: str, caption: str = "", title: str = "", kind: str = "chart"
) -> str:
    """A figure: a drawing, or the pixels ``(H, W, 3)`` of an image in [0, 1].

    Args:
        drawn: what is shown.
        alt: what one sees, for those who do not.
        caption: how it was made, and how to read it.
        title: for what has none of its own.
        kind: ``chart``, or ``ours`` to set it off.
    """
    data = _png(drawn)
    width, height = (int.from_bytes(data[k : k + 4]) for k in (16, 20))
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    words = f"<b>{text(title)}</b>" * bool(title) + " " * bool(title and caption) + text(caption)
    label = f"<figcaption>{words}</figcaption>" * bool(words)
    image = f'<img alt="{text(alt)}" width="{width}" height="{height}" src="{source}">'
    return f'<figure class="{kind}">{image}{label}</figure>'


def gallery(kind: str, figures: Sequence[str]) -> str:
    """Figures side by side, as many as there is room for: ``samples``, ``charts``, or ``strips``,
    one below the other.
    """
    return f'<div class="gallery {kind}">{"".join(figures)}</div>'


def _png(drawn: Figure | np.ndarray) -> bytes:
    buffer = io.BytesIO()
    if isinstance(drawn, Figure):
        drawn.savefig(buffer, format="png", dpi=DPI)
        image = (
            Image.open(buffer).convert("RGB").quantize(128, dither=Image.Dither.NONE)
        )  # a quarter of the size, and looks the same
        buffer = io.BytesIO()
    else:
        image = Image.fromarray((drawn * 255).round().astype(np.uint8))
    image.save(buffer, "png", optimize=True)
    return buffer.getvalue()


def page(name: str, kind: str, lead: str, head: str, sections: Sequence[Section]) -> str:
    """The whole page.

    Args:
        name: of the run.
        kind: of run.
        lead: one sentence that says what it is.
        head: HTML below it.
        sections: with a table of contents, if there are more than four.
    """
    parts = [(f"part-{k}", section) for k, section in enumerate(sections, 1)]
    links = "".join(
        f'<li><a href="#{mark}">{text(section.title)}</a></li>' for mark, section in parts
    )
    contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if len(parts) > 4 else ""
    body = "".join(
        f'<section id="{mark}"><h2>{text(section.title)}</h2>\n{section.body}</section>\n'
        for mark, section in parts
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="bezierdistill {__version__}">
<title>{text(name)}: {text(kind)}, bezierdistill</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<header><p class="kind">bezierdistill, {text(kind)}</p><h1>{text(name)}</h1>{paragraph(lead, "lead")}{head}</header>
{contents}
<main>
{body}</main>
<footer>Written by bezierdistill {__version__}. This page holds everything that it shows and asks no other computer for anything.</footer>
</body>
</html>
"""
