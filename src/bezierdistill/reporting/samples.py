"""Samples side by side: sheets of images or points of vectors, and rows of inputs with what becomes
of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from bezierdistill.reporting.page import Gallery, Picture
from bezierdistill.reporting.plots import scatter_figures, sheet

IMAGES, POINTS, COLUMNS = 36, 2000, 12


@dataclass(frozen=True)
class Panel:
    """Samples of one method.

    Args:
        title: the method.
        x: samples ``(N, ...)`` in model units.
        caption: how they were made.
        ours: whether to set them off.
    """

    title: str
    x: Tensor
    caption: str = ""
    ours: bool = False

    def images(self, shown: int = IMAGES, columns: int | None = None) -> Picture:
        """Its first images, in so many columns, or in a square."""
        x = self.x[:shown]
        columns = columns or math.ceil(math.sqrt(len(x)))
        return self.picture(sheet(x, columns), f"{len(x)} images in {columns} columns")

    def picture(self, drawn: Figure | np.ndarray, what: str) -> Picture:
        """What is drawn of it, described for those who do not see it."""
        kind = "ours" if self.ours else "panel"
        return Picture(drawn, f"{self.title}: {what}", self.caption, self.title, kind)


def sheets(panels: Sequence[Panel]) -> Gallery:
    """Panels in their order; vectors all on the principal axes of the first."""
    if panels[0].x.ndim == 4:
        return Gallery("samples", [panel.images() for panel in panels])
    plane = f"points in the plane of the principal axes of {panels[0].title}"
    counts = [f"{min(POINTS, len(panel.x)):,} {plane}" for panel in panels]
    figures = scatter_figures([panel.x for panel in panels], POINTS)
    return Gallery("samples", list(map(Panel.picture, panels, figures, counts)))


def strips(panels: Sequence[Panel]) -> Gallery:
    """Images of panels in rows below each other, so that a column is one input and what becomes of
    it; vectors as a gallery of points.
    """
    if panels[0].x.ndim != 4:
        return sheets(panels)
    return Gallery("strips", [panel.images(COLUMNS, COLUMNS) for panel in panels])
