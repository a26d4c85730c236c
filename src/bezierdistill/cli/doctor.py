"""What this machine has, and which of ``recipes/`` it can run.

A recipe's file says in a comment what it needs beside its settings, as YAML:

    # Needs: {shape: [3, 32, 32], conditions: 10, gpu: 40, disk: 10}

``shape`` is that of a state of its data, ``conditions`` the numbers of a condition, ``gpu`` GB of
GPU memory (0 runs on the CPU), ``disk`` GB of disk, most of them for curves.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml

from bezierdistill.errors import UnfitError, UserError

if TYPE_CHECKING:
    from bezierdistill.stages.recipe import RecipeConfig

GB, MIN_MEMORY = 1e9, 1.0  # bytes; GB
NEEDS = "# Needs: "
EXTRAS = {
    **{"app": ("gradio",), "hub": ("datasets", "huggingface_hub")},
    **{"docs": ("sphinx", "furo"), "browser": ("playwright",)},
}


@dataclass(frozen=True)
class DoctorConfig:
    """Say what this machine has, and which recipes it can run.

    Versions, devices, threads, extras, cache and disk.

    Example::

        bezierdistill doctor
        bezierdistill doctor --measure 1
    """

    measure: float = 0.0
    """Seconds for which each recipe's network is trained, to tell how long the recipe takes here; 0
    measures nothing."""

    def __post_init__(self) -> None:
        if not 0 <= self.measure <= 60:
            raise UserError(f"measure is {self.measure}, expected 0 to 60 seconds")


@dataclass(frozen=True)
class Needs:
    """What a recipe needs beside its settings; see above."""

    shape: tuple[int, ...]
    conditions: int = 0
    gpu: float = 0.0
    disk: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """A recipe that ships with the package."""

    name: str
    config: RecipeConfig
    needs: Needs


def read_recipes() -> list[Recipe]:
    """The recipes: a folder of the package, or of the repository that it is used from."""
    from bezierdistill.cli.parser import parse  # imported here: this is one of its verbs

    root, recipes = Path(__file__).resolve().parents[1], []
    folder = root / "recipes" if (root / "recipes").exists() else root.parents[1] / "recipes"
    for file in sorted(folder.glob("*.yaml")):
        request = parse(["recipe", "--config", str(file), "--data", "x", "--out", "y"])
        lines = file.read_text(encoding="utf-8").splitlines()
        needs = next(line for line in lines if line.startswith(NEEDS)).removeprefix(NEEDS)
        recipes.append(Recipe(file.stem, request.config, Needs(**yaml.safe_load(needs))))
    return sorted(recipes, key=lambda recipe: (recipe.needs.gpu, recipe.config.budget))


def main_doctor(config: DoctorConfig) -> dict[str, Any]:
    """Examine the machine, and print what was found.

    Raises:
        UnfitError: if no recipe can run here.
    """
    from bezierdistill.progress import progress

    found = _machine()
    recipes, found["recipes"] = read_recipes(), []
    with progress("measure", len(recipes)) as advance:
        for recipe in recipes:
            passes, lacks = recipe.config.budget, list(_lacks(recipe.needs, found))
            verdict = {"recipe": recipe.name, "lacks": lacks, "passes": passes}
            if config.measure and not lacks:
                device = "cuda" if found["gpus"] else "mps" if found["mps"] else "cpu"
                rate = passes_per_second(recipe, device, config.measure)
                verdict |= {"passes_per_second": rate, "minutes": passes / rate / 60}
            found["recipes"].append(verdict)
            advance(1)
    found["warnings"] = list(_warnings(found))
    _show(found)
    if all(verdict["lacks"] for verdict in found["recipes"]):
        first = found["recipes"][0]
        told = f"no recipe can run here: {first['recipe']} lacks {first['lacks'][0]}"
        raise UnfitError(told, found)
    return found


def _machine() -> dict[str, Any]:
    import torch

    from bezierdistill.memory import memory
    from bezierdistill.metrics.classifier import cache_folder
    from bezierdistill.records import to_json
    from bezierdistill.run import machine

    gpus = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
    here, cache, there = Path.cwd(), None, None
    with suppress(RuntimeError):  # without HOME, of a user whom the system does not know
        cache = cache_folder()
        there = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    return {
        "machine": to_json(machine()),
        "memory_gb": round(memory() / GB, 1),
        "load": round(psutil.getloadavg()[0], 2),
        "gpus": [{"name": c.name, "memory_gb": round(c.total_memory / GB, 1)} for c in gpus],
        "mps": torch.backends.mps.is_available(),
        "threads_variable": os.environ.get("OMP_NUM_THREADS"),
        "extras": {name: all(map(find_spec, packages)) for name, packages in EXTRAS.items()},
        "cache": cache,  # there is its first part that exists, in which the rest would be made
        "cache_writable": there is not None and there.is_dir() and os.access(there, os.W_OK),
        "folder": here,
        "folder_writable": os.access(here, os.W_OK),
        "free_disk_gb": round(shutil.disk_usage(here).free / GB, 1),
    }


def _lacks(needs: Needs, found: dict[str, Any]) -> Iterator[str]:
    largest = max((gpu["memory_gb"] for gpu in found["gpus"]), default=0.0)
    if largest < needs.gpu:
        there = f"the largest has {largest:g}" if largest else "there is none"
        yield f"a GPU of {needs.gpu:g} GB ({there})"
    if found["free_disk_gb"] < needs.disk:
        yield f"{needs.disk:g} GB of disk ({found['free_disk_gb']} are free)"
    if found["memory_gb"] < MIN_MEMORY:
        yield f"{MIN_MEMORY:g} GB of memory (there are {found['memory_gb']})"
    if not found["folder_writable"]:
        yield f"a folder to write in ({found['folder']} is read-only)"


def passes_per_second(recipe: Recipe, device: str, seconds: float) -> float:
    """Passes per second of one row while a recipe's network is trained; a step counts 3."""
    import torch

    shape, batch, conditions = recipe.needs.shape, recipe.config.batch, recipe.needs.conditions
    net = recipe.config.network.build(tuple(shape), 0, conditions).to(device)
    x, t = torch.randn(batch, *shape, device=device), torch.rand(batch, device=device)
    cond = torch.zeros(batch, conditions, device=device) if conditions else None

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
    return 3 * batch * steps / taken


def _warnings(found: dict[str, Any]) -> Iterator[str]:
    from bezierdistill.run import BUSY

    cores, threads = found["machine"]["cores"] or 1, found["threads_variable"]
    if threads is None and found["load"] > BUSY * cores:
        told = f"the load is {found['load']} of {cores} cores and OMP_NUM_THREADS is not set"
        yield f"{told}: set it to 1 where several runs share a machine"
    if threads is not None and found["machine"]["threads"] < cores and found["load"] < BUSY:
        yield f"OMP_NUM_THREADS is {threads} and {cores} cores are idle: unset it for a single run"
    if not found["cache_writable"]:
        told = f"{found['cache'] or 'the cache of a user without a home'} cannot be written"
        yield f"{told}: name another in BEZIERDISTILL_CACHE, or classifiers are trained each time"


def _show(found: dict[str, Any]) -> None:
    machine, threads = found["machine"], found["threads_variable"]
    gpus = [f"{gpu['name']}, {gpu['memory_gb']} GB" for gpu in found["gpus"]]
    cores = f"{machine['cores']} cores, {found['memory_gb']} GB of memory"
    lines = {
        "versions": ", ".join(f"{name} {text}" for name, text in machine["versions"].items()),
        "system": f"{machine['system']}, {machine['processor']}",
        "processor": f"{cores}, load {found['load']}",
        "threads": f"{machine['threads']} (OMP_NUM_THREADS is {threads or 'not set'})",
        "GPUs": "; ".join(gpus) or ("Apple's (mps)" if found["mps"] else "none"),
        "extras": ", ".join(f"{k}: {'yes' if v else 'no'}" for k, v in found["extras"].items()),
        "cache": f"{found['cache']}{'' if found['cache_writable'] else ' (cannot be written)'}",
        "disk": f"{found['free_disk_gb']} GB free in {found['folder']}",
    }
    for name, text in lines.items():
        print(f"{name:>10}  {text}")
    print("\nrecipes")
    for verdict in found["recipes"]:
        text = f"no, it lacks {'; '.join(verdict['lacks'])}" if verdict["lacks"] else "yes"
        if "minutes" in verdict:  # the rest of a step is not in it
            text += f", about {verdict['minutes']:.1f} minutes: {verdict['passes']:,} passes"
            text += f" at {verdict['passes_per_second']:,.0f} per second"
        print(f"{verdict['recipe']:>13}  {text}")
    for warning in found["warnings"]:
        print(f"\nwarning: {warning}")
