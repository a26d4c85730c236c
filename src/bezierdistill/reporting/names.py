"""What methods of the arena are called in full, by whom they are, and the files of an arena that a
report writes beside its page.
"""

from __future__ import annotations

from typing import NamedTuple

EXPORTS = {  # by what ``report --to`` calls them
    "csv": "arena.csv",
    "latex": "arena.tex",
    "markdown": "arena.md",
    "pdf": "arena.pdf",
    "svg": "arena.svg",
}


class Name(NamedTuple):
    """A method's name in full, and its source, or how it differs from what it is a variant of."""

    title: str
    source: str


NAMES = {
    "bezier": Name("Bezier distillation", "ours, the default recipe"),
    "bezier-half": Name("Bezier distillation, half budget", "half of the passes"),
    "bezier-lines": Name("Bezier, straight lines", "ours without curves"),
    "bezier-one-teacher": Name("Bezier, one teacher", "ours without the weak teacher"),
    "bezier-plain": Name("Bezier, plain", "ours, lines, one teacher"),
    "bezier-squared": Name("Bezier, squared error", "ours, no pseudo-Huber"),
    "bezier-unaligned": Name("Bezier, not aligned", "ours without alignment"),
    "bezier-energy": Name("Bezier, energy alignment", "ours without drifting"),
    "bezier-hidden": Name("Bezier, hidden states", "aligned in them"),
    "bezier-stored": Name("Bezier, stored curves", "ours without on-policy rows"),
    "bezier-jumps": Name("Bezier, jumps", "ours without emitted curves"),
    **{
        f"bezier-degree-{n}": Name(f"Bezier, degree {n}", f"ours with curves of degree {n}")
        for n in (2, 3, 5, 6)
    },
    "on-policy": Name("On-policy curves", "emitted curves, by a teacher alone"),
    "bezier-teacher": Name("Teacher of Bezier distillation", "Heun, 20 passes"),
    "teacher-euler": Name("Teacher, Euler", "flow matching, Lipman et al. 2022"),
    "teacher-heun": Name("Teacher, Heun", "flow matching, Lipman et al. 2022"),
    "teacher-20": Name("Teacher, 20 passes", "flow matching, Heun"),
    "teacher-knots": Name("Teacher, chosen steps", "dynamic programming"),
    "rf-2": Name("2-rectified flow", "Liu et al. 2022"),
    "rf-3": Name("3-rectified flow", "Liu et al. 2022"),
    "rfd-1": Name("1-rectified flow, distilled", "Liu et al. 2022"),
    "rfd-2": Name("2-rectified flow, distilled", "Liu et al. 2022"),
    "rfd-3": Name("3-rectified flow, distilled", "Liu et al. 2022"),
    "rfd-1-two": Name("1-rectified flow, distilled in two", "two passes"),
    "rf-2++": Name("2-rectified flow++", "Lee et al. 2024"),
    "conic": Name("Balanced conic rectified flow", "Kim et al. 2025"),
    "progressive": Name("Progressive distillation", "Salimans & Ho 2022"),
    "consistency-distillation": Name("Consistency distillation", "Song et al. 2023"),
    "consistency-tuning": Name("Easy consistency tuning", "Geng et al. 2024"),
    "consistency-tuning-slow": Name("Consistency tuning, low rate", "Geng et al. 2024"),
    "consistency-tuning-two": Name("Consistency tuning for two", "two passes"),
    "consistency-training": Name("Consistency training", "Song & Dhariwal 2023"),
    "consistency-training-two": Name("Consistency training for two", "Song & Dhariwal 2023"),
    "shortcut": Name("Shortcut model", "Frans et al. 2024"),
    "mean-flow": Name("MeanFlow", "Geng et al. 2025"),
    "flow-map": Name("Lagrangian map distillation", "Boffi et al. 2024"),
    "flow-map-self": Name("Lagrangian self-distillation", "Boffi et al. 2025"),
    "piecewise": Name("Piecewise rectified flow", "Yan et al. 2024"),
    "piecewise-one": Name("Piecewise rectified flow, one", "one window"),
    "acceleration": Name("Constant acceleration flow", "Park et al. 2024"),
    "moments": Name("Moment matching", "Li et al. 2015, energy distance"),
    "dmd": Name("Distribution matching (DMD2)", "Yin et al. 2024"),
    "dmd-two": Name("Distribution matching for two", "two passes"),
    "dmd-gan": Name("DMD2 with a GAN", "Yin et al. 2024"),
    "fsf": Name("FSF-DMD", "Kim et al. 2026"),
    "drifting": Name("Drifting", "Deng et al. 2026"),
    "drifting-teacher": Name("Teacher-feature drifting", "Zhang et al. 2026"),
    "pi-flow": Name("pi-Flow", "Chen et al. 2025"),
    "freeflow": Name("FreeFlow", "Tong et al. 2025"),
    "cmt": Name("Consistency mid-training", "Hu et al. 2025"),
    "ayf": Name("Align your flow", "Sabour et al. 2025"),
    "soflow": Name("SoFlow", "Luo et al. 2025"),
    "terminal-velocity": Name("Terminal velocity matching", "Zhou et al. 2025"),
    "re-meanflow": Name("Re-MeanFlow", "Zhang et al. 2025"),
}


def title(method: str) -> str:
    """A method's name in full; of one's own its name as it is."""
    return NAMES[method].title if method in NAMES else method


def method_lines() -> str:
    """A line per method, as help lists them."""
    width = max(map(len, NAMES)) + 2
    return "\n".join(f"  {name:<{width}}{own.title}: {own.source}" for name, own in NAMES.items())
