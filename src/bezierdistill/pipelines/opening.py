"""A diffusers pipeline, opened safely: from a local folder or a name on the hub, weights from
safetensors alone, no code of the folder's.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bezierdistill.errors import UserError
from bezierdistill.files import digest, read_text
from bezierdistill.hub import local_folder
from bezierdistill.progress import stage
from bezierdistill.records import parse_json

INDEX, NETWORK = "model_index.json", "transformer"
PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5"}
TEXT = ("text_encoder", "tokenizer", "processor", "image_encoder", "feature_extractor")
WANTED = [INDEX, *(f"*/*.{end}" for end in ("json", "safetensors", "txt", "model", "jinja"))]


def find_pipeline(source: str | Path) -> Path:
    """The local folder of a pipeline: ``source`` itself, or the cached copy of a hub's.

    Raises:
        UserError: if there is none, or the hub cannot be reached.
    """
    folder = local_folder(source, WANTED)
    if not folder.exists():
        raise UserError(
            f"{source} is no folder, expected a pipeline's, or a hub's name such as owner/model"
        )
    return folder


def check_pipeline(folder: Path) -> dict[str, Any]:
    """The components that a pipeline's folder names, all of which are safe to load and of a kind
    that can be distilled here.

    Raises:
        UserError: if it is no pipeline, has code of its own or weights that are pickled, or more
            than one transformer.
    """
    path = folder / INDEX
    if not path.exists():
        raise UserError(
            f"{folder} has no {INDEX}, expected a diffusers pipeline: a network alone is imported"
            " without --prompts"
        )
    index = parse_json(path, read_text(path, "pipeline"))
    kind = index.get("_class_name") if isinstance(index, dict) else None
    if not isinstance(kind, str):
        raise UserError(f"{path} names no pipeline (_class_name), expected one of diffusers")
    parts = {
        name: part
        for name, part in index.items()
        if isinstance(part, list) and len(part) == 2 and part[0] is not None
    }
    for name, (library, _) in parts.items():
        if library not in ("diffusers", "transformers", "pipelines", "stable_diffusion"):
            raise UserError(
                f"{path} takes its {name} from {str(library)[:60]!r}, which is code that we do not"
                " run: expected diffusers and transformers"
            )
    _check_kind(folder, kind, parts)
    for file in sorted(folder.glob("*.py")):
        _refuse_code(file)
    for name in parts:
        _check_files(folder / name)
    _check_flow(folder)
    return index


def pipeline_class(kind: str) -> Any:
    """A class of diffusers by its name; None if there is none such.

    Raises:
        UserError: without transformers, of which diffusers' pipelines are made.
    """
    if find_spec("transformers") is None:
        raise UserError("pipelines need transformers: pip install 'bezierdistill[pipelines]'")
    import diffusers

    with _quiet():  # what it imports tells of processors of images
        return getattr(diffusers, kind, None)


def makes_films(pipe: Any) -> bool:
    """Whether a pipeline, or its class, makes films."""
    return "num_frames" in inspect.signature(pipe.__call__).parameters


def _check_kind(folder: Path, kind: str, parts: dict[str, Any]) -> None:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    found = pipeline_class(kind)
    if not inspect.isclass(found) or not issubclass(found, DiffusionPipeline):
        raise UserError(f"{folder} is a {kind[:60]}, which this diffusers does not have: update it")
    if "unet" in parts or NETWORK not in parts:
        raise UserError(
            f"{folder} is a {kind} without a transformer that predicts a flow, expected a flow"
            " pipeline such as StableDiffusion3Pipeline: an unconditional or epsilon model is"
            " imported without --prompts"
        )
    check_single(str(folder), parts)


def check_single(what: str, parts: Mapping[str, Any]) -> None:
    """Refuse what has a second transformer among its components; ``what`` is told.

    Raises:
        UserError: if there is one.
    """
    for name, part in parts.items():
        if name.startswith(f"{NETWORK}_") and part is not None:
            raise UserError(
                f"{what} has a {name} as well, which takes over in the middle of the path:"
                " expected one transformer"
            )


def _check_flow(folder: Path) -> None:
    """Whether the pipeline's scheduler says that its transformer predicts a flow."""
    path = folder / "scheduler" / "scheduler_config.json"
    try:
        said = json.loads(read_text(path, "scheduler"))  # with the infinite numbers of some
        kind, predicts = str(said.get("_class_name")), str(said.get("prediction_type"))
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is no settings of a scheduler ({error})") from None
    flow = kind.startswith("FlowMatch") or said.get("use_flow_sigmas")
    if not flow and predicts != "flow_prediction":
        raise UserError(
            f"{path} says {kind[:60]} and prediction {predicts[:40]}, expected flow matching: an"
            " unconditional or epsilon model is imported without --prompts"
        )


def _check_files(part: Path) -> None:
    for file in sorted(part.rglob("*")) if part.is_dir() else ():
        if file.suffix == ".py":
            _refuse_code(file)
        if file.suffix in PICKLED:
            raise UserError(
                f"{file} may be pickled, which is not read: expected safetensors alone (save the"
                " pipeline by save_pretrained, or remove the file)"
            )


def _refuse_code(file: Path) -> None:
    raise UserError(f"{file} is code, which is not run: expected a pipeline without any")


def pipeline_digest(folder: Path) -> str:
    """What the transformer in a pipeline's folder is known by: its settings and its weights."""
    found = hashlib.sha256()
    for file in sorted((folder / NETWORK).iterdir()):
        if file.suffix in (".json", ".safetensors"):
            found.update(f"{file.name} {digest(file)}\n".encode())
    return found.hexdigest()


@stage("loading the pipeline")
def open_pipeline(folder: Path, dtype: str, text: bool, **parts: Any) -> Any:
    """The pipeline in a folder, on the CPU.

    Args:
        folder: the folder, see :func:`find_pipeline`.
        dtype: number type of its networks: float32, bfloat16, float16.
        text: whether its text encoders are loaded too.
        parts: components that are there already.

    Raises:
        UserError: see :func:`check_pipeline`; or if it cannot be loaded.
    """
    import torch

    index = check_pipeline(folder)
    kind = pipeline_class(index["_class_name"])
    known = [name for name in inspect.signature(kind.__init__).parameters if name.startswith(TEXT)]
    # What is left out here, or was when it was saved.
    left: dict[str, Any] = {n: None for n in known if not text or index.get(n, (None,))[0] is None}
    with _quiet():
        try:
            pipe = kind.from_pretrained(
                folder,
                torch_dtype=getattr(torch, dtype),
                use_safetensors=True,
                local_files_only=True,
                **left,
                **parts,
            )
        except Exception as error:  # of whatever its settings hold
            told = " ".join(str(error).split())[:300]
            raise UserError(f"{folder} cannot be loaded as a {kind.__name__}: {told}") from None
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipe


@contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' bars and warnings of what is left out on purpose."""
    from diffusers.utils import logging
    from transformers.utils import logging as theirs

    before, other = logging.get_verbosity(), theirs.get_verbosity()
    logging.set_verbosity_error()
    theirs.set_verbosity_error()
    logging.disable_progress_bar()
    theirs.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # Of the name of the number type, which versions before know by this one alone.
            warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
            yield
    finally:
        theirs.set_verbosity(other)
        logging.set_verbosity(before)
        logging.enable_progress_bar()
        theirs.enable_progress_bar()
