"""How far samples are from real data, always beside the *floor*: the same distance between two sets of real samples of the same size."""

from bezierdistill.metrics.distances import energy_distance, frechet_distance, mmd, precision_recall, sliced_wasserstein
from bezierdistill.metrics.evaluation import Evaluator
from bezierdistill.metrics.features import RandomFeatures
from bezierdistill.metrics.paths import curve_fit_error, straightness

__all__ = [
    "Evaluator",
    "RandomFeatures",
    "curve_fit_error",
    "energy_distance",
    "frechet_distance",
    "mmd",
    "precision_recall",
    "sliced_wasserstein",
    "straightness",
]
