"""A diffusers pipeline as a teacher's folder: its prompts embedded, its call measured; the pipeline
itself stays where it is, and is named by place and digest.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bezierdistill.errors import UserError
from bezierdistill.files import whole_folder
from bezierdistill.models.folder import load_model, save_model
from bezierdistill.models.pipeline import PipelineModel, PipelineTeacher
from bezierdistill.pipelines.opening import check_pipeline, find_pipeline, pipeline_class
from bezierdistill.pipelines.prompts import read_prompts
from bezierdistill.progress import stage

# Of every call of ours, or none of the user's business.
OURS = {"prompt", "latents", "generator", "num_inference_steps", "output_type", "return_dict"}


@stage("importing")
def import_pipeline(
    source: str,
    prompts: Path,
    out: Path,
    guidance: float | None = None,
    negative: str | None = None,
    dtype: str = "float32",
    given: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> PipelineModel:
    """Make a teacher's folder of a pipeline; see :class:`~bezierdistill.PipelineTeacher`.

    Raises:
        UserError: on a pipeline that is none such, prompts that cannot be read, arguments that it
            does not take, or an ``out`` that is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty: choose another --out")
    texts = read_prompts(prompts)
    _check_arguments(source, given or {})
    with whole_folder(out) as made:
        teacher = PipelineTeacher(
            source,
            texts,
            guidance,
            negative,
            dtype=dtype,
            folder=made,
            device=device,
            **(given or {}),
        )
        save_model(made, teacher)
    model = load_model(out)  # its prompts lie there now
    assert isinstance(model, PipelineModel)
    return model


def read_arguments(text: str | None) -> dict[str, Any]:
    """Arguments of a pipeline's call, as JSON.

    Raises:
        UserError: if they are none.
    """
    try:
        found = json.loads(text or "{}", parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise UserError(f"call is no JSON ({error}), expected such as {SUCH}") from None
    if not isinstance(found, dict):
        raise UserError(f"call is {str(found)[:60]}, expected arguments by name, such as {SUCH}")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"it has no {constant}")


SUCH = """'{"max_sequence_length": 256}'"""


def _check_arguments(source: str, given: Mapping[str, Any]) -> None:
    kind = pipeline_class(check_pipeline(find_pipeline(source))["_class_name"])
    known = [*inspect.signature(kind.__call__).parameters][1:]
    for name in given:
        if name not in known or name in OURS:
            raise UserError(
                f"{name} is no argument of a {kind.__name__} that can be set, expected some of"
                f" {', '.join(n for n in known if n not in OURS)[:300]}"
            )
