"""Words, and 64 characters of prose, in one and two passes: our students beside the flow itself,
rectified-flow distillation, consistency training and masked diffusion, in one budget.

Ours is there twice: ``bezier`` with the defaults of all data, ``bezier_for_texts`` with the shares
and the alignment of ``recipes/text.yaml``, which were chosen on seed 100 (docs/log.md).

    python benchmarks/text.py --out runs/text [--words /usr/share/dict/american-english]
    [--letters 5 10] [--prose FILE] [--seeds 3] [--budget 2000000] [--jobs 2]

Words are those of a list (Debian's wamerican) of up to five and of up to ten letters from a to z;
an eighth and a quarter are held out. Prose is any text (the King James Bible, which the programs of
Debian's bible-kjv print by ``bible -f gen1:1-rev22:21``), of which letters are made small and the
rest are blanks. Finished cells are not run again; every call ends with ``OUT/results.md``.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from bezierdistill.arena.bench import Bench, Sampler
from bezierdistill.arena.methods import bezier
from bezierdistill.arena.runner import ArenaConfig, arena
from bezierdistill.files import write_text
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.records import ArenaRow, TextScores
from bezierdistill.reporting.summary import gather, standard_error
from bezierdistill.run import machine
from bezierdistill.training.settings import LoopConfig

RECIPE = Path(__file__).parents[1] / "recipes/text.yaml"
WORDS, LETTERS = Path("/usr/share/dict/american-english"), (5, 10)
MASKED = f"{Path(__file__).with_name('masked_diffusion.py')}:masked_diffusion"
OURS, FLOW = ("bezier_for_texts", 1), ("teacher-20", 20)
METHODS = (f"{__file__}:{OURS[0]}", "bezier", "teacher-20", "teacher-euler", "rfd-1", "rfd-2")
METHODS = (*METHODS, "consistency-training", "consistency-tuning", MASKED)
NETWORKS = {"words": NetworkConfig("mlp", 256, 4), "prose": NetworkConfig("mlp", 512, 4)}
RATE = 2e-3
COLUMNS: dict[str, dict[str, Callable[[TextScores], float]]] = {
    "words": {
        "valid %": lambda own: 100 * own.valid,
        "different valid %": lambda own: 100 * own.found,
        "training words %": lambda own: 100 * own.train,
        "held-out words %": lambda own: 100 * own.held_out,
        "distinct %": lambda own: 100 * own.distinct,
        "trigram divergence": lambda own: own.trigrams.value,
    },
    "prose": {
        "words in the data %": lambda own: 100 * (own.words or 0),
        "perplexity": lambda own: own.perplexity.value,
        "trigram entropy": lambda own: own.entropy.value,
        "trigram divergence": lambda own: own.trigrams.value,
        "distinct %": lambda own: 100 * own.distinct,
    },
}


def bezier_for_texts(bench: Bench) -> Mapping[int, Sampler]:
    """Ours with the settings of the recipe of texts."""
    recipe = yaml.safe_load(RECIPE.read_text())
    return bezier(bench, distill=recipe["distill"], shares=recipe["shares"])


@dataclass(frozen=True)
class Results:
    """The figures of a task."""

    kind: str
    rows: list[ArenaRow]

    def __call__(self, method: tuple[str, int], column: str) -> list[float]:
        """A figure, by seed, of a method at a number of passes."""
        found = [row for row in self.rows if (row.method, row.passes) == method and row.scores]
        read = COLUMNS[self.kind][column]
        return [read(row.judged.text) for row in found if row.judged.text is not None]

    def table(self) -> list[str]:
        """All figures, means over seeds and their standard errors."""
        columns = COLUMNS[self.kind]
        lines = [
            f"| method | passes | {' | '.join(columns)} |",
            f"|---{'|---' * len(columns)}|---|",
        ]
        known = {(row.method, row.passes) for row in self.rows if row.scores}
        for method in sorted(known, key=lambda key: (key[1], key[0] != OURS[0], key[0])):
            cells = [_mean(self(method, column)) for column in columns]
            lines.append(f"| {method[0]} | {method[1]} | {' | '.join(cells)} |")
        real = next(row.judged.text for row in self.rows if row.scores)
        if real is not None:
            likely = (real.trigrams, real.perplexity, real.entropy)
            told = "trigram divergence {:.3f}, perplexity {:.2f}, trigram entropy {:.2f}"
            lines += [
                "",
                "As many training texts: " + told.format(*(s.floor for s in likely)) + ".",
            ]
        return lines

    def claims(self) -> list[str]:
        """What was to be shown, and whether it is."""
        if self.kind != "words" or not self(OURS, "valid %") or not self(FLOW, "valid %"):
            return []
        told = []
        for what in ("valid %", "different valid %"):  # the first alone is won by repetition
            one, flow = (statistics.mean(self(who, what)) for who in (OURS, FLOW))
            rivals = [self((name, 1), what) for name in ("rfd-1", "rfd-2")]
            rival = max(statistics.mean(own) for own in rivals if own)
            told += [
                (one >= flow - 3, f"{what} at one pass {one:.1f}, the flow at 20 {flow:.1f}"),
                (
                    one >= 1.5 * rival,
                    f"{what} {one / rival:.2f} times rectified-flow distillation's {rival:.1f}",
                ),
            ]
        known = [statistics.mean(self(who, "training words %")) for who in (OURS, FLOW)]
        held = statistics.mean(self(OURS, "held-out words %"))
        told += [
            (held > 0, f"held-out words are {held:.2f} % of samples"),
            (
                known[0] <= known[1] + 5,
                "training words {:.1f} %, the flow's {:.1f} %".format(*known),
            ),
        ]
        return [f"- {'holds' if right else 'DOES NOT HOLD'}: {what}" for right, what in told]


def _mean(values: list[float]) -> str:
    error = f" ± {standard_error(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{error}"


def prepare_words(source: Path, letters: int, out: Path) -> str:
    """Words of up to so many letters from a to z, a line each, as the name of data."""
    words = source.read_text().split()
    kept = sorted({word for word in words if re.fullmatch(f"[a-z]{{1,{letters}}}", word)})
    write_text(out, "".join(f"{word}\n" for word in kept))
    return f"words:{out}"


def prepare_prose(source: Path, out: Path) -> str:
    """A text in small letters and blanks, without the verses' numbers, as the name of data."""
    text = re.sub(r"^\w+:\d+ ", "", source.read_text(), flags=re.MULTILINE)
    text = re.sub("[^a-z]+", " ", text.lower())
    write_text(out, text.strip() + "\n")
    return f"text:{out}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--words", type=Path, default=WORDS)
    parser.add_argument("--letters", type=int, nargs="*", default=LETTERS)
    parser.add_argument("--prose", type=Path)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--budget", type=int, default=2_000_000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    tasks = {
        f"words-{n}": prepare_words(given.words, n, given.out / f"words-{n}.txt")
        for n in given.letters
    }
    if given.prose is not None:
        tasks["prose"] = prepare_prose(given.prose, given.out / "prose.txt")
    lines = []
    for task, data in tasks.items():
        kind = task.partition("-")[0]
        network = NETWORKS[kind]
        arena(
            ArenaConfig(
                data,
                given.out / task,
                tuple(given.methods),
                budget=given.budget,
                seeds=given.seeds,
                first_seed=given.first_seed,
                jobs=given.jobs,
                samples=given.samples,
                keep_samples=True,
                network=network,
                loop=LoopConfig(lr=RATE, accelerator="cpu"),
            )
        )
        results = Results(kind, gather(given.out / task))
        lines += [f"### {task}", ""]
        lines += [f"{given.budget:,} passes, {network.kind} {network.width} x {network.depth}."]
        lines += ["", *results.table(), "", *results.claims(), ""]
    lines.append(f"{machine().processor}")
    write_text(given.out / "results.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
