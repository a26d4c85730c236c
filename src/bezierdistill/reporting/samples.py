"""Samples side by side: sheets of images or points of vectors, and rows of inputs with what becomes
of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from bezierdistill.reporting.page import gallery, picture
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


def sheets(panels: Sequence[Panel]) -> str:
    """Panels as a gallery, in their order; vectors all on the principal axes of the first."""
    if panels[0].x.ndim == 4:
        columns = [math.ceil(math.sqrt(min(IMAGES, len(panel.x)))) for panel in panels]
        drawn = [sheet(panel.x[:IMAGES], k) for panel, k in zip(panels, columns, strict=True)]
        seen = [
            f"{min(IMAGES, len(panel.x))} images in {k} columns"
            for panel, k in zip(panels, columns, strict=True)
        ]
    else:
        drawn = list(
            scatter_figures({str(k): panel.x for k, panel in enumerate(panels)}, POINTS).values()
        )
        seen = [
            f"{min(POINTS, len(panel.x)):,} points in the plane of the principal axes of"
            f" {panels[0].title}"
            for panel in panels
        ]
    figures = [
        picture(
            image,
            f"{panel.title}: {what}",
            panel.caption,
            panel.title,
            "ours" if panel.ours else "panel",
        )
        for panel, image, what in zip(panels, drawn, seen, strict=True)
    ]
    return gallery("samples", figures)


def strips(panels: Sequence[Panel]) -> str:
    """Images of panels in rows below each other, so that a column is one input and what becomes of
    it; vectors as a gallery of points.
    """
    if panels[0].x.ndim != 4:
        return sheets(panels)
    figures = [
        picture(
            sheet(panel.x[:COLUMNS], COLUMNS),
            f"{panel.title}: {min(COLUMNS, len(panel.x))} images in a row",
            panel.caption,
            panel.title,
            "ours" if panel.ours else "panel",
        )
        for panel in panels
    ]
    return gallery("strips", figures)
