"""Translation between two image domains, distilled to one and two passes, against the undistilled
flow at 50 passes and SDEdit.

    python benchmarks/translation.py --pair mnist-usps --out runs/translation [--shared
    ../shared/data] [--budget 4000000] [--seed 0]

Trains and distils both directions of the direct flow (optimal-transport coupling; where both sides
have the same labels, within each label as well) and the path through shared noise, each by the
recipe, and ends with ``OUT/PAIR/results.md``, ``results.json`` and ``rows.png``. Stages that are
finished are not run again. ``bezierdistill evaluate --inputs`` gives the same figures of
``inputs.npz``, ``direct-1-pass.npz`` and its like.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bezierdistill.data import load_data
from bezierdistill.files import write_array, write_json
from bezierdistill.metrics import (
    Evaluator,
    SqueezeNetFeatures,
    classifier_features,
    relative_distance,
    translation_scores,
)
from bezierdistill.metrics.features import describe
from bezierdistill.models import Model, load_model
from bezierdistill.models.folder import CARD
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.noise import Stream, generator
from bezierdistill.records import to_json
from bezierdistill.reporting.plots import save_rows
from bezierdistill.run import machine
from bezierdistill.sdedit import sdedit
from bezierdistill.solvers import solve, time_grid
from bezierdistill.stages.recipe import RecipeConfig, Shares, run_recipe
from bezierdistill.stages.train import FlowSettings, TrainConfig, train
from bezierdistill.training.settings import LoopConfig

Translate = Callable[[Tensor], Tensor]
KEEPS = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8)
FLOW_STEPS = 25  # of Heun, 50 passes
BATCH = 256


@dataclass(frozen=True)
class Pair:
    """Two domains, the data whose classifier judges them (by the target's labels), whether row i of
    both is the same thing, and whether both have the same labels.
    """

    a: str
    b: str
    judge: str | None = None
    paired: bool = False
    labelled: bool = False
    network: NetworkConfig = field(default_factory=lambda: NetworkConfig("mlp", 512, 5))


PAIRS = {
    "mnist-usps": Pair(
        "{shared}/mnist.npz@crop20x20@16x16",
        "{shared}/usps.npz",
        "{shared}/usps.npz",
        labelled=True,
    ),
    "sandal-boot": Pair(
        "{shared}/fashion_mnist.npz@class5",
        "{shared}/fashion_mnist.npz@class9",
        "{shared}/fashion_mnist.npz",
    ),
    "pullover-shirt": Pair(
        "{shared}/fashion_mnist.npz@class2",
        "{shared}/fashion_mnist.npz@class6",
        "{shared}/fashion_mnist.npz",
    ),
    "noto-fluentui": Pair(
        "{shared}/emoji4_32.npz@key=noto", "{shared}/emoji4_32.npz@key=fluentui", paired=True
    ),
    "lineart-colour": Pair(
        "{shared}/emojitwo_lineart_color_64.npz@key=lineart@rgb@32x32",
        "{shared}/emojitwo_lineart_color_64.npz@key=color@32x32",
        paired=True,
    ),
    "cat-dog": Pair(
        "{shared}/cifar10_jpeg.npz@class3",
        "{shared}/cifar10_jpeg.npz@class5",
        "{shared}/cifar10_jpeg.npz",
    ),
}


class Judge:
    """All measures of a translation of the held-out images of A against those of B."""

    def __init__(self, pair: Pair, shared: str, count: int) -> None:
        self.a, self.b = (load_data(name.format(shared=shared)) for name in (pair.a, pair.b))
        self.evaluate = Evaluator(self.b)
        size = min(count, *(data.count("test") or count for data in (self.a, self.b)))
        self.x = self.a.real(size, 0, "test")
        self.truth = self.b.real(size, 0, "test") if pair.paired else None
        given = self.a.conditions(size, 0, "test") if self.a.classes and self.b.classes else None
        self.labels = None if given is None else given.argmax(1)
        self.extractor: nn.Module = self._extractor(pair, shared)
        self.features = describe(self.extractor)
        self.protocol = self.evaluate(self.b.real(size, 1, "train")).protocol

    def _extractor(self, pair: Pair, shared: str) -> nn.Module:
        if pair.judge is not None:
            return classifier_features(load_data(pair.judge.format(shared=shared)))
        return SqueezeNetFeatures(Path(shared) / "squeezenet_imagenet.npz")

    @torch.no_grad()
    def __call__(self, y: Tensor, back: Tensor | None = None) -> dict[str, Any]:
        """Figures of outputs ``y`` as they would be saved, and of the way ``back`` to A if there is
        one.
        """
        y = self.b.scaling.encode(self.b.scaling.decode(y))
        if back is not None:
            back = self.a.scaling.encode(self.a.scaling.decode(back))
        scores = self.evaluate(y)
        kept = to_json(translation_scores(self.x, y, self.extractor, self.labels, back))
        row = {
            "excess": scores.frechet.excess,
            "precision": scores.precision.value,
            "recall": scores.recall.value,
            **{name: value for name, value in kept.items() if value is not None},
        }
        if self.truth is not None:
            row["truth pixel"] = relative_distance(self.truth, y)
            row["truth feature"] = relative_distance(self.extractor(self.truth), self.extractor(y))
        return row


def recipe(
    arguments: argparse.Namespace, pair: Pair, out: Path, data: str, **more: Any
) -> tuple[Model, Model]:
    """The student and its strong teacher."""
    config = RecipeConfig(
        data.format(shared=arguments.shared),
        out,
        budget=arguments.budget,
        seed=arguments.seed,
        batch=BATCH,
        network=pair.network,
        loop=LoopConfig(lr=1e-3, accelerator="cpu"),
        **more,
    )
    return run_recipe(config), load_model(out / "strong")


def flow(
    arguments: argparse.Namespace, pair: Pair, out: Path, data: str, share: float = 1.0, **more: Any
) -> Model:
    """A flow that gets a share of the budget."""
    if (out / CARD).exists():
        return load_model(out)
    steps = int(share * arguments.budget) // (3 * BATCH)
    name, loop = data.format(shared=arguments.shared), LoopConfig(lr=1e-3, accelerator="cpu")
    return train(
        TrainConfig(
            name, out, steps, BATCH, arguments.seed, network=pair.network, loop=loop, **more
        )
    )


def methods(
    arguments: argparse.Namespace, pair: Pair, out: Path
) -> dict[str, tuple[int, Translate, Translate | None]]:
    """Passes, the way from A to B, and the way back, of everything that is compared."""
    a, b = (name.format(shared=arguments.shared) for name in (pair.a, pair.b))
    coupled = FlowSettings(coupling="ot")
    whole = flow(arguments, pair, out / "flow", b, domain=a, coupling="ot")
    target = flow(arguments, pair, out / "noise-b", b)
    forth, teacher = recipe(arguments, pair, out / "direct", b, domain=a, train=coupled)
    back, _ = recipe(arguments, pair, out / "direct-back", a, domain=b, train=coupled)
    ours = {"ours, direct": (forth, back)}
    flows = {"flow, the whole budget": whole, "flow, our teacher": teacher}
    if pair.labelled:
        kept = FlowSettings(coupling="label-ot")
        labels, own = recipe(arguments, pair, out / "labels", b, domain=a, train=kept)
        returned, _ = recipe(arguments, pair, out / "labels-back", a, domain=b, train=kept)
        ours["ours, direct, within labels"] = labels, returned
        flows["flow, our teacher, within labels"] = own
    noise_a = flow(arguments, pair, out / "noise-a", a, 0.25)
    halves = (
        flow(arguments, pair, out / "half-a", a, 0.5),
        flow(arguments, pair, out / "half-b", b, 0.5),
    )
    through, noise_b = recipe(
        arguments,
        pair,
        out / "through",
        b,
        domain=a,
        through=noise_a.folder,
        shares=Shares(strong=0.3, weak=0.03),
    )

    def both(back: Model, forwards: Model) -> Translate:
        """Back to noise and forwards, 24 + 26 passes."""

        def translate(x: Tensor) -> Tensor:
            middle = solve(back.field, x, time_grid(12, 1.0, 0.0), "heun").state
            return solve(forwards.field, middle, time_grid(13), "heun").state

        return translate

    def edit(keep: float) -> Translate:
        def edited(x: Tensor) -> Tensor:
            draws = generator(arguments.seed, Stream.JUDGE)
            return sdedit(target.field, x, keep, FLOW_STEPS, draws).state

        return edited

    grid, reverse = time_grid(FLOW_STEPS), time_grid(FLOW_STEPS, 1.0, 0.0)
    found: dict[str, tuple[int, Translate, Translate | None]] = {
        "the input itself": (0, lambda x: x, None),
        **{
            name: (
                50,
                lambda x, model=model: solve(model.field, x, grid, "heun").state,
                lambda y, model=model: solve(model.field, y, reverse, "heun").state,
            )
            for name, model in flows.items()
        },
        "two flows through noise, half of the budget each": (50, both(*halves), None),
        "two flows through noise, our teachers": (50, both(noise_a, noise_b), None),
    }
    for passes in (1, 2):
        told = f"{passes} pass{'es' if passes > 1 else ''}"
        for name, (there, home) in ours.items():
            found[f"{name}, {told}"] = (
                passes,
                lambda x, k=passes, model=there: model.generate(x, k),
                lambda y, k=passes, model=home: model.generate(y, k),
            )
        found[f"ours, through noise, {told}"] = (
            passes,
            lambda x, k=passes: through.generate(x, k),
            None,
        )
    return found | {f"SDEdit, keeps {keep:g}": (50, edit(keep), None) for keep in KEEPS}


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """The figures as lines of Markdown."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = [f"| method | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = [
            (
                str(row[key])
                if isinstance(row.get(key), int)
                else f"{row[key]:.3f}"
                if key in row
                else ""
            )
            for key in columns
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Run a pair."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", choices=PAIRS, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/translation"))
    parser.add_argument("--shared", default="../shared/data")
    parser.add_argument("--budget", type=int, default=4_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=4000, help="most images judged")
    arguments = parser.parse_args()
    pair, out = PAIRS[arguments.pair], arguments.out / arguments.pair
    found, judge = methods(arguments, pair, out), Judge(pair, arguments.shared, arguments.count)
    rows, sheet = {}, {}
    given = {} if judge.labels is None else {"labels": judge.labels.numpy()}
    write_array(out / "inputs.npz", judge.a.scaling.decode(judge.x), **given)
    for name, (passes, forth, back) in found.items():
        with torch.no_grad():
            y = forth(judge.x)
            home = None if back is None else back(y)
            rows[name] = {"passes": passes, **judge(y, home)}
        if name.startswith("ours, direct") and home is not None:
            place = out / name.removeprefix("ours, ").replace(", ", "-").replace(" ", "-")
            write_array(place.with_suffix(".npz"), judge.b.scaling.decode(y))
            write_array(Path(f"{place}-back.npz"), judge.a.scaling.decode(home))
        sheet[name] = y
        print(name, json.dumps(rows[name]), flush=True)
    if judge.truth is not None:
        sheet["true counterpart"] = judge.truth
    write_json(
        out / "results.json",
        {
            "pair": arguments.pair,
            "budget": arguments.budget,
            "seed": arguments.seed,
            "machine": to_json(machine()),
            "features": judge.features,
            "protocol": to_json(judge.protocol),
            "rows": rows,
        },
    )
    head = (
        f"Budget {arguments.budget:,} network passes a flow or student (the way back of ours is a"
        f" student of its own), seed {arguments.seed}, {len(judge.x):,} held-out images; features:"
        f" {judge.features['extractor']} {judge.features['digest'][:12]}."
    )
    (out / "results.md").write_text(
        "\n".join([f"### {arguments.pair}", "", head, "", *table(rows)]) + "\n"
    )
    save_rows(out / "rows.png", sheet, 16)
    print((out / "results.md").read_text())


if __name__ == "__main__":
    main()
