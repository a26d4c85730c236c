"""The stages as functions of their settings, each from folders to a folder: train, simulate,
distill.

    data -> train -> teachers -> simulate -> curve store -> distill -> student

Every function checks its input before it writes, and returns what it made.
"""

from bezierdistill.pipeline.distillation import distill
from bezierdistill.pipeline.knots import knots_cost
from bezierdistill.pipeline.simulation import simulate, simulate_field
from bezierdistill.pipeline.teaching import conditions_of, train

__all__ = ["conditions_of", "distill", "knots_cost", "simulate", "simulate_field", "train"]
