"""What this machine has, and which of ``recipes/`` it can run: a recipe's budget over the network
passes a second that it measures here.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from bezierdistill.errors import UnfitError, UserError
from bezierdistill.metrics.classifier import cache_folder
from bezierdistill.models import NetworkConfig
from bezierdistill.objectives import FlowMatching
from bezierdistill.progress import progress
from bezierdistill.run import PACKAGES, machine

GB = 1e9
EXTRAS = {
    "app": ("gradio",),
    "hub": ("datasets", "huggingface_hub"),
    "docs": ("sphinx", "furo"),
    "browser": ("playwright",),
}
BUSY = 0.5  # load a core, above which runs get in each other's way
LEAST = 1.0  # GB of memory, and of disk beside the curves
MEASURED = (
    "from {:g} s of forward and backward passes of its network at its batch, on {}; the rest of a"
    " step is not in it"
)


@dataclasses.dataclass(frozen=True)
class DoctorConfig:
    """Say what this machine has, and which recipes it can run.

    Versions, devices, threads, extras, cache and disk; for each recipe how long it would take, from
    a moment of training its network.

    Example::

        bezierdistill doctor
    """

    seconds: float = 1.0
    """For how long each recipe's network is trained to measure its speed; 0 measures nothing."""

    def __post_init__(self) -> None:
        if not 0 <= self.seconds <= 60:
            raise UserError(f"seconds is {self.seconds}, expected 0 to 60")


@dataclasses.dataclass(frozen=True)
class Need:
    """What a recipe asks for.

    Args:
        network: its network.
        shape: shape of a state of the data that it is made for.
        budget: network passes in all.
        batch: rows a step.
        conditions: numbers of a condition.
        gpu: GB of GPU memory; 0 runs on the CPU.
        disk: GB of disk, most of them for curves.
    """

    network: NetworkConfig
    shape: tuple[int, ...]
    budget: int
    batch: int
    conditions: int = 0
    gpu: float = 0.0
    disk: float = LEAST


RECIPES = {
    "bezier": Need(NetworkConfig(), (1, 8, 8), 4_000_000, 256),
    "bundled": Need(NetworkConfig(width=128, depth=4), (1, 8, 8), 8_000_000, 256, 10),
    "images": Need(NetworkConfig("unet", 32, 1, 2), (1, 28, 28), 500_000, 64, 10),
    "translation": Need(NetworkConfig("mlp", 512, 5), (1, 16, 16), 2_000_000, 256),
    "images-gpu": Need(
        NetworkConfig("unet", 64, 2, 1), (1, 28, 28), 60_000_000, 512, 10, gpu=24, disk=7
    ),
    "cifar10-gpu": Need(
        NetworkConfig("unet", 128, 2, 1), (3, 32, 32), 120_000_000, 512, 10, gpu=40, disk=10
    ),
}


def examine(config: DoctorConfig) -> dict[str, Any]:
    """Examine the machine, and print what was found.

    Raises:
        UnfitError: if no recipe can run here.
    """
    found: dict[str, Any] = {"versions": machine(), **_hardware(), **_places()}
    device = "cuda" if found["gpus"] else "mps" if found["mps"] else "cpu"
    found["measured"] = MEASURED.format(config.seconds, device) if config.seconds else None
    with progress("measure", len(RECIPES)) as advance:
        found["recipes"] = [
            _judged(name, need, found, device, config.seconds, advance)
            for name, need in RECIPES.items()
        ]
    found["warnings"] = list(_warnings(found))
    found["usable"] = any(not recipe["lacks"] for recipe in found["recipes"])
    _show(found)
    if not found["usable"]:
        raise UnfitError(
            f"no recipe can run here: {found['recipes'][0]['recipe']} lacks"
            f" {found['recipes'][0]['lacks'][0]}",
            found,
        )
    return found


def _hardware() -> dict[str, Any]:
    cards = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
    return {
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB, 1),
        "load": round(os.getloadavg()[0], 2),
        "gpus": [
            {"name": card.name, "memory_gb": round(card.total_memory / GB, 1)} for card in cards
        ],
        "mps": torch.backends.mps.is_available(),
        "threads_variable": os.environ.get("OMP_NUM_THREADS"),
        "extras": {
            name: all(find_spec(package) for package in packages)
            for name, packages in EXTRAS.items()
        },
    }


def _places() -> dict[str, Any]:
    cache = cache_folder()
    there = next(
        folder for folder in (cache, *cache.absolute().parents) if folder.exists()
    )  # where it is, or would be made
    return {
        "cache": cache,
        "cache_writable": there.is_dir() and os.access(there, os.W_OK),
        "folder": Path.cwd(),
        "folder_writable": os.access(Path.cwd(), os.W_OK),
        "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / GB, 1),
    }


def _judged(
    name: str, need: Need, found: dict[str, Any], device: str, seconds: float, advance: Any
) -> dict[str, Any]:
    """What a recipe lacks here, and how long it would take if it lacks nothing."""
    lacks = list(_lacks(need, found))
    rate = None if lacks or not seconds else passes_a_second(need, device, seconds)
    advance(1)
    return {
        "recipe": name,
        "lacks": lacks,
        "passes": need.budget,
        "passes_a_second": rate and round(rate),
        "minutes": rate and round(need.budget / rate / 60, 1),
    }


def _lacks(need: Need, found: dict[str, Any]) -> Iterator[str]:
    card = max((card["memory_gb"] for card in found["gpus"]), default=0.0)
    if card < need.gpu:
        yield (
            f"a GPU of {need.gpu:g} GB ({f'the largest has {card:g}' if card else 'there is none'})"
        )
    if found["free_disk_gb"] < need.disk:
        yield f"{need.disk:g} GB of disk ({found['free_disk_gb']} are free)"
    if found["memory_gb"] < LEAST:
        yield f"{LEAST:g} GB of memory (there are {found['memory_gb']})"
    if not found["folder_writable"]:
        yield f"a folder to write in ({found['folder']} is read-only)"


def passes_a_second(need: Need, device: str, seconds: float) -> float:
    """Network passes a second, a row each, of training a recipe's network: forward and backward
    count 3.
    """
    net = need.network.build(need.shape, 0, need.conditions).to(device)
    x, t = (
        torch.randn(need.batch, *need.shape, device=device),
        torch.rand(need.batch, device=device),
    )
    cond = torch.zeros(need.batch, need.conditions, device=device) if need.conditions else None

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = (net(x, t, t, cond) - x).square().mean()
        loss.backward()
        return float(loss.detach())  # waits for the device

    step()
    started, steps = time.perf_counter(), 0
    while (taken := time.perf_counter() - started) < seconds or not steps:
        step()
        steps += 1
    return FlowMatching.passes * need.batch * steps / taken


def _warnings(found: dict[str, Any]) -> Iterator[str]:
    cores = found["versions"]["cores"] or 1
    if found["threads_variable"] is None and found["load"] > BUSY * cores:
        yield (
            f"the load is {found['load']} of {cores} cores and OMP_NUM_THREADS is not set: set it"
            " to 1 where several runs share a machine"
        )
    if (
        found["threads_variable"] is not None
        and found["versions"]["threads"] < cores
        and found["load"] < BUSY
    ):
        yield (
            f"OMP_NUM_THREADS is {found['threads_variable']} and {cores} cores are idle: unset it"
            " for a run of its own"
        )
    if not found["cache_writable"]:
        yield (
            f"{found['cache']} cannot be written: name another folder in BEZIERDISTILL_CACHE, or"
            " classifiers are trained again each time"
        )


def _show(found: dict[str, Any]) -> None:
    versions, threads = found["versions"], found["threads_variable"]
    cards = [f"{card['name']}, {card['memory_gb']} GB" for card in found["gpus"]]
    lines = {
        "versions": ", ".join(
            f"{name} {versions[name]}" for name in ("bezierdistill", "python", *PACKAGES)
        ),
        "system": f"{versions['system']}, {versions['processor']}",
        "processor": (
            f"{versions['cores']} cores, {found['memory_gb']} GB of memory, load {found['load']}"
        ),
        "threads": (
            f"{versions['threads']} (OMP_NUM_THREADS"
            f" {'is not set' if threads is None else f'is {threads}'})"
        ),
        "GPUs": "; ".join(cards) or ("Apple's (mps)" if found["mps"] else "none"),
        "extras": ", ".join(
            f"{name}: {'yes' if there else 'no'}" for name, there in found["extras"].items()
        ),
        "cache": f"{found['cache']}{'' if found['cache_writable'] else ' (cannot be written)'}",
        "disk": f"{found['free_disk_gb']} GB free in {found['folder']}",
    }
    for name, text in lines.items():
        print(f"{name:>10}  {text}")
    print("\nrecipes")
    for recipe in found["recipes"]:
        rate = recipe["passes_a_second"]
        time_taken = (
            f"yes, about {recipe['minutes']:g} minutes: {recipe['passes']:,} passes at {rate:,} a"
            " second"
            if rate
            else "yes"
        )
        print(
            f"{recipe['recipe']:>13} "
            f" {'no, it lacks ' + '; '.join(recipe['lacks']) if recipe['lacks'] else time_taken}"
        )
    if found["measured"]:
        print(f"{'':>13}  ({found['measured']})")
    for warning in found["warnings"]:
        print(f"\nwarning: {warning}")
