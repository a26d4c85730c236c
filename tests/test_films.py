"""Films of the pipelines of videos: written, read again, judged by their motion, shown as they move
beside those of the teacher.
"""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from bezierdistill.cli import main
from bezierdistill.data.clips import read_clips
from bezierdistill.metrics import motion_ratio
from bezierdistill.models import load_model
from bezierdistill.models.pipeline import PipelineModel
from bezierdistill.records import Motion
from bezierdistill.reporting.page import Gallery
from bezierdistill.reporting.plots import film
from bezierdistill.reporting.prompted import as_pixels, prompt_rows
from bezierdistill.reporting.samples import COLUMNS

pytest.importorskip("peft")
pytest.importorskip("transformers")
tiny: Any = pytest.importorskip("tiny_pipelines")

PROMPTS = ("a red boot", "a small blue bag", "a green handle")
SIZES = """--height 32 --width 32 --frames 9 --call '{"max_sequence_length": 32}'"""
MADE = (("t", 56), ("t", 2), ("s", 2))  # the report's first row, its fourth and its last


def run(line: str) -> None:
    """Run a command that must succeed."""
    assert main(shlex.split(line)) == 0


@pytest.fixture(scope="module", params=["wan", "ltx"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a teacher ``t`` and of a student ``s``; beside it films of both from the same noise,
    ``t-56.npz``, ``t-2.npz``, ``s-2.npz``, and folders of these.
    """
    at = tmp_path_factory.mktemp(request.param)
    base, cpu = tiny.save(request.param, at / "base"), "--accelerator cpu"
    (at / "prompts.txt").write_text("\n".join(PROMPTS))
    run(
        f"import --source {base} --prompts {at}/prompts.txt --guidance 4 --out {at}/run/t"
        f" {SIZES} {cpu}"
    )
    run(f"simulate --teachers {at}/run/t --out {at}/run/c --count 8 --steps 2 --degree 2 {cpu}")
    run(
        f"distill --curves {at}/run/c --out {at}/run/s --lora 2 --passes 2 --steps 5 --batch 4"
        f" --loop.lr 0.01 --loop.warmup 0 --loop.{cpu[2:]}"
    )
    for name, passes in MADE:
        line = f"sample --model {at}/run/{name} --prompts {at}/prompts.txt --passes {passes} {cpu}"
        run(f"{line} --out {at}/{name}-{passes}.npz")
        run(f"{line} --out {at}/{name}-{passes}")
    run(f"report --run {at}/run")
    return at


def films(at: Path, name: str) -> np.ndarray:
    """The films ``(N, F, H, W, 3)`` of a sampler."""
    with np.load(at / f"{name}.npz", allow_pickle=False) as arrays:
        return arrays["x"]


def moved(at: Path, name: str) -> Motion:
    """The motion of a sampler's films over that of the teacher's."""
    return motion_ratio(*(torch.from_numpy(films(at, own)) / 255.0 for own in (name, "t-56")))


def frames(png: bytes) -> np.ndarray:
    """The frames ``(F, H, W, 3)`` of an animated picture."""
    with Image.open(io.BytesIO(png)) as picture:
        return np.stack([np.asarray(x.convert("RGB")) for x in ImageSequence.Iterator(picture)])


def test_the_report_shows_films_of_both_and_their_ratio(made: Path) -> None:
    page = (made / "run" / "report.html").read_text()
    rows = re.findall(r'<img[^>]*base64,([^"]+)"><figcaption><b>([ts])</b> ([^<]*)<', page)
    assert [name for _, name, _ in rows] == ["t", "t", "t", "t", "s"]
    told = dict[str, str]()
    for (picture, _, caption), (name, passes) in zip(rows[::3] + rows[-1:], MADE, strict=True):
        own = films(made, f"{name}-{passes}")
        assert own.shape == (3, 9, 32, 32, 3)
        assert (frames(base64.b64decode(picture)) == film(as_pixels(own), COLUMNS)).all()
        told[f"{name}-{passes}"] = caption
    assert told.pop("t-56") == "56 passes"
    ratios = {name: f"{moved(made, name).ratio:.3f}" for name in told}
    end = "times the motion of the first row"
    assert told == {name: f"2 passes, {ratio} {end}" for name, ratio in ratios.items()}
    assert len({*ratios.values(), "1.000"}) > 1


def test_evaluate_tells_the_motion_of_films(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("t-2", "s-2"):
        line, true = f"evaluate --samples {made}/{name}", moved(made, name)
        capsys.readouterr()
        run(f"{line}.npz --against {made}/t-56.npz --json --out {made}/scores.json")
        result = json.loads(capsys.readouterr().out)["clips"]
        assert result["against"] == "given"
        for key in ("ratio", "quantiles", "reference"):
            assert result["motion"][key] == pytest.approx(getattr(true, key), rel=1e-5)
        assert json.loads((made / "scores.json").read_text())["clips"] == result
        run(f"{line}.npz --against {made}/t-56.npz")
        least, middle, most = (f"{x:.2f}" for x in true.quantiles)
        start = f"motion over that of the clips given: {true.ratio:.3f}; 5, 50 and 95 % of clips"
        assert capsys.readouterr().out.startswith(f"{start} {least}, {middle}, {most} (theirs ")
        # GIFs have 256 colours a frame.
        run(f"{line} --against {made}/t-56 --json")
        ratio = json.loads(capsys.readouterr().out)["clips"]["motion"]["ratio"]
        assert ratio == pytest.approx(true.ratio, abs=0.03)
        assert read_clips(made / name).x["train"].shape == (3, 9, 32, 32, 3)


def test_the_report_of_a_teacher_that_stands_still(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = np.full((3, 9, 32, 32, 3), 128, np.uint8)
    monkeypatch.setattr(PipelineModel, "images", lambda *_: grey)
    *_, part = prompt_rows({"t": load_model(made / "run" / "t")})
    assert isinstance(part, Gallery)
    captions = [picture.caption for picture in part.pictures]
    still = "beside a first row that stands still"
    assert captions == ["56 passes", *(f"{passes} passes, {still}" for passes in (8, 4, 2))]


def test_the_page_plays_films_of_both_from_the_same_noise(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    from bezierdistill.app.generate import COLUMNS as ACROSS
    from bezierdistill.app.generate import _drawn
    from bezierdistill.app.run import open_run

    controls = [3, 2, 2, [], 1.0, 1, PROMPTS[1]]  # seed, passes, samples, ..., the teacher's steps
    speed, _, own, words, beside = _drawn(open_run(made / "run"), "s", *controls)
    assert "against its teacher **t**" in speed
    assert "2 passes" in words
    for name, path in (("s", own), ("t", beside)):
        run(
            f"sample --model {made}/run/{name} --prompt '{PROMPTS[1]}' --count 2 --passes 2"
            f" --seed 3 --out {tmp_path}/{name}.npz --accelerator cpu"
        )
        shown = frames(Path(path).read_bytes())
        assert (shown == film(as_pixels(films(tmp_path, name)), ACROSS)).all()
