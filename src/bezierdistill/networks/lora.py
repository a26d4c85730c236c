r"""Low-rank adapters (LoRA): of a weight W only a product is trained, :math:`W + B A`, with B zero
at first, so that a student starts as its teacher.

Source: Hu et al. 2021 (arXiv 2106.09685); the library peft. The scale is 1 (alpha is the rank).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d)


def add_lora(module: nn.Module, rank: int, targets: Sequence[str], seed: int) -> None:
    """Put adapters into a module, whose own parameters are frozen.

    Args:
        module: the module, which is changed.
        rank: rank of the adapters.
        targets: which layers, by their names or the ends of these; none: all that are linear or
            convolutions.
        seed: seed of the first A.

    Raises:
        UserError: without peft, or if there are no such layers.
    """
    peft = _peft()
    if taken := [name for name, _ in module.named_modules() if "lora_" in name]:
        raise UserError(f"the module has adapters already ({taken[0]}): merge them, or lora=0")
    # A pattern, as peft takes a plain name for every layer whose name ends with it.
    names = "|".join(map(re.escape, _layers(module, targets)))
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, module)


def put_adapter(
    transformer: Any, name: str, rank: int, targets: Sequence[str], seed: int
) -> dict[str, nn.Parameter]:
    """Add an adapter of its own name to a transformer of diffusers, which may have others.

    Args:
        transformer: the transformer, whose own weights stay as they are.
        name: the adapter's.
        rank: its rank.
        targets: which layers, by their names or the ends of these.
        seed: seed of the first A.

    Returns:
        Its parameters, in single precision, by the layers' names, such as ``to_q.lora_A.weight``.

    Raises:
        UserError: without peft, on a rank below 1, or if a target is no layer.
    """
    peft = _peft()
    if rank < 1:
        raise UserError(f"lora is {rank}, expected a rank of 1 or more")
    known = {n: part for n, part in transformer.named_modules() if not n.endswith("base_layer")}
    layers = {path for path in known for end in targets if f".{path}".endswith(f".{end}")}
    kinds = {path: getattr(known[path], "base_layer", known[path]) for path in layers}
    wrong = [end for end in targets if not any(f".{path}".endswith(f".{end}") for path in layers)]
    wrong += sorted(path for path, part in kinds.items() if not isinstance(part, KINDS))
    if wrong:
        raise UserError(
            f"targets name {wrong[0][:80]}, expected linear layers or convolutions of the"
            f" {type(transformer).__name__}, such as to_q"
        )
    pattern = "|".join(map(re.escape, sorted(layers)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=pattern)
        transformer.add_adapter(config, adapter_name=name)
    found = {
        path.replace(f".{name}.", "."): parameter
        for path, parameter in transformer.named_parameters()
        if f".{name}." in path
    }
    for parameter in found.values():
        parameter.data = parameter.data.float()
    return found


def merged(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module with its adapters added to them, by the module's own names."""
    found = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in module.state_dict().items()
        if ".lora_" not in name
    }
    for path, layer in module.named_modules():
        if make := getattr(layer, "get_delta_weight", None):
            name, delta = f"{path}.weight", make("default")
            found[name] = found[name] + delta
    return found


def save_lora(module: nn.Module, folder: Path) -> None:
    """Write the adapters alone, in peft's own format: ``PeftModel.from_pretrained(module, folder)``
    reads them.
    """
    from bezierdistill.files import whole_folder, write_json, write_tensors

    config = module.peft_config["default"].to_dict()  # pyright: ignore
    state = _peft().get_peft_model_state_dict(module)
    start = "base_model.model."
    named: dict[str, Any] = {
        name if name.startswith(start) else start + name: tensor for name, tensor in state.items()
    }
    with whole_folder(folder) as temporary:
        write_tensors(temporary / "adapter_model.safetensors", named, {"format": "pt"})
        write_json(temporary / "adapter_config.json", _plain(config))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(part) for part in (sorted(value) if isinstance(value, set) else value)]
    value = getattr(value, "value", value)  # of an enumeration
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _layers(module: nn.Module, targets: Sequence[str]) -> list[str]:
    """The layers that adapters are put into: those that targets name, or all whose weight is a
    parameter of their own, used by nothing else, so that adapters can be added to it.
    """
    used = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    parts = {name: part for name, part in module.named_modules() if name}
    heads = tuple(f"{name}." for name in parts if type(parts[name]) is nn.MultiheadAttention)
    fit = [
        name
        for name, part in parts.items()
        if isinstance(part, KINDS)
        and getattr(part, "groups", 1) == 1
        and not name.startswith(heads)
        and used[id(part._parameters.get("weight"))] == 1
    ]
    if not fit:
        raise UserError("the module has no linear layer or convolution below it, expected lora=0")
    asked = [name for name in parts for end in targets if f".{name}".endswith(f".{end}")]
    missing = [end for end in targets if not any(f".{name}".endswith(f".{end}") for name in asked)]
    if wrong := missing or sorted({*asked} - {*fit}):
        raise UserError(
            f"targets are {', '.join(targets)[:200]}, and {wrong[0]} is no layer whose weights an"
            " adapter can be added to: expected linear layers or convolutions without groups,"
            " shared weights or weight norm, outside of nn.MultiheadAttention"
        )
    return asked or fit


def _peft() -> Any:
    try:
        import peft  # imported here: it takes seconds, and few need it
    except ImportError:
        raise UserError("lora needs peft: pip install 'bezierdistill[lora]'") from None
    return peft
