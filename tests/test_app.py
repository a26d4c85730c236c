"""The web page without a browser: what it shows of a run, the plane's exact fields, and what it
refuses."""

from __future__ import annotations

import gc
import re
import shutil
import socket
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
from msgspec import structs
from PIL import Image

from bezierdistill.app import AppConfig, plane, serve, upload
from bezierdistill.app.answers import answered, drawn, shown, tabled
from bezierdistill.app.compare import _lines
from bezierdistill.app.curves import _paths
from bezierdistill.app.generate import Draw, _asked
from bezierdistill.app.page import build
from bezierdistill.app.run import BUNDLED, Shown, open_run
from bezierdistill.app.translate import _translations, _uploaded
from bezierdistill.app.upload import read_upload
from bezierdistill.data import Scaling, from_pixels, load_data
from bezierdistill.errors import UserError
from bezierdistill.files import digest
from bezierdistill.metrics import straightness
from bezierdistill.records import TeacherRef

RECIPE = (Path(__file__).parents[1] / "recipes" / "bundled.yaml").read_text()


@pytest.fixture(autouse=True)
def no_pages_left() -> Iterator[None]:
    """Collect the many cycles of a page at once: CPython 3.11 fails if they are collected while it
    parses source, as other tests do."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def bundled() -> Shown:
    return open_run(None)


def test_the_bundled_run_is_what_its_recipe_says_and_small(bundled: Shown) -> None:
    stated = dict(re.findall(r"^#   ([\w-]+) +([0-9a-f]{64})$", RECIPE, re.MULTILINE))
    assert stated == {name: digest(BUNDLED / name / "model.safetensors") for name in bundled.models}
    assert sum(file.stat().st_size for file in BUNDLED.rglob("model.*")) < 2_000_000
    card = bundled.models["digits"].card
    assert card.settings["loop"]["accelerator"] == "cpu"
    budget = re.search(r"^budget: (\d+)", RECIPE, re.MULTILINE)
    assert budget is not None
    assert 0.9 * int(budget[1]) < card.passes.total <= int(budget[1])


def test_what_is_shown_of_a_run(bundled: Shown, tmp_path: Path) -> None:
    assert list(bundled.generators) == ["digits", "digits-guided", "digits-teacher"]
    assert list(bundled.translators) == ["threes-to-eights", "threes-to-eights-flow"]
    for student, teacher in {
        "digits": "digits-teacher",
        "digits-guided": "digits-teacher",
        "threes-to-eights": "threes-to-eights-flow",
    }.items():
        assert bundled.teacher(bundled.models[student]) is bundled.models[teacher]
    assert bundled.teacher(bundled.models["digits-teacher"]) is None
    shutil.copytree(BUNDLED / "digits", tmp_path / "moved")
    alone = open_run(tmp_path)
    moved = alone.models["moved"]
    entry = moved.card.teachers[0]
    assert entry.path == "../digits-teacher"
    elsewhere = TeacherRef(path=str(BUNDLED / "digits-teacher"), digest=entry.digest)
    found = alone.teacher(replace(moved, card=structs.replace(moved.card, teachers=(elsewhere,))))
    assert found is not None
    assert found.card.digest == entry.digest
    assert list(alone.generators) == ["moved"]
    assert not alone.rows
    assert alone.teacher(alone.models["moved"]) is None
    assert isinstance(build(alone), gr.Blocks)
    with pytest.raises(ValueError, match="holds no run"):
        open_run(tmp_path / "moved" / "none")


def test_the_bundled_arena_is_the_published_one(bundled: Shown) -> None:
    results = (Path(__file__).parents[1] / "docs" / "results.md").read_text()
    for passes, _, method, excess, error, seeds, *_ in _lines(bundled.rows, "frechet"):
        assert seeds == 3
        published = re.findall(
            rf"^\|[ *]*{method}[ *]*\| {passes} \| [^|]+ \| ([\d.]+) ± ([\d.]+) \|",
            results,
            re.MULTILINE,
        )
        assert any(
            abs(excess - float(mean)) < 0.01 and abs(error - float(own)) < 0.01
            for mean, own in published
        ), method


def test_one_and_two_passes_of_the_bundled_student_are_like_digits(bundled: Shown) -> None:
    student, teacher = bundled.models["digits"], bundled.models["digits-teacher"]
    few = student.sample(10, 1, seed=3, labels=range(10))
    many = teacher.sample(10, 80, seed=3, solver="heun", labels=range(10))
    apart = np.abs(few[:, None] - many[None]).mean((2, 3))
    assert (apart.argmin(1) == np.arange(10)).mean() >= 0.8  # the same noise gives the same digit


@pytest.mark.parametrize("task", plane.TASKS)
def test_weights_choose_between_the_exact_fields(task: str) -> None:
    x, t = plane.judged_sources(50), 0.7
    for weight in (0.0, 1.0, 1.7):
        setting = plane.Setting(task, (weight,) * 3)
        strong, weak = setting.teachers
        expected = weight * strong(x, t) + (1 - weight) * weak(x, t)
        torch.testing.assert_close(setting.blend(x, t), expected, rtol=1e-4, atol=1e-4)


def test_a_moved_guide_leaves_the_ends_and_other_curves() -> None:
    curve = plane.Setting().curves(plane.judged_sources(4))
    still = [(0.0, 0.0)]
    moved = plane.moved(curve, 1, [*still * 2, (0.5, -0.25), *still * 2])
    gap = moved.points - curve.points
    assert gap[2, 1].tolist() == pytest.approx([0.5, -0.25], abs=1e-6)
    gap[2, 1] = 0
    assert not gap.any()


def test_handles_lie_on_the_guides_of_the_drawing() -> None:
    """The pixels at a guide's place are those of its diamond, in the colour of its curve."""
    figure, points, _ = plane.paths_figure(plane.Setting(degree=2), 5, [(0.0, 0.0)] * 3)
    axes = figure.axes[0]
    axes.plot(*points[1], "s", color=(0.0, 1.0, 0.0), ms=6, zorder=9)
    pixels = drawn(figure)
    places, unit = plane.within(figure, points)
    x, y = places[1]
    row, column = round(y * pixels.shape[0]), round(x * pixels.shape[1])
    assert pixels[row, column].tolist() == [0, 255, 0]
    assert unit * pixels.shape[1] == pytest.approx(
        axes.bbox.width / (axes.get_xlim()[1] - axes.get_xlim()[0])
    )


def test_a_dragged_guide_is_that_of_the_curve_shown() -> None:
    given = ["moons", 1, 1.5, 2, 3, "fit"]
    still = _paths(*given, 6, None)
    assert _paths(*given, 6, (5, [(0.5, 0.0), (0.0, 0.0)])) != still
    assert _paths(*given, 6, (4, [(0.5, 0.0), (0.0, 0.0)])) == still  # those of another curve
    assert _paths(*given, 6, (5, [(0.5, 0.0)])) == still  # those of another degree
    for far in (float("nan"), 1e9):
        with pytest.raises(ValueError, match="a guide was moved by more than"):
            _paths(*given, 6, (5, [(far, 0.0), (0.0, 0.0)]))


def test_a_table_says_nothing_but_its_words() -> None:
    text = tabled(["<b>"], [["</td><script>"]])
    assert "<b>" not in text
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_measures_are_those_of_the_library() -> None:
    setting = plane.Setting("moons", (1.0, 1.0, 1.0))
    rows = {str(row[0]): [float(part) for part in row[1:]] for row in plane.measures(setting)}
    assert rows["blend"] == rows["strong"]
    assert rows["strong"][0] == pytest.approx(
        straightness(setting.teachers[0], plane.judged_sources(200), 16), abs=1e-3
    )
    assert rows["strong"][1] == pytest.approx(
        rows["weak"][1], rel=0.01
    )  # one step ends at the mean of the data, whatever the blur
    assert rows["strong"][3] < rows["weak"][3]
    parts = plane.open_plane("moons").floor.split(plane.JUDGED)
    assert sum(plane.excess("moons", part) for part in parts) == pytest.approx(
        0, abs=1e-6
    )  # real points again: 0 on average, by definition


@pytest.mark.parametrize("task", plane.TASKS)
def test_the_blend_is_better_than_its_teachers_and_fresh_real_sets_best(task: str) -> None:
    strong, weak, blend = (float(row[4]) for row in plane.measures(plane.Setting(task)))
    # On the spirals it is as good as the strong teacher, up to the noise of 1,000 samples.
    assert blend < strong * (1.2 if task == "spirals" else 1) < weak
    fresh = load_data(task).real(8 * plane.JUDGED, 7, "test").split(plane.JUDGED)
    assert sum(plane.excess(task, part) for part in fresh) / len(fresh) < blend / 2


def test_a_short_training_beats_two_steps_of_the_blend() -> None:
    setting = plane.Setting("gaussians")
    told: list[tuple[int, int]] = []
    one, two = plane.distil(setting, lambda *at: told.append(at), 100, 30)
    assert told == [(done, 130) for done in range(131)]
    assert max(plane.excess("gaussians", one), plane.excess("gaussians", two)) < float(
        plane.measures(setting)[2][3]
    )


def test_a_student_opens_at_the_fewest_passes_that_it_has_learnt(bundled: Shown) -> None:
    student = bundled.models["digits"]
    assert _asked(student)[0].value == 1
    two = structs.replace(student.card, knots={2: (0.0, 0.5, 1.0)})
    assert _asked(replace(student, card=two))[0].value == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../../etc"}, "model is"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": None}, "seed is None"),
        ({"count": 10**9}, "samples are"),
        ({"passes": 10**6}, "passes 1000000"),
        ({"many": 0}, "and 0"),
    ],
)
def test_calls_without_the_page_are_judged(
    bundled: Shown, change: dict[str, Any], message: str
) -> None:
    good: dict[str, Any] = {"name": "digits", "seed": 0, "passes": 1, "count": 8}
    good |= {"labels": [], "guidance": 1.0, "many": 4}
    assert Draw.of(bundled, *good.values()).count == 8
    with pytest.raises(ValueError, match=message):
        Draw.of(bundled, *(good | change).values())


def packed(file: Path, content: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return file


def files_of(name: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (BUNDLED / name).iterdir()}


def test_an_uploaded_student_is_as_that_of_the_run_and_finds_its_teacher(
    bundled: Shown, tmp_path: Path
) -> None:
    content = {f"../../mine/{name}": data for name, data in files_of("digits").items()}
    own = read_upload(packed(tmp_path / "mine.zip", content))
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.zip"]
    seen, ours = own.within(bundled), bundled.models["digits"]
    assert np.array_equal(own.model.sample(4, 1, 0), ours.sample(4, 1, 0))
    assert own.name in seen.sampled
    assert own.name not in bundled.sampled
    assert seen.teacher(own.model) is bundled.models["digits-teacher"]
    stranger = replace(bundled, models={})
    assert own.within(stranger).teacher(own.model) is None  # no folder of this machine is opened


CARD = files_of("digits")["model.json"]
TENSORS = files_of("digits")["model.safetensors"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"notes.txt": b""}, "holds 0 files model.json"),
        ({"model.json": CARD}, "holds 0 files model.safetensors"),
        ({"a/model.json": CARD, "b/model.json": CARD}, "holds 2 files model.json"),
        ({"model.json": b"{", "model.safetensors": TENSORS}, "mine.zip/model.json"),
        ({"model.json": CARD, "model.safetensors": b"cos\nsystem\n"}, "mine.zip/model.safetensors"),
        ({"model.json": CARD, "model.safetensors": TENSORS[:-1] + b"!"}, "differs from the digest"),
        (files_of("threes-to-eights"), "does not start from noise alone"),
        ({"model.json": CARD.replace(b'"mlp"', b'"own"'), "model.safetensors": TENSORS}, "--run"),
    ],
)
def test_an_upload_that_is_no_model_is_refused_in_a_line_without_our_folders(
    tmp_path: Path, content: dict[str, bytes], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_upload(packed(tmp_path / "mine.zip", content))
    assert "\n" not in str(caught.value)
    assert "/tmp" not in str(caught.value)


def test_a_zip_that_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "LARGEST", 2**20)
    bomb = {"model.json": CARD, "model.safetensors": bytes(2**20 + 1)}
    with pytest.raises(UserError, match="has 1,048,577 bytes"):
        read_upload(packed(tmp_path / "bomb.zip", bomb))
    small = {"model.json": CARD, "model.safetensors": bytes(100)}
    with pytest.raises(UserError, match="stored or deflated"):
        read_upload(packed(tmp_path / "other.zip", small, zipfile.ZIP_BZIP2))
    # A size that lies: no more is unpacked than it says.
    file = packed(tmp_path / "lie.zip", bomb)
    true, said = (2**20 + 1).to_bytes(4, "little"), (1000).to_bytes(4, "little")
    file.write_bytes(file.read_bytes().replace(true, said))
    with pytest.raises(UserError, match=r"lie\.zip cannot be read"):
        read_upload(file)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04" + bytes(50)])
def test_what_is_no_zip_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"^mine\.zip cannot be read"):
        read_upload(tmp_path / "mine.zip")


def test_mistakes_are_messages_and_bugs_are_not() -> None:
    def fails(error: Exception) -> None:
        raise error

    with pytest.raises(gr.Error, match="two words"):
        answered(fails)(ValueError("two\n words"))
    with pytest.raises(ZeroDivisionError):
        answered(fails)(ZeroDivisionError())


@pytest.mark.parametrize("size", [(8, 8), (31, 50)])
def test_an_uploaded_image_is_translated(
    bundled: Shown, tmp_path: Path, size: tuple[int, int]
) -> None:
    model = bundled.models["threes-to-eights"]
    Image.new("RGB", size, (255, 255, 255)).save(tmp_path / "white.png")
    x = _uploaded(tmp_path / "white.png", model)
    assert x.shape == (1, 8, 8)
    assert x == pytest.approx(16.0)  # white is the greatest number of the data
    captions = [caption for _, caption in _translations(bundled, model, x, None)]
    assert captions == ["student, 1 pass", "student, 2 passes", "flow, 40 passes"]


def test_a_student_that_has_learnt_a_guidance_stands_beside_a_guided_teacher(
    bundled: Shown,
) -> None:
    """A student for one strength takes none as an input; its teacher needs it, and what it costs is
    said."""
    student = bundled.models["digits"]
    conditions = structs.replace(student.conditions, guided=(3.0,))
    learnt = replace(student, card=structs.replace(student.card, conditions=conditions))
    asked = Draw(learnt, 0, 1, 8, [3], 1.0, 4)
    assert "guidance 3" in asked.sampled(learnt, 1, "euler")[1]
    teacher = bundled.models["digits-teacher"]
    guided = asked.sampled(teacher, 4, "heun")[0]
    plain = Draw(bundled.models["digits"], 0, 1, 8, [3], 1.0, 4).sampled(teacher, 4, "heun")[0]
    expected = shown(
        teacher.scaling.encode(teacher.sample(8, 4, 0, "heun", labels=[3], guidance_scale=3.0)), 8
    )
    assert np.array_equal(guided, expected)
    assert not np.array_equal(guided, plain)


def test_an_image_of_too_many_pixels_is_refused_by_its_header(
    bundled: Shown, tmp_path: Path
) -> None:
    Image.new("1", (4096, 1025)).save(tmp_path / "large.png")
    with pytest.raises(
        ValueError, match=r"^large\.png has 4096 x 1025 pixels, expected 4,194,304 or fewer"
    ):
        _uploaded(tmp_path / "large.png", bundled.models["threes-to-eights"])


def test_a_file_that_is_no_image_is_named_without_its_folder(
    bundled: Shown, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"^a\.png cannot be read as an image: (?!.*/)"):
        _uploaded(tmp_path / "a.png", bundled.models["threes-to-eights"])


def test_pixels_become_the_sources_own_numbers() -> None:
    grey = np.array([[[0, 51], [102, 255]]], np.uint8)
    colour = np.repeat(grey[..., None], 3, 3)
    bytes_of, range_of = (
        Scaling((127.5,), (127.5,), "hw", 0, 255, True),
        Scaling((8.0,), (8.0,), "hw", -1, 4),
    )
    assert from_pixels(grey, bytes_of).dtype == np.uint8
    assert np.array_equal(from_pixels(grey, bytes_of), grey)
    assert from_pixels(grey, range_of)[0].tolist() == [[-1, 0], [1, 4]]
    assert from_pixels(colour, bytes_of, grey=True) == pytest.approx(
        grey
    )  # grey in three channels is the same grey
    red = np.zeros((1, 1, 1, 3), np.uint8)
    red[..., 0] = 255
    assert from_pixels(red, bytes_of, grey=True).item() == pytest.approx(0.299 * 255)
    for layout, shape in {"hwc": (1, 2, 2, 3), "chw": (1, 3, 2, 2)}.items():
        scaling = Scaling((0.0,), (1.0,), layout, 0, 255, True)  # type: ignore[arg-type]
        assert from_pixels(grey, scaling).shape == from_pixels(colour, scaling).shape == shape
        assert np.array_equal(from_pixels(grey, scaling), from_pixels(colour, scaling))
    with pytest.raises(ValueError, match="colour"):
        from_pixels(colour, bytes_of)
    with pytest.raises(ValueError, match="no range"):
        from_pixels(grey, Scaling((0.0,), (1.0,), "hw"))


def test_a_grid_has_white_lines_between_images_and_none_around() -> None:
    pixels = shown(torch.full((4, 1, 8, 8), -1.0), 2)
    assert isinstance(pixels, np.ndarray)
    assert pixels.shape == (17 * 8, 17 * 8, 3)
    assert not pixels[:64, :64].any()
    assert (pixels[64:72] == 255).all()
    assert not pixels[-1, -1].any()


def test_serve_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="port is 70000"):
        AppConfig(port=70000)
    with pytest.raises(ValueError, match="holds no run"):
        serve(AppConfig(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ValueError, match=rf"127.0.0.1:{port} cannot be listened on .* Choose another --port"
        ):
            serve(AppConfig(port=port))
    for host in ("no such host", "::1"):
        with pytest.raises(ValueError, match="expected an IPv4 address"):
            serve(AppConfig(host=host, port=port))
    monkeypatch.setattr("bezierdistill.app.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install \"bezierdistill\[app\]\""):
        serve(AppConfig())
