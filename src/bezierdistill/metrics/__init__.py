"""How far samples are from real data, always beside the *floor*: the same distance between two sets
of real samples of the same size.
"""

from bezierdistill.metrics.classifier import ClassifierFeatures, classifier_features
from bezierdistill.metrics.clips import ClipJudge, motion_ratio
from bezierdistill.metrics.dino import DinoFeatures
from bezierdistill.metrics.distances import (
    energy_distance,
    fidelity,
    frechet_distance,
    kernel_distance,
    mmd,
    precision_recall,
    sliced_wasserstein,
)
from bezierdistill.metrics.evaluation import Evaluator
from bezierdistill.metrics.extractors import load_extractor
from bezierdistill.metrics.features import RandomFeatures
from bezierdistill.metrics.inception import InceptionFeatures
from bezierdistill.metrics.paths import curve_fit_error, relative_distance, straightness
from bezierdistill.metrics.scales import KernelFeatures
from bezierdistill.metrics.squeezenet import SqueezeNetFeatures
from bezierdistill.metrics.text import TextJudge
from bezierdistill.metrics.translation import translation_scores

__all__ = [
    "ClassifierFeatures",
    "ClipJudge",
    "DinoFeatures",
    "Evaluator",
    "InceptionFeatures",
    "KernelFeatures",
    "RandomFeatures",
    "SqueezeNetFeatures",
    "TextJudge",
    "classifier_features",
    "curve_fit_error",
    "energy_distance",
    "fidelity",
    "frechet_distance",
    "kernel_distance",
    "load_extractor",
    "mmd",
    "motion_ratio",
    "precision_recall",
    "relative_distance",
    "sliced_wasserstein",
    "straightness",
    "translation_scores",
]
