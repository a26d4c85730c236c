"""Training methods, one a file. Each has a ``loss`` of a network and a batch, and the network
``passes`` a row that one step costs.
"""

from bezierdistill.objectives.alignment import Alignment
from bezierdistill.objectives.curve_regression import CurveRegression
from bezierdistill.objectives.flow_matching import FlowMatching
from bezierdistill.objectives.losses import Loss

__all__ = ["Alignment", "CurveRegression", "FlowMatching", "Loss"]
