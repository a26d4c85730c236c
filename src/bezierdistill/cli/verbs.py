"""All verbs, and the order in which they are listed: that of the work."""

from __future__ import annotations

from bezierdistill.app import AppConfig
from bezierdistill.cli.completion import CompletionConfig, complete
from bezierdistill.cli.doctor import DoctorConfig, examine
from bezierdistill.cli.results import Verb
from bezierdistill.cli.stages import STAGES
from bezierdistill.stages.samples import SAMPLES


def _app(config: AppConfig) -> None:
    from bezierdistill.app import (
        serve,
    )  # imported here: it may take seconds that only its users need

    serve(config)


VERBS: dict[str, Verb] = {
    **STAGES,
    **SAMPLES,
    "app": (AppConfig, _app),
    "doctor": (DoctorConfig, examine),
    "completion": (CompletionConfig, complete),
}
SILENT = {"app", "completion"}  # they have no result
GROUPS = {
    "everything at once": ("demo", "recipe"),
    "stage by stage": ("train", "simulate", "distill"),
    "use a model": ("sample", "translate", "evaluate"),
    "compare methods": ("arena", "reflow"),
    "look at a run": ("report", "app"),
    "share": ("import", "export", "store"),
    "this machine": ("doctor", "completion"),
}
