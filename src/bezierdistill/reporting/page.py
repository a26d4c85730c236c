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
from bezierdistill.data import read_array
from bezierdistill.files import read_json, write_atomically
from bezierdistill.models import CARD, Model, load_model
from bezierdistill.reporting import plots
from bezierdistill.reporting.tables import ARENA_HEADINGS, arena_cells, cells, headings
from bezierdistill.sources import noise
from bezierdistill.store import MANIFEST, CurveStore

METRICS, ROUNDS, LOG, ARENA = "metrics.json", "rounds.json", "log.jsonl", "arena.json"
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
    if (run / ARENA).exists():
        return _write(run, [f"<h1>bezierdistill arena: {html.escape(run.resolve().name)}</h1>", *_arena(run)])
    models = {_name(run, file): load_model(file.parent) for file in sorted(run.rglob(CARD))}
    stores = {_name(run, file): CurveStore.open(file.parent) for file in sorted(run.rglob(MANIFEST))}
    if not models and not stores:
        raise ValueError(f"{run} holds no run: expected the folder of a demo, arena, model, curve store or reflow")
    metrics = read_json(run / METRICS, "metrics") if (run / METRICS).exists() else None
    parts = [f"<h1>bezierdistill: {html.escape(run.resolve().name)}</h1>"]
    if metrics is not None:
        parts += _comparison(run, metrics, next(iter(models.values())))
    elif models:
        parts += ["<h2>Samples</h2>", _picture(plots.samples_figure(_fresh(models)), "samples of every model")]
    parts += [_rounds(file) for file in sorted(run.rglob(ROUNDS))]
    for name, store in stores.items():
        if store.recipe["degree"] > 1:
            figure = plots.curves_figure(store.curves(torch.arange(min(256, len(store)))))
            parts += [f"<h2>Curves: {html.escape(name)}</h2>", _picture(figure, "curves with their guides")]
    logs = _logs(run)
    if logs:
        parts += ["<h2>Losses</h2>", _picture(plots.losses_figure(logs), "loss curves")]
    return _write(run, parts + _settings(metrics, models, stores))


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
    rows, settings = gather(run), read_json(run / "run.json", "arena settings")
    lines = arena_cells(rows)
    failed = [f"{row['method']}, seed {row['seed']}: {row['error']}" for row in rows if "error" in row]
    return [
        f"<p>Data: <b>{html.escape(str(settings['data']))}</b>. Every method had {settings['budget']:,} network passes "
        "(forward 1, forward and backward 3, a row) for everything, the same network, batch and optimizer, and was judged on the same "
        "held-out samples. Excess is the distance over its floor (real against real, same size) minus one; mean ± standard error over "
        "seeds, ranks in brackets. The Frechet distance uses fixed random features and is not FID.</p>",
        _table(ARENA_HEADINGS, [line for line, _ in lines], [ours for _, ours in lines]),
        *(f"<p>Failed: {html.escape(line)}</p>" for line in failed),
        "<h2>Quality against passes</h2>",
        _picture(plots.arena_figure(summarise(rows), "passes"), "excess against network passes a sample"),
        "<h2>Quality against cost</h2>",
        _picture(plots.arena_figure(summarise(rows), "seconds"), "excess against seconds of training"),
        f"<h2>Settings</h2><pre>{html.escape(json.dumps(settings, indent=1))}</pre>",
    ]


def _name(run: Path, file: Path) -> str:
    name = str(file.parent.relative_to(run))
    return run.resolve().name if name == "." else name


def _picture(figure: Figure, description: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _comparison(run: Path, metrics: Mapping[str, Any], model: Model) -> list[str]:
    rows = metrics["rows"]
    panels: dict[str, Tensor] = {}
    if (run / "samples" / "real.npz").exists():
        panels["real data, held out"] = _own(run / "samples" / "real.npz", model)
    for row in rows:
        passes = "1 pass" if row["passes"] == 1 else f"{row['passes']} passes"
        title = f"{row['method']}\n{passes}, {row['frechet_ratio']:.2f}x floor"
        panels[title] = _own(run / "samples" / row["samples"], model)
    budget = f"{metrics['budget']:,}"
    return [
        f"<p>Data: <b>{html.escape(str(metrics['data']))}</b>. Every student had the same network and {budget} network passes in all "
        "(forward 1, forward and backward 3, a row), its teachers, pairs or curves and searches included. The floor is the distance "
        "between two sets of real samples of the same size; the Frechet distance uses fixed random features and is not FID.</p>",
        f"<p>Run again:</p><pre>{html.escape(metrics['command'])}</pre>",
        _table(headings(), [cells(row) for row in rows], [bool(row.get("ours")) for row in rows]),
        "<h2>Samples</h2>",
        _picture(plots.samples_figure(panels), "samples of every method from the same noise"),
        "<h2>Distance against passes</h2>",
        _picture(plots.quality_figure(rows), "Frechet distance over its floor against passes"),
    ]


def _own(path: Path, model: Model) -> Tensor:
    return model.scaling.encode(read_array(path)[0][:2000])


def _fresh(models: Mapping[str, Model]) -> dict[str, Tensor]:
    panels = {}
    for name, model in models.items():
        for passes in (1, 2) if model.card.get("kind") == "student" else (2, 40):
            panels[f"{name}\n{passes} passes"] = model.generate(noise(0, 0, 1024 if len(model.shape) == 1 else 36, model.shape), passes)
    return panels


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool]) -> str:
    def line(tag: str, texts: Sequence[str]) -> str:
        return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)

    body = "".join(f"<tr{' class=ours' if mark else ''}>{line('td', row)}</tr>" for row, mark in zip(rows, marked, strict=True))
    return f"<div class=wide><table><tr>{line('th', head)}</tr>{body}</table></div>"


def _rounds(file: Path) -> str:
    rows = []
    for entry in read_json(file, "reflow rounds")["rounds"]:
        ratios = [f"{metrics['frechet_ratio']:.2f}x" for metrics in entry["samplers"].values()]
        costs = [f"{entry[key]:,}" for key in ("flow_passes", "student_passes")]
        rows.append([str(entry["round"]), f"{entry['straightness']:.4g}", f"{entry['drift']:.4g}", *costs, *ratios])
    head = ["round", "straightness", "drift", "passes spent: flow", "student", "flow, Heun 40", "Euler 1", "Euler 2", "distilled, 1 pass"]
    note = "<p>Frechet distances over their floor. Drift: mean squared distance of end points from the first round's.</p>"
    return "<h2>Reflow rounds</h2>" + _table(head, rows, [False] * len(rows)) + note


def _logs(run: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    logs: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for file in sorted(run.rglob(LOG)):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            panel = logs.setdefault(f"{_name(run, file)}: {entry['stage']}", {})
            for network, loss in entry["loss"].items():
                panel.setdefault(network, []).append((entry["step"], loss))
    return logs


def _settings(metrics: Mapping[str, Any] | None, models: Mapping[str, Model], stores: Mapping[str, CurveStore]) -> list[str]:
    described: dict[str, Any] = {}
    if metrics is not None:
        described["run"] = {key: metrics[key] for key in ("settings", "search", "seconds", "machine")}
    for name, model in models.items():
        described[name] = {
            "knots": {k: list(v) for k, v in model.knots.items()},
            "passes spent": model.card["passes"],
            "config": model.card["config"],
        }
    for name, store in stores.items():
        described[name] = {key: value for key, value in store.recipe.items() if key != "scaling"} | {"rows": len(store)}
    return ["<h2>Settings</h2>"] + [
        f"<details><summary>{html.escape(name)}</summary><pre>{html.escape(json.dumps(value, indent=1, default=str))}</pre></details>"
        for name, value in described.items()
    ]
