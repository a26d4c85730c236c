"""The command line: one verb a stage. Settings are dataclasses, given by flags or by YAML (``--config``).

A mistake of the user's ends with one line on standard error and exit code 2. ``BEZIERDISTILL_DEBUG=1`` shows the traceback instead.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from safetensors import SafetensorError

from bezierdistill import __version__
from bezierdistill.arena.runner import ArenaConfig, arena
from bezierdistill.conventions import Prediction
from bezierdistill.data import load_data, read_array, read_sides
from bezierdistill.demo import DemoConfig, demo
from bezierdistill.files import write_array, write_json
from bezierdistill.interop import export_diffusers, import_diffusers
from bezierdistill.metrics import Evaluator, load_extractor
from bezierdistill.models import Model, load_model
from bezierdistill.networks.foreign import ScheduleKind
from bezierdistill.pipeline import distill, simulate, train
from bezierdistill.progress import progress
from bezierdistill.recipe import RecipeConfig, run_recipe
from bezierdistill.reflow import ReflowConfig, reflow
from bezierdistill.reporting import print_arena, print_rows, write_report
from bezierdistill.reporting.plots import save_grid
from bezierdistill.settings import MODE, check_file, register_loader
from bezierdistill.sharing import export_curves, import_curves
from bezierdistill.store import CurveStore, Kept, merge
from bezierdistill.training.config import DistillConfig, SimulateConfig, Solver, TrainConfig
from bezierdistill.training.ranks import open_fabric
from bezierdistill.translation import TranslateConfig, translate_files

MISTAKES = (ValueError, TypeError, OSError, OverflowError, EOFError, zipfile.BadZipFile, zlib.error, SafetensorError)
NO_MEMORY = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")


STORE_SUMMARY = "Look at curve stores, check, merge, export and import them."


# How fields of the actions on stores are spelt: the first has no flag of its own, others have no default.
FIRST, NEEDED = {"positional": True}, {"required": True}


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Draw samples from a model, in the data's own units.

    Args:
        model: folder of a student or teacher.
        out: the .npz to write; its array is x.
        passes: network passes a sample.
        count: number of samples.
        seed: seed of the noise; sample i depends on the seed and i alone.
        solver: euler jumps from knot to knot; midpoint, heun and rk4 integrate a teacher's velocity with the given passes.
        labels: class labels separated by commas, repeated in turn; without them they are as frequent as in the training data.
        conditions: a .npy of condition vectors, one a sample, for a model that takes these.
        guidance: strength of guidance: of a student that was distilled for a range, or of a conditional teacher.
        accelerator: device kind for Lightning Fabric: auto, cpu, cuda, mps.
        grid: a PNG of the first samples to write as well.
    """

    model: Path
    out: Path
    passes: int = 1
    count: int = 64
    seed: int = 0
    solver: Solver = "euler"
    labels: str | None = None
    conditions: Path | None = None
    guidance: float | None = None
    accelerator: str = "auto"
    grid: Path | None = None

    def numbers(self) -> list[int] | None:
        """The labels as numbers.

        Raises:
            ValueError: if they are none.
        """
        try:
            return None if self.labels is None else [int(part) for part in self.labels.split(",")]
        except ValueError:
            raise ValueError(f"labels are {self.labels!r}, expected whole numbers separated by commas, such as 0,1,2") from None


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Compare samples with held-out real data: every metric, its floor (real against real), their ratio.

    Args:
        samples: a .npz or .npy of samples in the data's own units; if it has labels, --extractor classifier judges every class.
        data: built-in name or path.
        seed: which real samples are drawn.
        extractor: features to compare by: random, classifier (of the data's own classes, trained once), squeezenet:PATH of its weights,
            or a Python file whose function extractor(data) returns a module of your own.
        json: a file for the result; without it the result is printed as JSON alone.
    """

    samples: Path
    data: str
    seed: int = 0
    extractor: str = "random"
    json: Path | None = None


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Write report.html: pictures, tables and settings of a run in one self-contained page.

    Args:
        run: folder of a demo, model, curve store or reflow.
    """

    run: Path


@dataclasses.dataclass(frozen=True)
class ImportConfig:
    """Make a teacher of a pretrained network of diffusers; what it predicts and its schedule are named, never guessed.

    Args:
        source: a local folder: a pipeline with unet/ or transformer/, or the network alone; only safetensors are read.
        out: folder of the new model.
        prediction: velocity (data minus noise), flow (noise minus data), epsilon (noise), sample (data), v_prediction.
        schedule: linear-up (time 0 is noise), linear-down (time 0 is data), sigma, or steps (those of the pipeline's scheduler).
        scale: linear: what its time is multiplied by before it is told, such as 1000; 1 without it.
        low: linear: least time of ours that it was trained on; 0 without it.
        high: linear: greatest time of ours; 1 without it.
        least: sigma: smallest sigma that it was trained on; 0.002 without it.
        most: sigma: greatest sigma; 80 without it.
    """

    source: Path
    out: Path
    prediction: Prediction
    schedule: ScheduleKind
    scale: float | None = None
    low: float | None = None
    high: float | None = None
    least: float | None = None
    most: float | None = None


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Write a student as a pipeline of diffusers, with a model card.

    Args:
        model: folder of a student or teacher of images.
        out: the new folder.
        to: the library.
    """

    model: Path
    out: Path
    to: Literal["diffusers"] = "diffusers"


@dataclasses.dataclass(frozen=True)
class StoreInfoConfig:
    """Say what a curve store holds: rows, bytes, what made it.

    Args:
        store: its folder.
        json: print JSON.
    """

    store: Path = dataclasses.field(metadata=FIRST)
    json: bool = False


@dataclasses.dataclass(frozen=True)
class StoreVerifyConfig:
    """Compare every shard of a curve store with its checksum.

    Args:
        store: its folder.
    """

    store: Path = dataclasses.field(metadata=FIRST)


@dataclasses.dataclass(frozen=True)
class StoreMergeConfig:
    """Make one store of several that differ in their seed.

    Args:
        stores: their folders.
        out: folder of the new store; files are linked where the system can.
    """

    stores: tuple[Path, ...] = dataclasses.field(metadata=FIRST)
    out: Path = dataclasses.field(metadata=NEEDED)


@dataclasses.dataclass(frozen=True)
class StoreExportConfig:
    """Write the curves of a store in another format.

    Args:
        store: its folder.
        out: the new .npz (arrays points and cond), or the new folder of .tar archives.
        to: npz or webdataset.
    """

    store: Path = dataclasses.field(metadata=FIRST)
    out: Path = dataclasses.field(metadata=NEEDED)
    to: Literal["npz", "webdataset"] = "npz"


@dataclasses.dataclass(frozen=True)
class StoreImportConfig:
    """Make a store of other people's pairs or curves.

    Args:
        source: a folder with z0.npy and z1.npy (and cond.npy), a WebDataset .tar, or a folder of them.
        teacher: the model whose samples they are; a student takes its network, units and weights.
        out: folder of the new store.
        passes: network passes that a row has cost its makers, for the account.
        units: whether points are in the teacher's units (model) or in those of its data (data).
        points: how control points are kept: float32, bfloat16, or uint8.
    """

    source: Path = dataclasses.field(metadata=FIRST)
    teacher: Path = dataclasses.field(metadata=NEEDED)
    out: Path = dataclasses.field(metadata=NEEDED)
    passes: int = 0
    units: Literal["model", "data"] = "model"
    points: Kept = "float32"


def _train(config: TrainConfig) -> None:
    model = train(config)
    print(f"{config.out}: teacher for {config.data}, {model.spent:,} network passes spent")


def _simulate(config: SimulateConfig) -> None:
    store = simulate(config)
    print(f"{config.out}: {len(store):,} curves of degree {config.degree}, {store.manifest['passes']:,} network passes spent")


def _distill(config: DistillConfig) -> None:
    model = distill(config)
    knots = "; ".join(f"{k}: {', '.join(f'{t:g}' for t in times)}" for k, times in model.knots.items())
    print(f"{config.out}: student with knots {knots or 'evenly spaced'}, {model.spent:,} network passes spent in all")


def _recipe(config: RecipeConfig) -> None:
    model = run_recipe(config)
    print(f"{config.out / 'student'}: student of one and two passes, {model.spent:,} network passes spent in all")


def _reflow(config: ReflowConfig) -> None:
    for row in reflow(config):
        figures = ("straightness", "drift", "reconstruction_real", "reconstruction_generated")
        print(f"round {row['round']}: {', '.join(f'{name} {row[name]:.4g}' for name in figures)}")
        print_rows([{"method": name, **metrics} for name, metrics in {**row["samplers"], **row.get("ours", {})}.items()])
    if config.report:
        print(write_report(config.out))


def _arena(config: ArenaConfig) -> None:
    rows = arena(config)
    failed = [f"{row['method']} (seed {row['seed']})" for row in rows if "error" in row]
    print_arena(rows)
    if failed:
        print(f"failed: {', '.join(failed)}; the reason stands in arena.json, remove the cell's file to try again", file=sys.stderr)
    print(write_report(config.out))


def _load(folder: Path, accelerator: str) -> Model:
    """A model on a device; Fabric, which takes seconds to import, is only asked where there is a choice."""
    model = load_model(folder)
    if accelerator != "cpu" and (accelerator != "auto" or torch.cuda.is_available() or torch.backends.mps.is_available()):
        model.net.to(open_fabric(accelerator).device)
    return model


def _sample(config: SampleConfig) -> None:
    model, labels = _load(config.model, config.accelerator), config.numbers()
    vectors = None if config.conditions is None else read_array(config.conditions)
    x = model.sample(config.count, config.passes, config.seed, config.solver, labels=labels, conditions=vectors, guidance=config.guidance)
    more = {}
    if model.frequencies is not None and vectors is None:  # as the samples had them: row by row from the seed
        given = model.condition(range(config.count), config.seed, labels)
        more = {} if given is None else {"labels": given[:, : len(model.frequencies)].argmax(1).numpy()}
    write_array(config.out, x, **more)
    if config.grid is not None:
        save_grid(config.grid, model.scaling.encode(x[:64]))
    print(f"{config.out}: {config.count} samples of shape {x.shape[1:]}, {config.passes} passes each")


def _evaluate(config: EvaluateConfig) -> None:
    data = load_data(config.data)
    side = read_sides(config.samples)[0]
    if side.x.shape[1:] != data.scaling.decode(data.real(1, 0, "test")).shape[1:]:
        raise ValueError(
            f"{config.samples} holds samples of shape {side.x.shape[1:]}, {config.data} of another: expected samples of that data"
        )
    evaluate = Evaluator(data, config.seed, None if config.extractor == "random" else load_extractor(config.extractor, data))
    x = data.scaling.encode(side.x)
    labels = side.given if config.extractor == "classifier" and side.given is not None and side.given.ndim == 1 else None
    classes = {} if labels is None else {"classes": evaluate.classes(x, labels)}
    result = {**evaluate(x), **classes}
    if config.json is None:
        print(json.dumps(result, indent=2))
        return
    write_json(config.json, result)
    print_rows([{"method": str(config.samples), **result}])


def _translate(config: TranslateConfig) -> None:
    y = translate_files(_load(config.model, config.accelerator), config)
    print(f"{config.out}: {len(y)} translations of shape {y.shape[1:]}, {config.passes} passes each")


def _import(config: ImportConfig) -> None:
    numbers = {name: getattr(config, name) for name in ("scale", "low", "high", "least", "most") if getattr(config, name) is not None}
    model = import_diffusers(config.source, config.out, config.prediction, config.schedule, **numbers)
    print(f"{config.out}: teacher of images {model.shape}, {model.conditions} classes, from {config.source}")


def _export(config: ExportConfig) -> None:
    print(f"{export_diffusers(load_model(config.model), config.out)}: pipeline of {config.to}; its README.md says how to load it")


def _report(config: ReportConfig) -> None:
    print(write_report(config.run))


def _store_info(config: StoreInfoConfig) -> None:
    store = CurveStore.open(config.store)
    recipe, size = store.recipe, sum(shard.bytes for shard in store.shards)
    facts = {
        "rows": len(store),
        "left out (NaN)": store.skipped,
        "degree": recipe["degree"],
        "shape": recipe["shape"],
        "conditions": store.condition_size,
        "points": recipe.get("points", "float32"),
        "noise": recipe.get("noise", "stored"),
        "greatest error": store.error,
        "shards": len(store.shards),
        "bytes": size,
        "bytes a curve": round(size / len(store), 1),
        "passes": store.manifest["passes"],
        "guides": recipe.get("guides"),
        "weights": recipe.get("weights"),
        "teachers": [teacher["path"] for teacher in recipe.get("teachers", [])],
        "seeds": sorted({shard.seed for shard in store.shards if shard.seed is not None}),
    }
    if config.json:
        print(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        print(f"{name:>15}  {f'{value:,}' if isinstance(value, int) else value}")


def _store_verify(config: StoreVerifyConfig) -> None:
    store = CurveStore.open(config.store)
    with progress("verify", len(store.shards)) as advance:
        problems = list(store.verify(advance=advance))
    for problem in problems:
        print(problem)
    if problems:
        raise ValueError(f"{len(problems)} of {len(store.shards)} shards are damaged: the simulate that made them mends them with --repair")
    print(f"{config.store}: {len(store.shards)} shards are whole, {len(store):,} curves")


def _store_merge(config: StoreMergeConfig) -> None:
    print(f"{config.out}: {len(merge(config.stores, config.out)):,} curves of {len(config.stores)} stores")


def _store_export(config: StoreExportConfig) -> None:
    for file in export_curves(CurveStore.open(config.store), config.out, config.to):
        print(file)


def _store_import(config: StoreImportConfig) -> None:
    store = import_curves(config.source, config.teacher, config.out, config.passes, config.units, config.points)
    print(f"{config.out}: {len(store):,} curves of degree {store.recipe['degree']} from {config.source}")


def _demo(config: DemoConfig) -> None:
    print_arena(demo(config))
    print(write_report(config.out))


Verb = tuple[type, Callable[[Any], None]]
STORE: dict[str, Verb] = {
    "info": (StoreInfoConfig, _store_info),
    "verify": (StoreVerifyConfig, _store_verify),
    "merge": (StoreMergeConfig, _store_merge),
    "export": (StoreExportConfig, _store_export),
    "import": (StoreImportConfig, _store_import),
}
VERBS: dict[str, Verb] = {
    "demo": (DemoConfig, _demo),
    "recipe": (RecipeConfig, _recipe),
    "train": (TrainConfig, _train),
    "simulate": (SimulateConfig, _simulate),
    "distill": (DistillConfig, _distill),
    "reflow": (ReflowConfig, _reflow),
    "arena": (ArenaConfig, _arena),
    "sample": (SampleConfig, _sample),
    "translate": (TranslateConfig, _translate),
    "evaluate": (EvaluateConfig, _evaluate),
    "import": (ImportConfig, _import),
    "export": (ExportConfig, _export),
    "report": (ReportConfig, _report),
}


def build_parser() -> ArgumentParser:
    """The parser of all verbs; every flag comes from a dataclass."""
    register_loader()
    parser = ArgumentParser(
        prog="bezierdistill",
        description="Distil flow models along Bezier curves into one or two network passes. Flags take dashes or underscores.",
        version=__version__,
        exit_on_error=False,
        parser_mode=MODE,
    )
    verbs = parser.add_subcommands(required=True, dest="verb")
    for name, (config, _) in VERBS.items():
        verbs.add_subcommand(name, _verb_parser(config), help=_summary(config))
    group = ArgumentParser(description=STORE_SUMMARY, exit_on_error=False, parser_mode=MODE)
    verbs.add_subcommand("store", group, help=STORE_SUMMARY)
    actions = group.add_subcommands(required=True, dest="action")
    for name, (config, _) in STORE.items():
        actions.add_subcommand(name, _verb_parser(config), help=_summary(config))
    return parser


def _summary(config: type) -> str:
    return (config.__doc__ or "").strip().splitlines()[0]


def _verb_parser(config: type) -> ArgumentParser:
    """The flags of a settings class; some fields are spelt otherwise than the parser would: ``STORE``, ``--teachers A B``, ``--report``."""
    parser = ArgumentParser(description=_summary(config), exit_on_error=False, parser_mode=MODE)
    parser.add_argument("--config", action="config", help="YAML file of settings; flags given after it win")
    texts = {param.arg_name: param.description or "" for param in parse_docstring(config.__doc__ or "").params}
    plain: dict[str, dict[str, Any]] = {}
    for field in dataclasses.fields(config):
        many, place = field.type == "tuple[Path, ...]", "positional" in field.metadata
        if field.type == "bool":
            plain[field.name] = {"action": "store_true"}
        elif many or field.metadata:
            plain[field.name] = {"type": Path} | ({"nargs": "+"} if many else {}) | ({} if place else {"required": True})
    parser.add_class_arguments(config, skip=set(plain))
    places = {field.name for field in dataclasses.fields(config) if "positional" in field.metadata}
    for name, settings in plain.items():
        parser.add_argument(name if name in places else f"--{name}", help=texts[name], **settings)
    return parser


def _chosen(parser: ArgumentParser, parsed: Namespace) -> tuple[str, type, Callable[[Any], None], Namespace]:
    """The verb that was asked for as it is spelt, its settings class, its function, and the values of its fields."""
    fields = parser.instantiate_classes(parsed)[parsed.verb]
    if parsed.verb != "store":
        return parsed.verb, *VERBS[parsed.verb], fields
    return f"store {fields.action}", *STORE[fields.action], fields[fields.action]


def _underscored(argument: str) -> str:
    """``--keep-samples`` as the parser knows it; what follows an equals sign stays as it is."""
    flag, equals, value = argument.partition("=")
    return f"--{flag[2:].replace('-', '_')}{equals}{value}" if flag.startswith("--") else argument


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = [_underscored(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    command = "bezierdistill"
    try:
        parser = build_parser()
        parsed = _parse(parser, given)
        verb, config_class, run, fields = _chosen(parser, parsed)
        command = f"bezierdistill {verb}"
        run(config_class(**{key: value for key, value in vars(fields).items() if key not in ("config", "__path__")}))
    except Exception as error:
        message = explain(error)
        if message is None or os.environ.get("BEZIERDISTILL_DEBUG"):
            raise
        print(f"{command}: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{command}: interrupted; what was saved is kept, the same command continues", file=sys.stderr)
        return 130
    return 0


def _parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """What the arguments say.

    Raises:
        ArgumentError: if they say nothing that is known.
    """
    hint = "(bezierdistill VERB --help lists every option)"
    try:
        check_file(arguments)
        return parser.parse_args(list(arguments))
    except (ArgumentError, ValueError, TypeError, LookupError, AttributeError, RecursionError, OSError) as error:
        raise ValueError(f"{error} {hint}") from None


def explain(error: Exception) -> str | None:
    """One line for a mistake of the user's, or of what the user's files hold; None for what is a mistake of ours."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in text for words in NO_MEMORY):
        return f"not enough memory ({text[:200] or 'no more could be had'}): ask for fewer, or smaller batches"
    if isinstance(error, RecursionError):
        return f"something is nested too deeply ({text}): expected a file of ours"
    return (text or type(error).__name__) if isinstance(error, MISTAKES) else None


if __name__ == "__main__":
    sys.exit(main())
