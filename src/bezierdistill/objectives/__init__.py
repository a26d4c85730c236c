"""Training methods, one a file. Each has ``loss(net, batch, generator)`` and the network ``passes`` a row that one step costs."""

from bezierdistill.objectives.alignment import Alignment
from bezierdistill.objectives.consistency import ConsistencyTraining
from bezierdistill.objectives.curves import CurveRegression
from bezierdistill.objectives.flow_matching import FlowMatching
from bezierdistill.objectives.losses import Loss

__all__ = ["Alignment", "ConsistencyTraining", "CurveRegression", "FlowMatching", "Loss"]
