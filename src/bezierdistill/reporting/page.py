"""One self-contained HTML page a run: what was run, its pictures and tables, and how to run it again. No external request."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from bezierdistill import __version__
from bezierdistill.arena.runner import gather
from bezierdistill.arena.summary import summarise
from bezierdistill.data import load_data, read_array
from bezierdistill.files import check_entries, read_json, write_atomically
from bezierdistill.models import CARD, Model, load_model
from bezierdistill.reporting import plots
from bezierdistill.reporting.tables import ARENA_HEADINGS, arena_cells
from bezierdistill.sources import noise
from bezierdistill.store import MANIFEST, CurveStore
from bezierdistill.training.journal import LOG, entries

ROUNDS, ARENA = "rounds.json", "arena.json"
ERRORS = ("straightness", "drift", "reconstruction_real", "reconstruction_generated")
# What every round has.
ROUND: dict[str, type | tuple[type, ...]] = {"round": int, "flow_passes": int, "student_passes": int, **dict.fromkeys(ERRORS, (int, float))}
SHOWN, MOST_PANELS, SHOWN_INPUTS = 2000, 11, 12
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:0 auto;padding:1rem;color:#222}
h1{font-size:1.6rem} h2{font-size:1.2rem;margin-top:2rem;border-bottom:1px solid #ccc}
img{max-width:100%;height:auto} .wide{overflow-x:auto} table{border-collapse:collapse;font-size:.85rem}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #ddd} th:first-child,td:first-child{text-align:left}
tr.ours{font-weight:bold;background:#eef6fb} pre{background:#f5f5f5;padding:.6rem;overflow-x:auto;font-size:.8rem}
@media print{body{max-width:none}h2{break-after:avoid}img{break-inside:avoid}}
"""


def write_report(run: Path) -> Path:
    """Write ``report.html`` for the folder of a demo, an arena, a reflow, a model or a curve store.

    Returns:
        The page's path.

    Raises:
        ValueError: if the folder holds none of these, or a file in it is damaged.
    """
    models = {_name(run, file): load_model(file.parent) for file in sorted(run.rglob(CARD))}
    stores = {_name(run, file): CurveStore.open(file.parent) for file in sorted(run.rglob(MANIFEST))}
    rounds, is_arena = sorted(run.rglob(ROUNDS)), (run / ARENA).exists()
    if not models and not stores and not is_arena:
        raise ValueError(f"{run} holds no run: expected the folder of a demo, arena, model, curve store or reflow")
    parts = [f"<h1>bezierdistill: {html.escape(run.resolve().name)}</h1>"]
    if is_arena:
        parts += _arena(run)
    elif models and not rounds:
        vectors = [name for name, model in models.items() if model.conditions and model.frequencies is None]
        parts += [f"<p>{html.escape(name)} takes vectors as conditions: no samples are shown.</p>" for name in vectors]
        starts_from_noise = {name: model for name, model in models.items() if model.source is None and name not in vectors}
        if starts_from_noise:
            parts += ["<h2>Samples</h2>", _picture(plots.samples_figure(_fresh(starts_from_noise)), "samples of every model")]
        parts += _translations({name: model for name, model in models.items() if model.source is not None})
    parts += [part for file in rounds for part in _rounds(file)]
    for name, store in stores.items():
        if store.recipe["degree"] > 1:
            figure = plots.curves_figure(store.curves(torch.arange(min(256, len(store)))))
            parts += [f"<h2>Curves: {html.escape(name)}</h2>", _picture(figure, "curves with their guides")]
    logs = _logs(run)
    if logs:
        parts += ["<h2>Losses</h2>", _picture(plots.losses_figure(logs), "loss curves")]
    return _write(run, parts + _settings(models, stores))


def _write(run: Path, parts: Sequence[str]) -> Path:
    page = "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    text = (
        f"{page}<title>bezierdistill</title><style>{STYLE}</style>"
        + "\n".join(parts)
        + f"<p>Made by bezierdistill {__version__}.</p></html>\n"
    )
    write_atomically(run / "report.html", lambda path: path.write_text(text))
    return run / "report.html"


def _arena(run: Path) -> list[str]:
    rows = gather(run)
    settings = check_entries(read_json(run / "run.json", "arena settings"), {"data": str, "budget": int}, str(run / "run.json"))
    lines = arena_cells(rows)
    failed = [f"{row['method']}, seed {row['seed']}: {row['error']}" for row in rows if "error" in row]
    return [
        f"<p>Data: <b>{html.escape(str(settings['data']))}</b>. Every method had {settings['budget']:,} network passes "
        "(forward 1, forward and backward 3, a row) for everything, the same network, batch and optimizer, and was judged on the same "
        "held-out samples. Excess is the distance over its floor (real against real, same size) minus one; mean ± standard error over "
        "seeds, ranks in brackets. The Frechet distance uses fixed random features and is not FID.</p>",
        _table(ARENA_HEADINGS, [line for line, _ in lines], [ours for _, ours in lines]),
        *(f"<p>Failed: {html.escape(line)}</p>" for line in failed),
        *(_quality(rows) if lines else ()),
        *_sheets(run, rows, str(settings["data"])),
        f"<h2>Run again</h2><pre>{html.escape(json.dumps(settings, indent=1))}</pre>",
    ]


def _quality(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        "<h2>Quality against passes</h2>",
        _picture(plots.arena_figure(summarise(rows), "passes"), "excess against network passes a sample"),
        "<h2>Quality against cost</h2>",
        _picture(plots.arena_figure(summarise(rows), "seconds"), "excess against seconds of training"),
    ]


def _sheets(run: Path, rows: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """Samples that an arena has kept, of its first seed: real ones, then methods from the best to the worst, at one and two passes."""
    folder = run / "samples"
    if not (folder / "real.npz").exists():
        return []
    data, parts = load_data(name), []
    first = min(row["seed"] for row in rows)
    for passes in (1, 2):
        panels = {"real data, held out": data.scaling.encode(read_array(folder / "real.npz")[:SHOWN])}
        for entry in summarise([row for row in rows if row.get("passes") == passes and row["seed"] == first])[:MOST_PANELS]:
            file = folder / f"{entry.method}-{first}-{passes}.npz"
            if file.exists():
                panels[f"{entry.method}\n{1 + entry.excess:.2f}x floor"] = data.scaling.encode(read_array(file)[:SHOWN])
        if len(panels) > 1:
            title = f"Samples of {passes} pass{'es' if passes > 1 else ''}, from the same noise"
            parts += [f"<h2>{title}</h2>", _picture(plots.samples_figure(panels), title)]
    return parts


def _name(run: Path, file: Path) -> str:
    name = str(file.parent.relative_to(run))
    return run.resolve().name if name == "." else name


def _picture(figure: Figure, description: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _fresh(models: Mapping[str, Model]) -> dict[str, Tensor]:
    panels = {}
    for name, model in models.items():
        count = 1024 if len(model.shape) == 1 else 36
        labels = [k // 6 for k in range(36)] if model.frequencies and len(model.frequencies) >= 6 else None  # a class a row
        cond = model.condition(range(count), 0, labels)
        for passes in (1, 2) if model.card.get("kind") == "student" else (2, 40):
            panels[f"{name}\n{passes} passes"] = model.generate(noise(0, 0, count, model.shape), passes, cond=cond)
    return panels


def _translations(models: Mapping[str, Model]) -> list[str]:
    """Held-out inputs and what each model makes of them, in rows; where the inputs' data are not at hand, a line that says so."""
    sources: dict[str, dict[str, Model]] = {}
    for name, model in models.items():
        sources.setdefault(str(model.card.get("source_data")), {})[name] = model
    parts: list[str] = []
    for source, own in sources.items():
        try:
            x = load_data(source).real(SHOWN_INPUTS, 0, "test")
        except ValueError as error:
            parts.append(f"<p>No translations are shown: {html.escape(str(error))}</p>")
            continue
        rows = {f"input: {Path(source).name}": x}
        for name, model in sorted(own.items(), key=lambda item: item[1].card.get("kind") == "student"):
            for passes in (1, 2) if model.card.get("kind") == "student" else (50,):
                rows[f"{name}, {passes} pass{'es' if passes > 1 else ''}"] = model.generate(x, passes, "euler" if passes < 50 else "heun")
        figure = plots.rows_figure(rows) if x.ndim == 4 else plots.samples_figure(rows)
        parts += ["<h2>Translations</h2>", _picture(figure, f"inputs of {source} and their translations, a column each")]
    return parts


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool]) -> str:
    def line(tag: str, texts: Sequence[str]) -> str:
        return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)

    body = "".join(f"<tr{' class=ours' if mark else ''}>{line('td', row)}</tr>" for row, mark in zip(rows, marked, strict=True))
    return f"<div class=wide><table><tr>{line('th', head)}</tr>{body}</table></div>"


def _rounds(file: Path) -> list[str]:
    rounds = _read_rounds(file)
    if not rounds:
        return []
    ours = "ours" in rounds[0]
    rows = []
    for entry in rounds:
        numbers = [f"{entry[key]:.4g}" for key in ERRORS]
        costs = [f"{entry[key]:,}" for key in ("flow_passes", "student_passes", *(("ours_passes",) if ours else ()))]
        samplers = {**entry["samplers"], **entry.get("ours", {})}
        rows.append([str(entry["round"]), *numbers, *costs, *(f"{metrics['frechet_ratio']:.2f}x" for metrics in samplers.values())])
    head = ["round", "straightness", "drift", "reconstruction: real", "generated", "passes spent: flow", "student"]
    head += ["ours"] if ours else []
    head += ["flow, Heun 40", "Euler 1", "Euler 2", "distilled, 1 pass", *(("ours, 1 pass", "ours, 2 passes") if ours else ())]
    note = (
        "<p>Frechet distances over their floor. Drift: mean squared distance a component of end points from the first round's. "
        "Reconstruction: the same of states carried backwards by round 1's flow and forwards by this round's. "
        "Ours starts from round 1's flow and spends what the round's student has cost.</p>"
    )
    table = _table(head, rows, [False] * len(rows))
    return ["<h2>Reflow rounds</h2>", table, note, _picture(plots.rounds_figure(rounds), "errors of every round of reflow")]


def _read_rounds(file: Path) -> list[dict[str, Any]]:
    rounds = check_entries(read_json(file, "reflow rounds"), {"rounds": list}, str(file))["rounds"]
    where = f"a round of {file}"
    for entry in rounds:
        ours = ["ours"] if isinstance(rounds[0], dict) and "ours" in rounds[0] else []
        check_entries(entry, ROUND | ({"ours_passes": int} if ours else {}), where)
        for part in ("samplers", *ours):
            own = check_entries(entry, {part: dict}, where)[part]
            check_entries(own, dict.fromkeys(rounds[0][part], dict), where)
            for metrics in own.values():
                check_entries(metrics, {"frechet_ratio": (int, float)}, where)
    return rounds


def _logs(run: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    logs: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for file in sorted(run.rglob(LOG)):
        for entry in entries(file):
            panel = logs.setdefault(f"{_name(run, file)}: {entry['stage']}", {})
            for network, loss in entry["loss"].items():
                panel.setdefault(network, []).append((entry["step"], loss))
    return logs


def _settings(models: Mapping[str, Model], stores: Mapping[str, CurveStore]) -> list[str]:
    described: dict[str, Any] = {}
    for name, model in models.items():
        described[name] = {
            "knots": {k: list(v) for k, v in model.knots.items()},
            "passes spent": model.card["passes"],
            "config": model.card["config"],
        }
    for name, store in stores.items():
        described[name] = {key: value for key, value in store.recipe.items() if key != "scaling"} | {"rows": len(store)}
    return ["<h2>Settings</h2>"] * bool(described) + [
        f"<details><summary>{html.escape(name)}</summary><pre>{html.escape(json.dumps(value, indent=1, default=str))}</pre></details>"
        for name, value in described.items()
    ]
