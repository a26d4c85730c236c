"""Every format that is read: how a valid one is made, how it is spoilt, and what reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partialmethod
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from msgspec.structs import replace

from bezierdistill.data import Scaling
from bezierdistill.files import digest
from bezierdistill.models.folder import load_model, save_model
from bezierdistill.models.model import Model
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.records import Conditions, Made, ModelCard, Passes, write_sealed
from bezierdistill.run import MADE, RUN, machine, read_made, read_settings
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

CPU = ["--accelerator", "cpu"]
TINY = ["--batch", 4, "--loop.accelerator", "cpu", "--loop.warmup", 0]
NET = ["--network.width", 8, "--network.depth", 1]


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
    network = NetworkConfig(width=8, depth=1)
    card = ModelCard(
        kind="teacher",
        network=asdict(network),
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
    return save_model(folder, Model(network.build((3,), 0, conditions.size).eval(), card))


def _simulation(assets: Path, out: Path, **more: Any) -> SimulateConfig:
    return SimulateConfig(
        (assets / "classes",), out, count=20, steps=2, batch=8, accelerator="cpu", degree=2, **more
    )


def build_store(points: str, noise: str) -> Callable[[Path, Path], None]:
    """Makes a store of three shards, kept in one of the ways."""

    def build(assets: Path, folder: Path) -> None:
        with small_shards():
            simulate(_simulation(assets, folder, points=points, noise=noise))

    return build


def spoil_manifest(rng: Random, kit: Kit) -> str:
    """Spoil the manifest, its checksum made to fit; sometimes its copy as well."""
    done = spoil_json(rng, kit.folder / "manifest.json", seal=True)
    if rng.random() < 0.5:
        shutil.copy(kit.folder / "manifest.json", kit.folder / "manifest.copy.json")
    return done


def spoil_shard(rng: Random, kit: Kit) -> str:
    """Spoil a shard; mostly the manifest says the same of it."""
    path = rng.choice(sorted(kit.folder.glob("shard-*.safetensors")))
    data, done = spoil_safetensors(rng, path.read_bytes())
    path.write_bytes(data)
    if rng.random() < 0.8:
        manifest = json.loads((kit.folder / "manifest.json").read_text())
        manifest.pop("seal")
        for record in manifest["shards"]:
            if record["file"] == path.name:
                record |= {"bytes": len(data), "sha256": digest(path)}
        for name in ("manifest.json", "manifest.copy.json"):
            (kit.folder / name).write_text(sealed(manifest))
    return f"{path.name}: {done}"


def store_read(rng: Random, kit: Kit) -> Callable[[], object]:
    """Rows of it."""

    def read() -> None:
        store = CurveStore.open(kit.folder)
        store.take(
            torch.randint(
                min(len(store), 10**6),
                (8,),
                generator=torch.Generator().manual_seed(rng.randrange(99)),
            )
        )
        list(store.verify())

    return read


def store_used(rng: Random, kit: Kit) -> list[object]:
    """A command that reads it."""
    recipe = json.loads((kit.assets / "curves" / "manifest.json").read_text())["recipe"]
    assert recipe["degree"] == 2
    return rng.choice(
        [
            ["store", "info", kit.folder],
            ["store", "info", kit.folder, "--json"],
            ["store", "verify", kit.folder],
            ["store", "export", kit.folder, "--out", kit.out / "c.npz"],
            ["store", "export", kit.folder, "--out", kit.out, "--to", "webdataset"],
            ["store", "merge", kit.folder, kit.assets / "curves", "--out", kit.out],
        ]
    )


def store_distilled(_: Random, kit: Kit) -> list[object]:
    """Train on it."""
    return ["distill", "--curves", kit.folder, "--out", kit.out, "--steps", 1, *TINY]


def store_repaired(rng: Random, kit: Kit) -> list[object]:
    """Make what is damaged again."""
    ways = [["--points", "uint8", "--noise", "seed"], []]
    again = [
        "simulate",
        "--teachers",
        kit.assets / "classes",
        "--count",
        20,
        "--steps",
        2,
        "--batch",
        8,
        "--degree",
        2,
        *CPU,
    ]
    way = ways[0] if _packed(kit.folder) else ways[1]
    return [*again, *way, "--out", kit.folder, *rng.choice([["--repair"], []])]


def _packed(folder: Path) -> bool:
    return any(b'"low"' in path.read_bytes() for path in folder.glob("shard-*.safetensors"))


def report(_: Random, kit: Kit) -> list[object]:
    """Its page."""
    return ["report", "--run", kit.folder]


def build_records(assets: Path, folder: Path) -> None:
    """A store that lacks its last shard, with the records of the others."""
    build_store("float32", "stored")(assets, folder)
    (folder / "shard-000002.safetensors").unlink()
    repair(folder, read_manifest(folder).recipe)


def spoil_records(rng: Random, kit: Kit) -> str:
    """Spoil a record, its checksum made to fit, or a manifest that is not complete."""
    return spoil_json(
        rng,
        rng.choice([*sorted(kit.folder.glob("shard-*.json")), kit.folder / "manifest.json"]),
        seal=True,
    )


def records_used(_: Random, kit: Kit) -> list[object]:
    """Go on."""
    with_shards = [
        "simulate",
        "--teachers",
        kit.assets / "classes",
        "--count",
        20,
        "--steps",
        2,
        "--batch",
        8,
        "--degree",
        2,
        *CPU,
    ]
    return [*with_shards, "--out", kit.folder]


def build_model(assets: Path, folder: Path) -> None:
    """A copy of a teacher."""
    shutil.copytree(assets / "classes", folder, dirs_exist_ok=True)


def spoil_card(rng: Random, kit: Kit) -> str:
    """Spoil the card of a model."""
    return spoil_json(rng, kit.folder / "model.json")


def spoil_weights(rng: Random, kit: Kit) -> str:
    """Spoil the weights of a model; mostly its card says the same of them."""
    path, card = (
        kit.folder / "model.safetensors",
        json.loads((kit.folder / "model.json").read_text()),
    )
    data, done = spoil_safetensors(rng, path.read_bytes())
    path.write_bytes(data)
    if rng.random() < 0.8:
        (kit.folder / "model.json").write_text(json.dumps({**card, "digest": digest(path)}))
    return done


def model_read(rng: Random, kit: Kit) -> Callable[[], object]:
    """Load it and draw samples."""

    def read() -> None:
        model = load_model(kit.folder)
        model.sample(
            4,
            rng.choice([1, 2, 4]),
            labels=rng.choice([None, [0, 1]]),
            solver=rng.choice(["euler", "euler", "heun"]),
        )

    return read


def model_used(rng: Random, kit: Kit) -> list[object]:
    """A command that reads it."""
    return rng.choice(
        [
            ["sample", "--model", kit.folder, "--out", kit.out / "s.npz", "--count", 8, *CPU],
            [
                "sample",
                "--model",
                kit.folder,
                "--out",
                kit.out / "s.npz",
                "--labels",
                "0,3",
                "--guidance-scale",
                2,
                "--passes",
                4,
                *CPU,
            ],
            [
                "translate",
                "--model",
                kit.folder,
                "--input",
                kit.assets / "data.npz",
                "--out",
                kit.out / "t.npz",
                *CPU,
            ],
            [
                "simulate",
                "--teachers",
                kit.folder,
                "--count",
                8,
                "--batch",
                8,
                "--steps",
                4,
                "--guidance-scale",
                2,
                "--out",
                kit.out,
                *CPU,
            ],
            ["export", "--model", kit.folder, "--out", kit.out],
        ]
    )


def build_state(assets: Path, folder: Path) -> None:
    """A training that is half done."""
    loop = LoopConfig(accelerator="cpu", warmup=0)
    train(
        TrainConfig(
            str(assets / "data.npz"),
            folder,
            2,
            4,
            network=NetworkConfig(width=8, depth=1),
            loop=loop,
        )
    )
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
    tensors, step = load_state(path, 4)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    how = rng.choice(
        ["nan", "huge", "shape", "type", "less", "more", "step", "generator", "complex"]
    )
    if how in ("nan", "huge"):
        tensors[name] = (
            torch.full_like(tensor, float("nan") if how == "nan" else 1e30)
            if tensor.is_floating_point()
            else tensor + 1
        )
    elif how in ("type", "complex"):
        tensors[name] = tensor.to(
            rng.choice([torch.float64, torch.bfloat16, torch.int64, torch.bool])
            if how == "type"
            else torch.complex64
        )
    elif how == "less":
        del tensors[name]
    elif how == "step":
        step = rng.choice([0, 1, 3, 5, 10**15])
    elif how == "generator":
        size = rng.choice([0, 1, 5056])
        tensors["generator"] = rng.choice(
            [
                torch.zeros(1, size, dtype=torch.uint8),
                torch.zeros(2, 5056, dtype=torch.uint8),
                torch.zeros(()),
            ]
        )
    else:
        tensors[name if how == "shape" else "adam/teacher/99/step"] = torch.zeros(
            rng.choice([(), (0,), (3, 1), (7, 7, 7)])
        )
    save_state(path, tensors, step)
    return f"{name}: {how}, step {step}"


def state_used(_: Random, kit: Kit) -> list[object]:
    """Go on with it."""
    return [
        "train",
        "--data",
        kit.assets / "data.npz",
        "--out",
        kit.folder,
        "--steps",
        4,
        *TINY,
        *NET,
    ]


ROW = {
    "method": "rf-2",
    "ours": False,
    "seed": 0,
    "passes": 1,
    "spent_passes": 9,
    "seconds": 1.5,
    "peak_memory_mb": 7.0,
}
ROW |= dict.fromkeys(("frechet_ratio", "sliced_wasserstein_ratio", "energy_ratio"), 1.5)
ROUND = {
    "round": 1,
    "flow_passes": 4,
    "student_passes": 5,
    "straightness": 0.1,
    "drift": 0.0,
    "reconstruction_real": 1e-3,
}
ROUND |= {
    "reconstruction_generated": 2e-3,
    "samplers": {name: {"frechet_ratio": 1.2} for name in ("a", "b", "c", "d")},
}


def build_figures(_: Path, folder: Path) -> None:
    """Figures of an arena, of reflow and of training, without their models."""
    (folder / "cells").mkdir(parents=True)
    rows = [
        ROW,
        {**ROW, "seed": 1},
        {"method": "dmd", "ours": False, "seed": 0, "error": "it diverged"},
    ]
    (folder / "cells" / "rf-2-0.json").write_text(json.dumps({"rows": rows}))
    (folder / "arena.json").write_text(json.dumps(rows))
    (folder / "run.json").write_text(
        json.dumps({"data": "digits", "budget": 9, "network": {"kind": "mlp"}})
    )
    (folder / "rounds.json").write_text(
        json.dumps({"data": "digits", "rounds": [ROUND, {**ROUND, "round": 2, "drift": 0.1}]})
    )
    (folder / "log.jsonl").write_text(
        json.dumps(
            {"stage": "curves", "step": 4, "loss": {"student": 0.5}, "steps_per_second": 3.0}
        )
        + "\n"
    )


def spoil_figures(rng: Random, kit: Kit) -> str:
    """Spoil one of the files."""
    return spoil_json(
        rng,
        rng.choice(
            [path for path in sorted(kit.folder.rglob("*.json*")) if path.name != "arena.json"]
        ),
    )


def build_made(_: Path, folder: Path) -> None:
    """What a run says of its making."""
    folder.mkdir(exist_ok=True)
    made = Made(
        verb="train",
        commands=("bezierdistill train --data digits --out x",),
        machine=machine(),
        started="2026-01-01",
        seconds=1.5,
        finished=True,
    )
    write_sealed(folder / MADE, made)


def spoil_made(rng: Random, kit: Kit) -> str:
    """Spoil it."""
    return spoil_json(rng, kit.folder / MADE, seal=rng.random() < 0.8)


def made_read(_: Random, kit: Kit) -> Callable[[], object]:
    """Read it, for a page or a report."""

    def read() -> None:
        made = read_made(kit.folder)
        assert made is not None
        f"{made.commands} {made.seconds:.1f} {made.sessions:,} {made.started} {made.machine}"

    return read


def build_pipeline(_: Path, folder: Path) -> None:
    """A small network of diffusers with its scheduler."""
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    unet = UNet2DModel(
        8,
        3,
        3,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    unet.save_pretrained(folder / "unet")
    DDPMScheduler(50).save_pretrained(folder / "scheduler")


def spoil_pipeline(rng: Random, kit: Kit) -> str:
    """Spoil its statements or its weights."""
    path = rng.choice(sorted(path for path in kit.folder.rglob("*") if path.is_file()))
    if path.suffix == ".json":
        return f"{path.name}: {spoil_json(rng, path)}"
    data, done = spoil_safetensors(rng, path.read_bytes())
    path.write_bytes(data)
    return done


def pipeline_used(_: Random, kit: Kit) -> list[object]:
    """The command that imports it."""
    return [
        "import",
        "--source",
        kit.folder,
        "--prediction",
        "epsilon",
        "--schedule",
        "steps",
        "--out",
        kit.out,
    ]


FORMATS = {
    form.name: form
    for form in (
        Format(
            "manifest",
            build_store("float32", "stored"),
            spoil_manifest,
            {store_read: 4, store_used: 3, store_repaired: 1, store_distilled: 1},
            220,
        ),
        Format(
            "packed",
            build_store("uint8", "seed"),
            spoil_manifest,
            {store_read: 4, store_used: 2, store_repaired: 1, report: 1},
            120,
        ),
        Format(
            "shard",
            build_store("float32", "stored"),
            spoil_shard,
            {store_read: 4, store_used: 2, store_repaired: 1, store_distilled: 1},
            160,
        ),
        Format(
            "packed-shard",
            build_store("uint8", "seed"),
            spoil_shard,
            {store_read: 4, store_used: 1, store_repaired: 1},
            100,
        ),
        Format("record", build_records, spoil_records, {records_used: 1}, 100),
        Format("card", build_model, spoil_card, {model_read: 5, model_used: 2, report: 0.2}, 220),
        Format("weights", build_model, spoil_weights, {model_read: 4, model_used: 1}, 150),
        Format("state", build_state, spoil_state, {state_used: 1}, 100),
        Format("arrays", build_arrays, spoil_arrays, ARRAYS, 240),
        Format("tar", build_tar, spoil_tar, TARS, 160),
        Format("images", build_images, spoil_images, PICTURES, 140),
        Format("figures", build_figures, spoil_figures, {report: 1}, 60),
        Format("made", build_made, spoil_made, {made_read: 1}, 40),
        Format("diffusers", build_pipeline, spoil_pipeline, {pipeline_used: 1}, 60),
    )
}
