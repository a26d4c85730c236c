"""Training: settings, the loop, averaged weights, and the files of a run."""

from bezierdistill.training.config import DistillConfig, LoopConfig, SimulateConfig, TrainConfig
from bezierdistill.training.ema import EMA
from bezierdistill.training.loop import Trainer

__all__ = ["EMA", "DistillConfig", "LoopConfig", "SimulateConfig", "TrainConfig", "Trainer"]
