"""What networks are trained by, one method per file; :class:`Objective` is what all of them are."""

from bezierdistill.objectives.alignment import Alignment
from bezierdistill.objectives.base import (
    Aligned,
    Balanced,
    Curves,
    Objective,
    Pairs,
    SingleObjective,
)
from bezierdistill.objectives.conic import Conic
from bezierdistill.objectives.consistency import ConsistencyDistillation, ConsistencyTraining
from bezierdistill.objectives.constant_acceleration import ConstantAcceleration, InitialVelocity
from bezierdistill.objectives.curve_regression import CurveRegression
from bezierdistill.objectives.distribution_matching import DistributionMatching
from bezierdistill.objectives.flow_map_matching import LagrangianMap, LagrangianSelfDistillation
from bezierdistill.objectives.flow_matching import FlowMatching
from bezierdistill.objectives.intervals import (
    EitherIntervals,
    EndIntervals,
    Instants,
    Intervals,
    KnotIntervals,
    LogitNormalIntervals,
    MapIntervals,
    UShapedInstants,
)
from bezierdistill.objectives.losses import Loss
from bezierdistill.objectives.mean_flow import MeanFlow
from bezierdistill.objectives.piecewise import Piecewise
from bezierdistill.objectives.progressive import Progressive
from bezierdistill.objectives.rectified_flow_pp import RectifiedFlowPP
from bezierdistill.objectives.shortcut import Shortcut

__all__ = [
    "Aligned",
    "Alignment",
    "Balanced",
    "Conic",
    "ConsistencyDistillation",
    "ConsistencyTraining",
    "ConstantAcceleration",
    "CurveRegression",
    "Curves",
    "DistributionMatching",
    "EitherIntervals",
    "EndIntervals",
    "FlowMatching",
    "InitialVelocity",
    "Instants",
    "Intervals",
    "KnotIntervals",
    "LagrangianMap",
    "LagrangianSelfDistillation",
    "LogitNormalIntervals",
    "Loss",
    "MapIntervals",
    "MeanFlow",
    "Objective",
    "Pairs",
    "Piecewise",
    "Progressive",
    "RectifiedFlowPP",
    "Shortcut",
    "SingleObjective",
    "UShapedInstants",
]
