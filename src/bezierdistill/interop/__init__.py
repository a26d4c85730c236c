"""Models of other libraries, brought to the notation of this one."""

from bezierdistill.interop.conventions import ForeignField, LinearSchedule, Prediction, Schedule, SigmaSchedule, StepSchedule

__all__ = ["ForeignField", "LinearSchedule", "Prediction", "Schedule", "SigmaSchedule", "StepSchedule"]
