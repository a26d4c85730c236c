"""bezierdistill: flow models distilled along Bezier curves, from several teachers, into generators
of one or two network passes.

    data -> flow matching -> teacher fields -> blend -> simulate -> Bezier curves -> curve store ->
    distil -> student -> sample -> evaluate

Time runs from t=0 (source) to t=1 (data) everywhere; ``docs/notation.md`` has the symbols.
"""

__version__ = "0.1.0"

from bezierdistill.conventions import ForeignField, LinearSchedule, SigmaSchedule, StepSchedule
from bezierdistill.curves import BezierCurve, CurveFit
from bezierdistill.data import Scaling, load_data
from bezierdistill.fields import Blend, Field, GaussianMixture, NetworkField, parse_weights
from bezierdistill.interop import export_diffusers, import_diffusers
from bezierdistill.metrics import Evaluator
from bezierdistill.models import Model, NetworkConfig, load_model, save_model
from bezierdistill.pipeline import distill, simulate, simulate_field, train
from bezierdistill.recipe import RecipeConfig, run_recipe
from bezierdistill.reflow import ReflowConfig, reflow
from bezierdistill.solvers import solve, time_grid
from bezierdistill.store import CurveStore
from bezierdistill.training import DistillConfig, LoopConfig, SimulateConfig, TrainConfig

__all__ = [
    "BezierCurve",
    "Blend",
    "CurveFit",
    "CurveStore",
    "DistillConfig",
    "Evaluator",
    "Field",
    "ForeignField",
    "GaussianMixture",
    "LinearSchedule",
    "LoopConfig",
    "Model",
    "NetworkConfig",
    "NetworkField",
    "RecipeConfig",
    "ReflowConfig",
    "Scaling",
    "SigmaSchedule",
    "SimulateConfig",
    "StepSchedule",
    "TrainConfig",
    "distill",
    "export_diffusers",
    "import_diffusers",
    "load_data",
    "load_model",
    "parse_weights",
    "reflow",
    "run_recipe",
    "save_model",
    "simulate",
    "simulate_field",
    "solve",
    "time_grid",
    "train",
]
