"""Samples side by side: sheets of images, columns of texts or points of vectors, and rows of inputs
with what becomes of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from bezierdistill.data import Scaling
from bezierdistill.reporting.page import Gallery, Part, Picture, Table
from bezierdistill.reporting.plots import film, scatter_figures, sheet

IMAGES, POINTS, COLUMNS, TEXTS = 36, 2000, 12, 24


@dataclass(frozen=True)
class Panel:
    """Samples of one method.

    Args:
        title: the method.
        x: samples ``(N, ...)`` in model units, clips as ``(N, F, C, H, W)``.
        caption: how they were made.
        ours: whether to set them off.
        texts: what the states say, of texts.
    """

    title: str
    x: Tensor
    caption: str = ""
    ours: bool = False
    texts: Sequence[str] = ()

    def images(self, shown: int = IMAGES, columns: int | None = None) -> Picture:
        """Its first images, in so many columns, or in a square."""
        x = self.x[:shown]
        columns = columns or math.ceil(math.sqrt(len(x)))
        if x.ndim == 5:
            return self.picture(film(x, columns), f"{len(x)} clips in {columns} columns")
        return self.picture(sheet(x, columns), f"{len(x)} images in {columns} columns")

    def picture(self, drawn: Figure | np.ndarray, what: str) -> Picture:
        """What is drawn of it, described for those who do not see it."""
        kind = "ours" if self.ours else "panel"
        return Picture(drawn, f"{self.title}: {what}", self.caption, self.title, kind)


def sheets(panels: Sequence[Panel]) -> Part:
    """Panels in their order; vectors all on the principal axes of the first; texts in columns."""
    if panels[0].texts:
        head = [", ".join(filter(None, (panel.title, panel.caption))) for panel in panels]
        rows = list(zip(*(panel.texts[:TEXTS] for panel in panels), strict=False))
        return Table("The first texts of each.", head, rows, left=range(len(head)))
    if panels[0].x.ndim >= 4:
        return Gallery("samples", [panel.images() for panel in panels])
    plane = f"points in the plane of the principal axes of {panels[0].title}"
    counts = [f"{min(POINTS, len(panel.x)):,} {plane}" for panel in panels]
    figures = scatter_figures([panel.x for panel in panels], POINTS)
    return Gallery("samples", list(map(Panel.picture, panels, figures, counts)))


def shown_texts(scaling: Scaling, x: Tensor) -> Sequence[str]:
    """The first texts that states ``(N, L, V)`` say; nothing of other states."""
    return scaling.decode(x[:TEXTS]).tolist() if scaling.layout == "tokens" else ()


def strips(panels: Sequence[Panel]) -> Part:
    """Images of panels in rows below each other, so that a column is one input and what becomes of
    it; vectors as a gallery of points.
    """
    if panels[0].x.ndim < 4:
        return sheets(panels)
    return Gallery("strips", [panel.images(COLUMNS, COLUMNS) for panel in panels])
