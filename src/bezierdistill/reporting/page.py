"""The parts of a report, typed; ``report.html.j2`` makes one page of them, with ``report.css``.

The template escapes whatever a run says of itself, and the page asks nothing from elsewhere.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from bezierdistill import __version__
from bezierdistill.reporting.films import write_film

DPI, IMAGE = 150, "data:image/png;base64,"


@dataclass(frozen=True)
class Note:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Code:
    """Text as it is, to be copied, below a title; ``folded`` behind it, except on paper."""

    text: str
    title: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Words:
    """What some words of the report mean; the template has the meanings."""

    words: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table that scrolls in its own box.

    Args:
        caption: what it shows.
        head: headings; none for a list of properties and their values.
        rows: as many values each.
        left: columns of words, the one that names the row first; numbers stand right.
        ours: rows to set off.
        starts: rows that begin a group.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    left: Sequence[int] = (0,)
    ours: Collection[int] = ()
    starts: Collection[int] = ()


@dataclass(frozen=True)
class Picture:
    """A figure: a drawing, the pixels ``(H, W, 3)`` of an image in [0, 1], or those of a film,
    bytes ``(F, H, W, 3)``.

    Args:
        drawn: what is shown.
        alt: what one sees, for those who do not.
        caption: how it was made, and how to read it.
        title: for what has none of its own.
        kind: a drawing, or samples; ``ours`` are set off.
    """

    drawn: Figure | np.ndarray
    alt: str
    caption: str = ""
    title: str = ""
    kind: Literal["chart", "panel", "ours"] = "chart"

    @cached_property
    def png(self) -> bytes:
        """The file, animated if it is a film."""
        if isinstance(self.drawn, np.ndarray) and self.drawn.ndim == 4:
            write_film(file := io.BytesIO(), self.drawn, "PNG")
            return file.getvalue()
        if isinstance(self.drawn, Figure):
            self.drawn.savefig(drawing := io.BytesIO(), format="png", dpi=DPI)
            image = Image.open(drawing).convert("RGB")
            # A quarter of the size, and looks the same.
            image = image.quantize(128, dither=Image.Dither.NONE)
        else:
            image = Image.fromarray((self.drawn * 255).round().astype(np.uint8))
        image.save(file := io.BytesIO(), "png", optimize=True)
        return file.getvalue()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return int.from_bytes(self.png[16:20]), int.from_bytes(self.png[20:24])

    @property
    def source(self) -> str:
        """The file as an address that asks nobody."""
        return as_url(self.png)


def as_url(png: bytes) -> str:
    """A PNG as an address within a page."""
    return f"{IMAGE}{base64.b64encode(png).decode()}"


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side, as many as there is room for; ``strips`` are one below the other."""

    kind: Literal["samples", "charts", "strips"]
    pictures: Sequence[Picture]


Part = Note | Code | Words | Table | Picture | Gallery


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; ``folded`` behind it, except on paper."""

    title: str
    parts: Sequence[Part]
    folded: bool = False


@dataclass(frozen=True)
class Opening:
    """What a page begins with.

    Args:
        title: what was done.
        verdict: one sentence that says what came out.
        lead: what one has to know to read the verdict.
        facts: of the run, by name, for the details; those that are None or empty are left out.
    """

    title: str
    verdict: str
    lead: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)


def render(
    kind: str,
    opening: Opening,
    sections: Sequence[Section],
    shown: Callable[[str], str] = lambda text: text,
) -> str:
    """The page of a run: its kind and folder, what it begins with, and sections.

    ``shown`` is what becomes of every text that a run says, before it is escaped.
    """

    def finalize(value: object) -> object:
        if not isinstance(value, str) or isinstance(value, Markup) or value.startswith(IMAGE):
            return value
        return shown(value)

    files = PackageLoader("bezierdistill", "reporting")
    environment = Environment(
        loader=files, autoescape=True, undefined=StrictUndefined, finalize=finalize
    )
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters["piece"] = lambda part: type(part).__name__
    told = {"kind": kind, "opening": opening, "sections": sections}
    return environment.get_template("report.html.j2").render(told, version=__version__)
