"""Every format that is read: how a valid one is made, how it is spoilt, and what reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial, partialmethod
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from msgspec.structs import replace

from arena_rows import a_row, scored
from bezierdistill.data import Scaling
from bezierdistill.files import digest
from bezierdistill.models.folder import load_model, save_model
from bezierdistill.models.model import Model
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.records import (
    ROUNDS,
    ArenaRow,
    Conditions,
    LogEntry,
    Made,
    ModelCard,
    Passes,
    RoundRow,
    Rounds,
    Sampled,
    Settings,
    to_json,
    write_record,
    write_sealed,
)
from bezierdistill.run import MADE, RUN, machine, read_settings
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.stages.train import TrainConfig, train
from bezierdistill.store import CurveStore, CurveWriter, read_manifest, repair
from bezierdistill.training.checkpoint import load_state, save_state
from bezierdistill.training.settings import LoopConfig
from hostile import Format, Kit
from hostile_archives import (
    ARRAYS,
    PICTURES,
    TARS,
    build_arrays,
    build_images,
    build_tar,
    spoil_arrays,
    spoil_images,
    spoil_tar,
)
from hostile_mutators import sealed, spoil_json, spoil_safetensors
from tiny_diffusers import save_pipeline, tiny_unet

TINY = "--batch 4 --loop.accelerator cpu --loop.warmup 0"
NET, LOOP = NetworkConfig(width=8, depth=1), LoopConfig(accelerator="cpu", warmup=0)
SEALED = {MADE, RUN, "manifest.json"}


def command(text: str, **paths: Path) -> list[object]:
    """Words of a command line, of which some stand for paths."""
    return [paths.get(word, word) for word in text.split()]


def either(*texts: str) -> Callable[[Random, Kit], list[object]]:
    """One of some commands; IN is what is spoilt, OUT where output goes."""

    def use(rng: Random, kit: Kit) -> list[object]:
        places = {"IN": kit.folder, "OUT": kit.out, "NPZ": kit.out / "x.npz"}
        names = {name.upper(): kit.assets / name for name in ("plain", "classes", "curves")}
        return command(rng.choice(texts), **places, **names, DATA=kit.assets / "data.npz")

    return use


report = either("report --run IN")


def build_assets(folder: Path) -> None:
    """What is never spoilt: samples, and teachers without conditions, with classes, and with
    vectors."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=rng.standard_normal((80, 3)).astype(np.float32))
    save_teacher(folder / "plain")
    save_teacher(folder / "classes", Conditions(size=4, frequencies=(0.25,) * 4))
    save_teacher(folder / "vectors", Conditions(size=3))
    with small_shards():
        simulate(_simulation(folder, folder / "curves", points="float32", seed=1))


def small_shards() -> AbstractContextManager[object]:
    """Stores have several shards."""
    return patch.object(CurveWriter, "plan", partialmethod(CurveWriter.plan, shard_bytes=400))


def save_teacher(folder: Path, conditions: Conditions = Conditions()) -> Model:  # noqa: B008
    """A small network with random weights."""
    card = ModelCard(
        kind="teacher",
        network=asdict(NET),
        shape=(3,),
        scaling=Scaling((1.0,), (2.0,)),
        seed=0,
        steps=1,
        passes=Passes(training=5),
        conditions=conditions,
        data="digits",
        drop=0.1,
        knots={1: (0.0, 1.0), 2: (0.0, 0.4, 1.0)},
    )
    return save_model(folder, Model(NET.build((3,), 0, conditions.size).eval(), card))


AGAIN = "simulate --teachers CLASSES --count 20 --steps 2 --batch 8 --degree 2 --accelerator cpu"


def _simulation(assets: Path, out: Path, **more: Any) -> SimulateConfig:
    teachers, sizes = (assets / "classes",), {"count": 20, "steps": 2, "batch": 8, "degree": 2}
    return SimulateConfig(teachers, out, accelerator="cpu", **sizes, **more)


def build_store(assets: Path, folder: Path, points: str, noise: str) -> None:
    """A store of three shards, kept in one of the ways."""
    with small_shards():
        simulate(_simulation(assets, folder, points=points, noise=noise))


def spoil_store(rng: Random, kit: Kit) -> str:
    """Spoil the manifest, its checksum made to fit, or a shard of which mostly the manifest says
    the same."""
    names = ("manifest.json", "manifest.copy.json")
    if rng.random() < 0.6:
        done = spoil_json(rng, kit.folder / names[0], seal=True)
        if rng.random() < 0.5:
            shutil.copy(kit.folder / names[0], kit.folder / names[1])
        return done
    path = rng.choice(sorted(kit.folder.glob("shard-*.safetensors")))
    data, done = spoil_safetensors(rng, path.read_bytes())
    path.write_bytes(data)
    if rng.random() < 0.8:
        manifest = json.loads((kit.folder / names[0]).read_text())
        manifest.pop("seal")
        for record in manifest["shards"]:
            if record["file"] == path.name:
                record |= {"bytes": len(data), "sha256": digest(path)}
        for name in names:
            (kit.folder / name).write_text(sealed(manifest))
    return f"{path.name}: {done}"


def store_read(rng: Random, kit: Kit) -> Callable[[], object]:
    """Rows of it."""

    def read() -> None:
        store = CurveStore.open(kit.folder)
        generator = torch.Generator().manual_seed(rng.randrange(99))
        store.take(torch.randint(min(len(store), 10**6), (8,), generator=generator))
        list(store.verify())

    return read


store_used = either(
    "store info IN",
    "store info IN --json",
    "store verify IN",
    "store export IN --out NPZ",
    "store export IN --out OUT --to webdataset",
    "store merge IN CURVES --out OUT",
)
store_distilled = either(f"distill --curves IN --out OUT --steps 1 {TINY}")
store_repaired = either(f"{AGAIN} --out IN --repair", f"{AGAIN} --out IN")
PACKED = "--points uint8 --noise seed"
packed_repaired = either(f"{AGAIN} {PACKED} --out IN --repair", f"{AGAIN} {PACKED} --out IN")


def build_unfinished(assets: Path, folder: Path) -> None:
    """A store that lacks its last shard, with the records of the others."""
    build_store(assets, folder, "float32", "stored")
    (folder / "shard-000002.safetensors").unlink()
    repair(folder, read_manifest(folder).recipe)


def spoil_unfinished(rng: Random, kit: Kit) -> str:
    """Spoil a record, its checksum made to fit, or a manifest that is not complete."""
    records = [*sorted(kit.folder.glob("shard-*.json")), kit.folder / "manifest.json"]
    return spoil_json(rng, rng.choice(records), seal=True)


def build_model(assets: Path, folder: Path) -> None:
    """A copy of a teacher."""
    shutil.copytree(assets / "classes", folder, dirs_exist_ok=True)


def spoil_model(rng: Random, kit: Kit) -> str:
    """Spoil the card of a model, or weights of which mostly its card says the same."""
    card, path = kit.folder / "model.json", kit.folder / "model.safetensors"
    if rng.random() < 0.6:
        return spoil_json(rng, card)
    data, done = spoil_safetensors(rng, path.read_bytes())
    path.write_bytes(data)
    if rng.random() < 0.8:
        card.write_text(json.dumps({**json.loads(card.read_text()), "digest": digest(path)}))
    return done


def model_read(rng: Random, kit: Kit) -> Callable[[], object]:
    """Load it and draw samples."""
    passes, labels = rng.choice([1, 2, 4]), rng.choice([None, [0, 1]])
    solver = rng.choice(["euler", "euler", "heun"])
    return lambda: load_model(kit.folder).sample(4, passes, labels=labels, solver=solver)


model_used = either(
    "sample --model IN --out NPZ --count 8 --accelerator cpu",
    "sample --model IN --out NPZ --labels 0,3 --guidance-scale 2 --passes 4 --accelerator cpu",
    "translate --model IN --input DATA --out NPZ --accelerator cpu",
    "simulate --teachers IN --count 8 --batch 8 --steps 4 --guidance-scale 2 --out OUT"
    " --accelerator cpu",
    "export --model IN --out OUT",
)


def build_state(assets: Path, folder: Path) -> None:
    """A training that is half done."""
    train(TrainConfig(str(assets / "data.npz"), folder, 2, 4, network=NET, loop=LOOP))
    (folder / "model.json").unlink()
    (folder / "model.safetensors").unlink()
    held = read_settings(folder)
    write_sealed(folder / RUN, replace(held, settings={**held.settings, "steps": 4}))


def spoil_state(rng: Random, kit: Kit) -> str:
    """Spoil the saved state; mostly its digest is made to fit."""
    path = kit.folder / "state-teacher.safetensors"
    if rng.random() < 0.4:
        data, done = spoil_safetensors(rng, path.read_bytes())
        path.write_bytes(data)
        return done
    held, step = load_state(path, 4)
    tensors = {name: tensor.clone() for name, tensor in held.items()}
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    real = tensor.is_floating_point()
    kinds = [torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64]
    odd = [torch.zeros(1, size, dtype=torch.uint8) for size in (0, 1, 5056)]
    odd += [torch.zeros(2, 5056, dtype=torch.uint8), torch.zeros(())]
    shapes = [torch.zeros(shape) for shape in ((), (0,), (3, 1), (7, 7, 7))]
    changes: dict[str, dict[str, torch.Tensor]] = {
        "nan": {name: torch.full_like(tensor, float("nan")) if real else tensor + 1},
        "huge": {name: torch.full_like(tensor, 1e30) if real else tensor + 1},
        "shape": {name: rng.choice(shapes)},
        "type": {name: tensor.to(rng.choice(kinds))},
        "more": {"adam/teacher/99/step": rng.choice(shapes)},
        "generator": {"generator": rng.choice(odd)},
        "less": {},
        "step": {},
    }
    how = rng.choice(sorted(changes))
    tensors |= changes[how]
    if how == "less":
        del tensors[name]
    step = rng.choice([0, 1, 3, 5, 10**15]) if how == "step" else step
    save_state(path, tensors, step)
    return f"{name}: {how}, step {step}"


state_used = either(
    f"train --data DATA --out IN --steps 4 {TINY} --network.width 8 --network.depth 1"
)


def build_run(_: Path, folder: Path) -> None:
    """Figures of an arena, of reflow and of training, and what made them, without their models."""
    rows = [a_row("rf-2", seed, 1, 1.5) for seed in (0, 1)]
    rows += [ArenaRow(method="dmd", seed=0, error="it diverged")]
    write_record(folder / "cells" / "rf-2-0.json", rows)
    asked = {"data": "digits", "budget": 9, "network": {"kind": "mlp"}}
    write_sealed(folder / RUN, Settings(verb="arena", settings=asked))
    made = Made(
        verb="arena",
        commands=("bezierdistill arena --data digits --out x",),
        machine=machine(),
        started="2026-01-01",
        seconds=1.5,
        finished=True,
    )
    write_sealed(folder / MADE, made)
    samplers = [Sampled(who="flow", solver="heun", passes=40, scores=scored(1.2))]
    samplers += [Sampled(who="flow", solver="euler", passes=k, scores=scored(1.2)) for k in (1, 2)]
    samplers += [Sampled(who="distilled", solver="jumps", passes=1, scores=scored(1.1))]
    lost = ("straightness", "drift", "reconstruction_real", "reconstruction_generated")
    rounds = [
        RoundRow(
            round=k,
            flow_passes=4,
            student_passes=5,
            samplers=tuple(samplers),
            **dict.fromkeys(lost, 0.1 * k),
        )
        for k in (1, 2)
    ]
    write_record(folder / ROUNDS, Rounds(data="digits", seed=0, rounds=tuple(rounds)))
    entry = LogEntry(stage="curves", step=4, loss={"student": 0.5}, steps_per_second=3.0)
    (folder / "log.jsonl").write_text(json.dumps(to_json(entry)) + "\n")


def spoil_run(rng: Random, kit: Kit) -> str:
    """Spoil one of the files; mostly a checksum is made to fit."""
    path = rng.choice(sorted(kit.folder.rglob("*.json*")))
    return spoil_json(rng, path, seal=path.name in SEALED and rng.random() < 0.8)


def build_pipeline(_: Path, folder: Path) -> None:
    """A small network of diffusers with its scheduler."""
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    save_pipeline(folder, tiny_unet(block_out_channels=(8,), **blocks))


def spoil_pipeline(rng: Random, kit: Kit) -> str:
    """Spoil its statements or its weights."""
    path = rng.choice(sorted(path for path in kit.folder.rglob("*") if path.is_file()))
    if path.suffix == ".json":
        return f"{path.name}: {spoil_json(rng, path)}"
    data, done = spoil_safetensors(rng, path.read_bytes())
    path.write_bytes(data)
    return done


pipeline_used = either("import --source IN --prediction epsilon --schedule steps --out OUT")
plain_store = partial(build_store, points="float32", noise="stored")
packed_store = partial(build_store, points="uint8", noise="seed")
READ = {store_read: 8, store_used: 4}
FORMATS = {
    form.name: form
    for form in (
        Format(
            "store", plain_store, spoil_store, {**READ, store_repaired: 2, store_distilled: 2}, 380
        ),
        Format("packed", packed_store, spoil_store, {**READ, packed_repaired: 2, report: 1}, 220),
        Format(
            "unfinished", build_unfinished, spoil_unfinished, {either(f"{AGAIN} --out IN"): 1}, 100
        ),
        Format("model", build_model, spoil_model, {model_read: 9, model_used: 3, report: 0.2}, 370),
        Format("state", build_state, spoil_state, {state_used: 1}, 100),
        Format("arrays", build_arrays, spoil_arrays, ARRAYS, 240),
        Format("tar", build_tar, spoil_tar, TARS, 160),
        Format("images", build_images, spoil_images, PICTURES, 140),
        Format("run", build_run, spoil_run, {report: 1}, 150),
        Format("diffusers", build_pipeline, spoil_pipeline, {pipeline_used: 1}, 60),
    )
}
