"""What networks are trained by, one method per file; :class:`Objective` is what all of them are."""

from bezierdistill.objectives.adversarial_matching import AdversarialMatching as AdversarialMatching
from bezierdistill.objectives.adversarial_matching import Discriminating as Discriminating
from bezierdistill.objectives.alignment import Alignment as Alignment
from bezierdistill.objectives.base import Aligned as Aligned
from bezierdistill.objectives.base import Balanced as Balanced
from bezierdistill.objectives.base import Curves as Curves
from bezierdistill.objectives.base import Objective as Objective
from bezierdistill.objectives.base import Pairs as Pairs
from bezierdistill.objectives.base import SingleObjective as SingleObjective
from bezierdistill.objectives.conic import Conic as Conic
from bezierdistill.objectives.consistency import ConsistencyDistillation as ConsistencyDistillation
from bezierdistill.objectives.consistency import ConsistencyTraining as ConsistencyTraining
from bezierdistill.objectives.constant_acceleration import (
    ConstantAcceleration as ConstantAcceleration,
)
from bezierdistill.objectives.constant_acceleration import InitialVelocity as InitialVelocity
from bezierdistill.objectives.curve_regression import CurveRegression as CurveRegression
from bezierdistill.objectives.distribution_matching import (
    DistributionMatching as DistributionMatching,
)
from bezierdistill.objectives.drifting import Drifted as Drifted
from bezierdistill.objectives.drifting import Drifting as Drifting
from bezierdistill.objectives.emitted_curves import EmittedCurves as EmittedCurves
from bezierdistill.objectives.emitted_curves import OnPolicy as OnPolicy
from bezierdistill.objectives.eulerian_map import EulerianMap as EulerianMap
from bezierdistill.objectives.fake_score_free import FakeScoreFree as FakeScoreFree
from bezierdistill.objectives.flow_map_matching import LagrangianMap as LagrangianMap
from bezierdistill.objectives.flow_map_matching import (
    LagrangianSelfDistillation as LagrangianSelfDistillation,
)
from bezierdistill.objectives.flow_matching import FlowMatching as FlowMatching
from bezierdistill.objectives.free_flow import FreeFlow as FreeFlow
from bezierdistill.objectives.intervals import EarlyIntervals as EarlyIntervals
from bezierdistill.objectives.intervals import EitherIntervals as EitherIntervals
from bezierdistill.objectives.intervals import EndIntervals as EndIntervals
from bezierdistill.objectives.intervals import Instants as Instants
from bezierdistill.objectives.intervals import Intervals as Intervals
from bezierdistill.objectives.intervals import KnotIntervals as KnotIntervals
from bezierdistill.objectives.intervals import LogitNormalIntervals as LogitNormalIntervals
from bezierdistill.objectives.intervals import MapIntervals as MapIntervals
from bezierdistill.objectives.intervals import UShapedInstants as UShapedInstants
from bezierdistill.objectives.losses import Loss as Loss
from bezierdistill.objectives.mean_flow import MeanFlow as MeanFlow
from bezierdistill.objectives.mid_training import MidTraining as MidTraining
from bezierdistill.objectives.piecewise import Piecewise as Piecewise
from bezierdistill.objectives.policy_flow import PolicyFlow as PolicyFlow
from bezierdistill.objectives.policy_flow import policy_sample as policy_sample
from bezierdistill.objectives.progressive import Progressive as Progressive
from bezierdistill.objectives.rectified_flow_pp import RectifiedFlowPP as RectifiedFlowPP
from bezierdistill.objectives.rectified_mean_flow import RectifiedIntervals as RectifiedIntervals
from bezierdistill.objectives.rectified_mean_flow import RectifiedMeanFlow as RectifiedMeanFlow
from bezierdistill.objectives.shortcut import Shortcut as Shortcut
from bezierdistill.objectives.solution_flow import SolutionFlow as SolutionFlow
from bezierdistill.objectives.terminal_velocity import GapIntervals as GapIntervals
from bezierdistill.objectives.terminal_velocity import TerminalVelocity as TerminalVelocity
