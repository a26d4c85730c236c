"""bezierdistill: flow and diffusion models distilled along Bezier curves into generators of one or two network passes."""

__version__ = "0.1.0"
