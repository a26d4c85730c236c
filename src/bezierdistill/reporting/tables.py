"""Results as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import mean

from rich.console import Console
from rich.table import Table

from bezierdistill.records import ArenaRow, Scores
from bezierdistill.reporting.export import MARK, NOTE, is_marked, lines
from bezierdistill.reporting.summary import LEARNT, Entry, learnt, summarise, with_error

METRICS = {
    "frechet": "Frechet",
    "kernel": "kernel",
    "coarse": "coarse",
    "middle": "middle",
    "fine": "fine",
    "sliced_wasserstein": "sliced W2",
    "energy": "energy",
    "mmd": "MMD",
}
SHARES = ("precision", "recall")
RANKED = ("middle", "fine", "sliced_wasserstein", "energy")
ARENA_HEADINGS = (
    *("passes", "rank", "method", "excess", *(METRICS[name] for name in RANKED)),
    *(*SHARES, "fidelity", "passes spent", "seconds", "MB"),
)
NONE = "\N{EN DASH}"  # of rows of before a figure was measured, and of ranks of noise
UNRANKED = f"{NONE} no rank: nothing has learnt yet at so many passes (excess above {LEARNT:g})"
METHOD, RANK = ARENA_HEADINGS.index("method"), ARENA_HEADINGS.index("rank")
SEEDS = ", mean ± standard error over seeds"


def print_rows(rows: Mapping[str, Scores]) -> None:
    """Print scores by whose they are; distances stand with their ratio to the floor (real against
    real), and so does fidelity. The Frechet distance has the name of its features, if they were
    chosen; else it is the coarse one.
    """
    first = next(iter(rows.values()))
    names = {name: heading for name, heading in METRICS.items() if getattr(first, name) is not None}
    if first.kernel is None:
        names.pop("coarse", None)
    elif first.protocol is not None:
        names["frechet"] = first.protocol.metric
    caption = (
        "in brackets: distance over its floor, real against real; 1.00x is as good as real data"
    )
    table = _table(["samples of", *names.values(), *SHARES, "fidelity"], 0, caption)
    for who, scores in rows.items():
        distances = [f"{scores[name].value:.4g} ({scores[name].ratio:.2f}x)" for name in names]
        shares = [f"{scores[name].value:.3f}" for name in SHARES]
        near = NONE if scores.fidelity is None else f"{scores.fidelity.ratio:.2f}x"
        table.add_row(who, *distances, *shares, near)
    _print(table)


def protocol_lines(scores: Scores) -> list[str]:
    """What figures depend on, and what they say of classes and of a translation, for people."""
    by, classes, lines = scores.protocol, scores.classes, []
    if by is not None:
        digest = f" ({by.digest[:8]})" if by.digest else ""
        learned = f", trained on the {by.trained} split" if by.trained else ""
        whole = ", all that there are, whatever the seed" if by.reference == "whole" else ""
        draws = f", a mean of {by.draws} draws" if by.draws > 1 else ""
        rounded = ", rounded to whole numbers" if by.quantised else ""
        lines.append(
            f"features: {by.extractor}{digest}{learned}; {by.samples:,} samples against"
            f" {by.count:,} real ones of the {by.split} split{whole}, floor from the {by.floor}"
            f" split{draws}; seed {by.seed}{rounded}"
        )
        if by.widths:
            widths = " and ".join(f"{width:.3g}" for width in by.widths)
            lines.append(f"middle, fine: kernels of width {widths} ({by.scales[:8]})")
    if (text := scores.text) is not None:
        lines.append(
            f"texts: {text.valid:.3f} are in the data ({text.train:.3f} in the training split,"
            f" {text.held_out:.3f} held out), {text.distinct:.3f} distinct,"
            f" {text.found:.3f} both"
            + ("" if text.words is None else f"; {text.words:.3f} of their words are in the data")
        )
        likely = ((text.trigrams, "trigram divergence"), (text.perplexity, "perplexity"))
        parts = [*likely, (text.entropy, "trigram entropy")]
        told = [f"{what} {score.value:.4g} (real {score.floor:.4g})" for score, what in parts]
        lines.append(", ".join(told))
    if classes is not None:
        covered = f"coverage {classes.coverage:.3f} (real {classes.coverage_real:.3f})"
        right = "" if classes.accuracy is None else f"accuracy {classes.accuracy:.3f}"
        right += "" if classes.accuracy_real is None else f" (real {classes.accuracy_real:.3f}), "
        lines.append(f"classes: {right}{covered}")
    if (kept := scores.translation) is not None:
        figures = {"pixel": kept.pixel, "feature": kept.feature, "cycle": kept.cycle}
        told = [f"{name} {value:.3f}" for name, value in figures.items() if value is not None]
        share = "" if kept.agreement is None else f"; label agreement {kept.agreement:.3f}"
        lines.append(f"distance from inputs, 0 is a copy and 1 is chance: {', '.join(told)}{share}")
    return lines


def arena_lines(rows: Sequence[ArenaRow]) -> list[tuple[Entry, list[str]]]:
    """An entry per method and number of passes, and its line of text.

    The excess is that of the Frechet distance over its floor, with standard error and rank; those
    at the finer scales, sliced W2 and energy distance likewise. Precision, recall and fidelity
    (over its floor) are means over seeds. Where nothing has learnt yet there are no ranks.
    """
    entries = summarise(rows)
    ranked_passes = learnt(entries)
    others = [
        {(entry.passes, entry.method): entry for entry in summarise(rows, metric)}
        for metric in RANKED
    ]
    lines = []
    for entry in entries:
        key, ranks = (entry.passes, entry.method), entry.passes in ranked_passes
        own = [row.judged for row in rows if (row.passes, row.method) == key and not row.error]
        ranked = [_ranked(other[key], ranks) if key in other else NONE for other in others]
        shares = [f"{mean(scores[name].value for scores in own):.3f}" for name in SHARES]
        near = [scores.fidelity.ratio for scores in own if scores.fidelity is not None]
        shares.append(f"{mean(near):.2f}x" if near else NONE)
        costs = [f"{entry.spent:,.0f}", f"{entry.seconds:.0f}", f"{entry.memory:.0f}"]
        rank = str(entry.rank) if ranks else NONE
        head = [str(entry.passes), rank, entry.method, with_error(entry)]
        lines.append((entry, [*head, *ranked, *shares, *costs]))
    return [(entry, _marked(line, entry.trained_on)) for entry, line in lines]


def _marked(line: Sequence[str], trained_on: Sequence[str]) -> list[str]:
    """A line with a mark on each figure that the method trains on."""
    names = {heading: name for name, heading in METRICS.items()} | {"excess": "frechet"}
    figures = [names.get(heading, heading) for heading in ARENA_HEADINGS]
    pairs = zip(figures, line, strict=True)
    return [f"{cell} {MARK}" if is_marked(name, trained_on) else cell for name, cell in pairs]


def _ranked(entry: Entry, ranks: bool) -> str:
    return f"{with_error(entry)} ({entry.rank})" if ranks else with_error(entry)


def print_arena(rows: Sequence[ArenaRow]) -> None:
    """Print the table of an arena: means over seeds with standard errors, ranked among methods of
    equal passes.
    """
    pairs = arena_lines(rows)
    several = any(entry.seeds > 1 for entry, _ in pairs)
    caption = (
        f"excess: Frechet distance / floor - 1{SEEDS if several else ''}; 0 is as good as"
        " real data; (rank); fidelity: distance to the nearest real sample over that of real data"
    )
    table = _table(ARENA_HEADINGS, METHOD, caption)
    for _, group in groupby(pairs, lambda pair: pair[0].passes):
        for entry, line in group:
            table.add_row(*line, style="bold" if entry.ours else None)
        table.add_section()
    if any(row.trained_on for row in rows):
        table.caption = f"{table.caption}; {MARK} {NOTE}"
    if any(line[RANK] == NONE for _, line in pairs):
        table.caption = f"{table.caption}; {UNRANKED}"
    _print(table)
    if names := dict.fromkeys(name for row in rows for name in row.metrics):
        _print(_own_table(rows, [*names]))


def _own_table(rows: Sequence[ArenaRow], names: Sequence[str]) -> Table:
    """Metrics of one's own, which the other table has no room for."""
    table = _table(["passes", "method", *names], 1, "excess over real data's, mean over seeds")
    for entry, means in lines(rows):
        told = [f"{means[name].mean:.2f}" if name in means else NONE for name in names]
        table.add_row(str(entry.passes), entry.method, *told, style="bold" if entry.ours else None)
    return table


def _table(headings: Sequence[str], left: int, caption: str) -> Table:
    table = Table(caption=caption)
    for k, heading in enumerate(headings):
        table.add_column(heading, justify="left" if k == left else "right")
    return table


def _print(table: Table) -> None:
    Console(width=None if Console().is_terminal else 200).print(table)
