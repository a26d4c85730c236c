"""A network of diffusers, found in a folder and loaded from safetensors.

Looked for in every place in which diffusers and its training scripts put one. A file may come from
anybody: only the classes of :mod:`~bezierdistill.networks.foreign` are built, and none that the
weights do not fill.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import msgspec
import torch
from torch import Tensor

from bezierdistill.errors import UserError
from bezierdistill.files import read_tensors, read_text
from bezierdistill.interop.scheduler import PIPELINE, quiet
from bezierdistill.memory import check_memory
from bezierdistill.models.weights import check_fit, check_sizes
from bezierdistill.networks.foreign import UNBUILDABLE, ClassName, network_class, state_shape
from bezierdistill.records import from_json, parse_json, read_record

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model"
# Weights in one file, or the index of several, each with its variant (fp16, non_ema), if any.
ONE = re.compile(rf"{WEIGHTS}(?:\.(\w+))?\.safetensors")
INDEX = re.compile(rf"{WEIGHTS}\.safetensors(?:\.(\w+))?\.index(?:\.(\w+))?\.json")


class _Index(msgspec.Struct):
    """Which file of several holds a tensor."""

    weight_map: dict[str, str]


def find_network(folder: Path) -> Path:
    """The folder of the one network that a folder holds: a pipeline's, or the only one.

    Raises:
        UserError: if there is none, or more than one.
    """
    for coder in ("vae", "vqvae"):
        if (folder / coder).exists():
            raise UserError(
                f"{folder} has a {coder}: its network makes latents, expected images, or"
                " --prompts for a pipeline with prompts"
            )
    names = {path: _read(path / CONFIG, "network").get("_class_name") for path in _places(folder)}
    found = [place for place, name in names.items() if name in get_args(ClassName)]
    if len(found) == 1:
        return found[0]
    if found:
        held = " and ".join(place.name for place in found)
        raise UserError(f"{folder} holds {held}: expected one network, such as {found[-1]}")
    for place, name in names.items():
        if name is not None and place.name in (folder.name, "unet", "transformer"):
            expected = " or ".join(get_args(ClassName))
            raise UserError(f"{place} is a {str(name)[:80]}, expected {expected}")
    expected = f"{CONFIG}, or unet/ or transformer/ with one"
    raise UserError(f"{folder} holds none, expected one network of diffusers: {expected}")


def _places(folder: Path) -> list[Path]:
    """Where networks may be: those that a pipeline names, else the folder and all in it."""
    files = [*folder.glob(CONFIG), *sorted(folder.glob(f"*/{CONFIG}"))]
    all_places = [file.parent for file in files]
    if not (folder / PIPELINE).exists():
        return all_places
    parts = _read(folder / PIPELINE, "pipeline").items()
    names = [key for key, part in parts if isinstance(part, list)]
    named = {folder / name if (folder / name).is_dir() else folder for name in names}
    return sorted(place for place in named if (place / CONFIG).exists()) or all_places


def _read(path: Path, what: str) -> dict[str, Any]:
    return from_json(parse_json(path, read_text(path, what)), dict[str, Any], path)


def load_network(place: Path) -> tuple[Any, dict[str, Any]]:
    """The network in a folder, every weight of which is in its safetensors.

    Returns:
        The network, and what was done to load it: ``weights`` are its files, ``prefix`` is what
        their tensors' names had before them, ``passed_over`` are settings that it does not have.

    Raises:
        UserError: on settings that are none, or weights that are missing or of another network.
    """
    settings = _read(place / CONFIG, "network")
    network = network_class(settings["_class_name"])
    if "quantization_config" in settings or "auto_map" in settings:
        raise UserError(f"{place} is quantized or has code of its own, expected a plain network")
    named = {key: value for key, value in settings.items() if not key.startswith("_")}
    taken = inspect.signature(network.__init__).parameters
    known = {key: value for key, value in named.items() if key in taken}
    files = _weight_files(place)
    held = sum(file.stat().st_size for file in files)
    check_sizes(known, held, held)
    layout = _lay_out(place, network, known, held)
    weights, prefix = _read_weights(place, files, layout)
    with quiet(), torch.random.fork_rng(devices=[]):
        inner = network(**known)
    inner.load_state_dict(weights)
    passed_over, names = sorted(named.keys() - known.keys()), [file.name for file in files]
    return inner, {"weights": names, "prefix": prefix, "passed_over": passed_over}


def _lay_out(place: Path, network: Any, settings: Mapping[str, Any], held: int) -> Any:
    """The network without memory for its weights, if the ``held`` bytes of the files fill it."""
    try:
        with quiet(), torch.device("meta"):
            layout = network(**settings)
            shape = state_shape(layout)
    except UNBUILDABLE as error:
        told = " ".join(str(error).split())[:300]
        raise UserError(f"diffusers cannot load {place}: {told}") from None
    numbers = sum(tensor.numel() for tensor in layout.state_dict().values())
    if numbers > held:
        sizes = f"a network of {numbers:,} numbers, its weights have {held:,} bytes"
        raise UserError(f"{place} names {sizes}: they are of another network")
    check_memory(16 * math.prod(shape), f"an image of shape {shape}")
    return layout


def _weight_files(place: Path) -> list[Path]:
    """The files of the weights: one, or those of an index; without them those of a variant."""
    found: dict[str, list[Path]] = {}
    names = sorted(path.name for path in place.iterdir())
    for name in names:
        if one := ONE.fullmatch(name):
            found.setdefault(one[1] or "", [place / name])
        elif index := INDEX.fullmatch(name):
            parts = set(read_record(place / name, _Index, "index of weights").weight_map.values())
            found[index[1] or index[2] or ""] = [place / Path(part).name for part in sorted(parts)]
    if "" not in found and len(found) != 1:
        endings = (".safetensors", ".bin", ".pt", ".ckpt", ".msgpack")
        held = ", ".join(name for name in names if name.endswith(endings))[:200]
        raise UserError(
            f"diffusers cannot load {place} from safetensors: it holds {held or 'no weights'},"
            f" expected {WEIGHTS}.safetensors or one variant of it"
        )
    files = found.get("") or next(iter(found.values()))
    for file in files:
        if not file.exists():
            raise UserError(f"{file} is missing, expected all files of the weights: fetch it again")
    return files


def _read_weights(place: Path, files: list[Path], layout: Any) -> tuple[dict[str, Tensor], str]:
    """The weights by the network's own names, and the prefix that they had."""
    held = {name: tensor for file in files for name, tensor in read_tensors(file)[0].items()}
    prefix = _prefix(place, held, next(name for name, _ in layout.named_parameters()))
    if not all(name.startswith(prefix) for name in held):
        raise UserError(f"the weights in {place} have names without the prefix that others have")
    weights = {name.removeprefix(prefix): tensor for name, tensor in held.items()}
    layout._fix_state_dict_keys_on_load(weights)  # attention had other names in 2022
    try:
        check_fit(layout, weights)
    except UserError as error:
        raise UserError(f"the weights in {place} are not those of its {CONFIG}: {error}") from None
    return weights, prefix


def _prefix(place: Path, held: Mapping[str, Tensor], first: str) -> str:
    """What names have before the network's own, such as ``_orig_mod.`` or ``module.``."""
    ends = [name.removesuffix(first) for name in held if name.endswith(first)]
    prefixes = [end for end in ends if not end or end.endswith(".")]
    if "" in prefixes or not prefixes:
        return ""
    if len(prefixes) > 1:
        held_by = ", ".join(prefixes)[:100]
        raise UserError(
            f"the weights in {place} are of several networks ({held_by}): save one alone"
        )
    return prefixes[0]
