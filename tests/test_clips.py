"""Clips: bouncing digits by closed forms, files of clips, judges of motion, clips as pictures."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from inspect import unwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bezierdistill.cli import main
from bezierdistill.data import ArrayData, Scaling, load_data, read_samples
from bezierdistill.data.bouncing import BouncingData, Walls, bounce, reflected
from bezierdistill.data.clips import clip_scaling, read_clips
from bezierdistill.errors import UserError
from bezierdistill.metrics import ClipJudge, Evaluator, motion_ratio
from bezierdistill.metrics.clips import centroids, motion, right_tracks
from bezierdistill.noise import Stream, generator
from bezierdistill.reporting.films import write_film, write_images

WALLS = Walls((16, 16))


def squares(count: int, first: int = 1) -> np.ndarray:
    """Grey squares of 20 x 20 within 28 x 28, each of a grey of its own."""
    x = np.zeros((count, 28, 28), np.uint8)
    x[:, 4:24, 4:24] = np.arange(first, first + count)[:, None, None]
    return x


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Squares, a hundred of them to train on and forty to judge, in two classes."""
    file = tmp_path_factory.mktemp("digits") / "squares.npz"
    own, held = squares(100, 40), squares(40, 200)
    labels, of_held = np.arange(100) % 2, np.arange(40) % 2
    np.savez(file, train_images=own, test_images=held, train_labels=labels, test_labels=of_held)
    return str(file)


def films(count: int, frames: int = 4, colour: bool = False) -> np.ndarray:
    """Clips of random grey or coloured frames of 6 x 8."""
    shape = (count, frames, 6, 8, 3) if colour else (count, frames, 6, 8)
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def test_bounces_are_those_of_a_ball_that_is_followed_step_by_step() -> None:
    room, start, velocity = 6.0, torch.tensor([1.5, 5.75, 0.25]), torch.tensor([1.25, 2.0, -1.75])
    for ball in range(3):
        place, speed = float(start[ball]), float(velocity[ball])
        for k in range(40):
            told = reflected(start[ball] + k * velocity[ball], torch.tensor(room))
            assert float(told) == pytest.approx(place, abs=1e-4)
            place += speed
            if not 0 <= place <= room:
                place, speed = (-place if place < 0 else 2 * room - place), -speed


def test_centroids_of_frames_are_the_tracks_to_a_rounding_error() -> None:
    draws = generator(3, Stream.JUDGE)
    boxes = torch.zeros(50, WALLS.box, WALLS.box, dtype=torch.float64)
    boxes[:, 2:8, 2:8] = torch.rand(50, 6, 6, dtype=torch.float64, generator=draws)
    places = WALLS.tracks(*WALLS.draw(50, draws), 8)
    frames = WALLS.render(boxes, places)
    found = centroids(frames[:, :, None], faint=0.0)
    assert torch.allclose(found, places + (WALLS.box - 1) / 2, atol=1e-9)
    assert torch.allclose(frames.sum((2, 3)), boxes.sum((1, 2))[:, None].expand(-1, 8))


def test_tracks_are_right_at_the_known_speed_and_walls_alone() -> None:
    start, velocity = WALLS.draw(300, generator(0, Stream.JUDGE))
    middle, low, high = (WALLS.box - 1) / 2, *WALLS.speeds

    def right(places: torch.Tensor) -> float:
        return float(right_tracks(places + middle, WALLS).double().mean())

    own = WALLS.tracks(start, velocity, 8)
    assert velocity.norm(dim=1).min() >= low
    assert velocity.norm(dim=1).max() <= high
    assert right(own) == 1
    assert right(own[:, :1].expand(-1, 8, -1)) == 0  # stands still
    assert right(own[:, torch.tensor([3, 0, 6, 1, 7, 4, 2, 5])]) == 0  # frames in another order
    assert right(WALLS.tracks(start, 3 * velocity, 8)) < 0.2
    through = start[:, None] + velocity[:, None] * torch.arange(8)[:, None]  # no walls
    bounced = ((through < -1) | (through > WALLS.room + 1)).flatten(1).any(1)
    assert bounced.double().mean() > 0.5
    assert not right_tracks(through[bounced] + middle, WALLS).any()
    assert right(own + 0.2) == 1
    assert not right_tracks(own.where(own > 1, torch.nan), WALLS).all()  # black frames


def test_the_motion_ratio_is_what_arithmetic_says() -> None:
    ramp = torch.arange(8.0)[None, :, None, None, None] * torch.rand(5, 1, 1, 4, 4)
    found = motion_ratio(ramp / 2, ramp)
    assert found.ratio == pytest.approx(0.5)
    assert found.quantiles == pytest.approx([q / 2 for q in found.reference])
    held = ramp[:, torch.arange(8) // 2]  # every frame twice: four of seven steps stand still
    assert motion_ratio(held, ramp).ratio == pytest.approx(3 / 7)
    assert torch.allclose(motion(ramp), ramp[:, 1].flatten(1).mean(1))
    with pytest.raises(UserError, match="stand still"):
        motion_ratio(ramp, ramp[:, :1].expand(-1, 8, -1, -1, -1))


def test_differences_see_motion_and_no_background(digits: str) -> None:
    data = load_data(f"bouncing:{digits}")
    judge = ClipJudge(Evaluator(data))
    test = data.scaling.encode(data.scaling.decode(data.real(40, 0, "test")))
    same = judge(test)
    assert same.differences.value == pytest.approx(0, abs=1e-6)
    assert same.frames.value == pytest.approx(0, abs=1e-6)
    assert same.motion.ratio == 1
    assert same.tracks == same.tracks_real == 1
    lighter = judge(test + 0.5)
    assert lighter.differences.value == pytest.approx(0, abs=1e-6)
    assert lighter.frames.value > 0.1
    still = judge(test[:, :1].expand(-1, 8, -1, -1))
    assert (still.motion.ratio, still.tracks) == (0, 0)
    assert still.differences.value > 2 * still.differences.floor
    assert judge(test, against=test[:, ::2].repeat_interleave(2, 1)).motion.ratio > 1


def test_digits_kept_are_those_of_one_class_in_all_frames() -> None:
    from bezierdistill.metrics import ClassifierFeatures
    from bezierdistill.metrics.clips import kept

    classifier = ClassifierFeatures((1, 8, 8), 2).eval()
    frames = torch.randn(6, 3, 1, 8, 8)
    same = frames[:, :1].expand(-1, 3, -1, -1, -1)
    assert kept(same, classifier).all()
    found = classifier.logits(frames.flatten(0, 1)).argmax(1).reshape(6, 3)
    assert kept(frames, classifier).tolist() == [len(set(row)) == 1 for row in found.tolist()]


def test_no_digit_that_is_trained_on_is_in_a_clip_that_judges(digits: str) -> None:
    data = load_data(f"bouncing:{digits}")
    assert isinstance(data, BouncingData)
    greys = [set(x.max((1, 2, 3)).tolist()) for x in (data.train, data.valid, data.test)]
    assert all(len(own) for own in greys)
    assert not greys[0] & greys[1] | greys[0] & greys[2] | greys[1] & greys[2]
    assert greys[2] == set(range(200, 240))
    assert (data.train.max((1, 2, 3)) % 2 == data.given["train"]).all()  # labels are theirs
    assert (data.test.max((1, 2, 3)) % 2 == data.given["test"]).all()


def test_clips_are_a_function_of_the_seed(digits: str) -> None:
    first = load_data(f"bouncing:{digits}")
    assert isinstance(first, ArrayData)
    x = squares(9)
    own, again, other = (bounce(x, WALLS, 8, generator(seed, Stream.TRAIN)) for seed in (1, 1, 2))
    assert (own == again).all()
    assert (own != other).any()
    unwrap(load_data).__globals__["_load"].cache_clear()
    anew = load_data(f"bouncing:{digits}")
    assert isinstance(anew, ArrayData)
    assert anew is not first
    assert anew.fingerprint == first.fingerprint


def test_frames_sizes_and_two_digits(digits: str) -> None:
    data = load_data(f"bouncing:{digits}@5x32x24")
    assert (data.shape, data.classes) == ((5, 32, 24), 2)
    both = load_data(f"bouncing:{digits}@two")
    assert (both.shape, both.classes) == ((8, 16, 16), 0)
    assert (
        both.real(40, 0, "test").mean() > load_data(f"bouncing:{digits}").real(40, 0, "test").mean()
    )
    assert ClipJudge(Evaluator(both))(both.real(40, 0, "test")).tracks is None
    assert load_data(f"bouncing:{digits}@8x8").shape == (8, 8, 8)  # a view of its frames
    assert load_data(f"bouncing:{digits}@crop12x12@class1").shape == (8, 12, 12)


def test_first_frames_are_conditions_and_frames_are_images(digits: str) -> None:
    data, frames = load_data(f"bouncing:{digits}@first"), load_data(f"bouncing:{digits}@frames")
    states, given = data.real(10, 0, "test"), data.conditions(10, 0, "test")
    assert given is not None
    assert data.condition_size == 256
    assert torch.equal(given, states[:, 0].flatten(1))
    clips = load_data(f"bouncing:{digits}")
    assert isinstance(frames, ArrayData)
    assert isinstance(clips, ArrayData)
    assert (frames.shape, frames.count("test"), frames.classes) == ((1, 16, 16), 320, 2)
    assert (frames.test == clips.test.reshape(320, 16, 16)).all()
    assert (frames.given["test"] == clips.given["test"].repeat(8)).all()


@pytest.mark.parametrize("colour", [False, True])
def test_units_of_clips_come_back(colour: bool) -> None:
    x = films(3, colour=colour)
    scaling = clip_scaling(x)
    states = scaling.encode(x)
    assert states.shape == (3, 12 if colour else 4, 6, 8)
    assert (scaling.decode(states) == x).all()
    frames = scaling.frames(states)
    assert frames.shape == (3, 4, 3 if colour else 1, 6, 8)
    whole = x if colour else x[..., None]
    assert torch.equal(((frames + 1) * 127.5).round().byte(), torch.from_numpy(whole).movedim(4, 2))
    scaling.check(states.shape[1:])
    with pytest.raises(UserError):
        Scaling(layout="fhwc").check((4, 6, 8))


def save_gif(path: Path, x: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_film(path, x if x.ndim == 4 else x[..., None].repeat(3, -1), "GIF")


def test_gifs_come_back_as_they_were_written(tmp_path: Path) -> None:
    x = films(70)
    x[0, 2] = x[0, 1]  # writers leave out a frame that is like the one before
    x[1, 1:] = x[1, 0]
    x[1, 3] = 9
    for k, film in enumerate(x):
        save_gif(tmp_path / ("odd" if k % 2 else "even") / f"{k:03d}.gif", film)
    data = load_data(f"clips:{tmp_path}")
    assert isinstance(data, ArrayData)
    assert (data.shape, data.class_names) == ((4, 6, 8), ("even", "odd"))
    found = read_clips(tmp_path).x["train"]
    assert (found == np.concatenate([x[::2], x[1::2]])).all()
    assert (read_samples(tmp_path, data)[0] == found).all()
    found[0] = found[0, 0]  # the whole film stands still
    write_images(tmp_path / "folder", found[..., None].repeat(3, -1))
    assert (read_clips(tmp_path / "folder").x["train"] == found).all()


def test_sequences_have_their_frames_in_the_order_of_numbers(tmp_path: Path) -> None:
    x = films(2, 11, colour=True)
    for k, film in enumerate(x):
        for number, frame in enumerate(film):
            file = tmp_path / f"clip{k}" / f"{number}.png"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(frame).save(file)
    (tmp_path / "clip0" / "notes.txt").write_text("no frame")
    assert (read_clips(tmp_path).x["train"] == x).all()


def test_arrays_of_films_are_clips(tmp_path: Path) -> None:
    x = films(80, colour=True)
    np.savez(tmp_path / "films.npz", x=x)
    data = load_data(f"clips:{tmp_path / 'films.npz'}")
    assert (data.shape, data.scaling.layout) == ((12, 6, 8), "fhwc")
    assert (data.scaling.decode(data.real(5, 0, "test")).shape) == (5, 4, 6, 8, 3)


def longer(path: Path) -> None:
    save_gif(path / "a.gif", films(1)[0])
    save_gif(path / "b.gif", films(1, 5)[0])


def wider(path: Path) -> None:
    save_gif(path / "a.gif", films(1)[0])
    save_gif(path / "b.gif", films(1)[0][:, :, :4])


def cut(path: Path) -> None:
    save_gif(path / "a.gif", films(1)[0])
    whole = (path / "a.gif").read_bytes()
    (path / "a.gif").write_bytes(whole[: len(whole) // 2])


def single(path: Path) -> None:
    save_gif(path / "a.gif", films(1, 1)[0])


def odd_array(path: Path) -> None:
    np.savez(path / "x.npz", x=np.zeros((80, 7)))


@pytest.mark.parametrize(
    ("make", "data", "message"),
    [
        (longer, "clips:{}", "b.gif has 5 frames, .*a.gif 4: cut them"),
        (wider, "clips:{}", "b.gif is 4 x 6, .*a.gif 8 x 6: resize"),
        (cut, "clips:{}", "a.gif cannot be read as a GIF: it is cut short"),
        (single, "clips:{}", "a.gif has one frame, expected two"),
        (lambda path: None, "clips:{}", "holds no clip, expected .gif"),
        (lambda path: None, "clips:{}/none", "no clips at .*none: expected a folder"),
        (odd_array, "clips:{}/x.npz", "holds float64 samples of shape .7,., expected clips"),
        (odd_array, "bouncing:{}/x.npz", "float64 samples of shape .7,., and bouncing digits are"),
        (lambda path: None, "bouncing:{}", "is a folder, expected a .npz"),
        (lambda path: None, "bouncing:{}/none.npz", "no file .*none.npz"),
        (odd_array, "bouncing:{}/x.npz@1x16x16", "asks for 1 x 16 x 16, expected two frames"),
        (odd_array, "digits@first", "asks for frames of clips"),
    ],
)
def test_mistakes_are_one_line(
    make: Callable[[Path], None],
    data: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(tmp_path)
    assert main(["train", "--data", data.format(tmp_path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_motion_is_compared_without_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = films(5)
    half = x[:3] // 2
    np.savez(tmp_path / "a.npz", x=x)
    np.savez(tmp_path / "colour.npz", x=half[..., None].repeat(3, -1))
    save_gif(tmp_path / "half" / "one.gif", half[0])
    motions = [np.abs(np.diff(own.astype(float), axis=1)).mean((1, 2, 3)) for own in (x, half)]
    true = motions[1] / motions[0].mean()
    for name, ratio in (("colour.npz", true.mean()), ("half/one.gif", true[0]), ("half", true[0])):
        line = ["evaluate", "--samples", f"{tmp_path}/{name}", "--against", f"{tmp_path}/a.npz"]
        assert main([*line, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["clips"]["motion"]
        assert found["ratio"] == pytest.approx(ratio)
        assert found["reference"] == pytest.approx(
            np.quantile(motions[0] / motions[0].mean(), (0.05, 0.5, 0.95))
        )


@pytest.mark.parametrize(
    ("samples", "more", "message"),
    [
        ("five.npz", "--against x.npz", "five.npz holds clips of 5 frames of 8 x 6, x.npz holds"),
        (
            "x.npz",
            "--against wide.npz",
            "wide.npz holds clips of 4 frames of 6 x 8: expected clips",
        ),
        ("folder", "--against x.npz", "b.gif has 5 frames, folder/a.gif 4: cut them"),
        ("x.npz", "--against cut", "cut/a.gif cannot be read as a GIF: it is cut short"),
        ("x.npz", "--against cut/a.gif", "cut/a.gif cannot be read as a GIF: it is cut short"),
        ("x.npz", "--against a.mp4", "no clips at a.mp4: expected a folder of GIFs"),
        ("x.npz", "--against images.npz", "uint8 samples of shape (6, 8, 3), expected clips"),
        ("x.npz", "--against still.npz", "stand still, expected some that move"),
        ("x.npz", "", "data is None, expected --data; of clips --against"),
        ("x.npz", "--against x.npz --inputs x.npz", "inputs is x.npz and data None: expected"),
        ("x.npz", "--against x.npz --extractor classifier", "and data None: expected --data"),
        ("x.npz", "--against x.npz --seed 1", "seed is 1 and data None: expected --data"),
    ],
)
def test_motion_that_cannot_be_compared_is_one_line(
    samples: str,
    more: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    x = films(3)
    arrays = {"x": x, "five": films(3, 5), "wide": x.swapaxes(2, 3), "still": x[:, [0, 0, 0, 0]]}
    arrays["images"] = films(3, colour=True)[:, 0]
    for name, array in arrays.items():
        np.savez(tmp_path / f"{name}.npz", x=array)
    (tmp_path / "a.mp4").write_bytes(b"ftyp")
    longer(tmp_path / "folder")
    cut(tmp_path / "cut")
    line = ["evaluate", "--samples", samples, *more.split(), "--out", "scores.json"]
    assert main(line) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "scores.json").exists()


@pytest.fixture(scope="module")
def teacher(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flow of a few steps."""
    out = tmp_path_factory.mktemp("runs") / "teacher"
    small = ["--steps", "20", "--batch", "8", "--network.width", "16", "--network.depth", "1"]
    assert main(["train", "--data", f"bouncing:{digits}", "--out", str(out), *small]) == 0
    return out


def test_samples_are_films_and_are_judged(
    teacher: Path, digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = ["sample", "--model", str(teacher), "--count", "20"]
    array, folder, film = tmp_path / "a.npz", tmp_path / "films", tmp_path / "a.gif"
    for out, grid in ((array, "grid.gif"), (folder, "grid.png"), (film, "other.gif")):
        assert main([*sample, "--out", str(out), "--grid", str(tmp_path / grid)]) == 0
    x = np.load(array, allow_pickle=False)["x"]
    assert (x.shape, x.dtype) == ((20, 8, 16, 16), np.uint8)
    assert (read_clips(folder).x["train"] == x).all()
    for file, kind in ((tmp_path / "grid.gif", "GIF"), (tmp_path / "grid.png", "PNG")):
        with Image.open(file) as image:
            assert (image.format, getattr(image, "n_frames", 1)) == (kind, 8)
    with Image.open(film) as image:
        assert image.size == (80, 64)  # five columns
    capsys.readouterr()
    judged = ["evaluate", "--data", f"bouncing:{digits}", "--json"]
    assert main([*judged, "--samples", str(folder), "--against", str(array)]) == 0
    own = json.loads(capsys.readouterr().out)["clips"]
    assert own["motion"]["ratio"] == pytest.approx(1)
    assert own["against"] == "given"
    save_gif(tmp_path / "first.gif", x[0])
    given = ["--samples", str(array), "--against", str(tmp_path / "first.gif")]
    assert main([*judged, *given]) == 0
    beside = json.loads(capsys.readouterr().out)["clips"]["motion"]["ratio"]
    moved = motion(torch.from_numpy(x))
    assert beside == pytest.approx(float(moved.mean() / moved[0]), rel=1e-4)
    for samples in (folder, array):  # a copy of its inputs
        kept = ["--inputs", str(samples), "--back", str(array)]
        assert main([*judged, "--samples", str(samples), *kept]) == 0
        copy = json.loads(capsys.readouterr().out)["translation"]
        assert [copy[key] for key in ("pixel", "feature", "cycle")] == [0, 0, 0]
    assert main([*judged, "--samples", str(array), "--against", str(array), "--data", "digits"])
    assert main([*sample, "--out", str(tmp_path / "a.png")]) == 2
    assert "expected a .npz, a .gif or a folder" in capsys.readouterr().err


def test_no_picture_shows_frames_of_translations_as_colours(
    digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, out, array = f"bouncing:{digits}", tmp_path / "flow", tmp_path / "x.npz"
    small = ["--steps", "2", "--batch", "8", "--network.width", "16", "--network.depth", "1"]
    assert main(["train", "--data", name, "--domain", name, "--out", str(out), *small]) == 0
    data = load_data(name)
    np.savez(array, x=data.scaling.decode(data.real(8, 0, "test")))
    made = tmp_path / "y.npz"
    given = ["translate", "--model", str(out), "--input", str(array), "--out", str(made)]
    assert main([*given, "--grid", str(tmp_path / "grid.png")]) == 2
    assert "clips, which no grid shows" in capsys.readouterr().err
    assert not made.exists()
    assert main(given) == 0


def test_the_report_shows_clips_as_they_move(teacher: Path) -> None:
    assert main(["report", "--run", str(teacher)]) == 0
    page = (teacher / "report.html").read_text()
    pictures = re.findall(r'class="panel"><img[^>]*base64,([^"]+)"', page)
    assert len(pictures) >= 3  # real clips, two and forty passes
    for picture in pictures:
        assert b"acTL" in base64.b64decode(picture)  # an animated PNG


def test_the_page_shows_clips_as_they_move() -> None:
    from bezierdistill.app.answers import image, shown

    x = films(3)
    path = shown(clip_scaling(x).frames(clip_scaling(x).encode(x)), 2)
    assert isinstance(path, str)
    given = image("clips", "clips").postprocess(path)
    assert given is not None
    with Image.open(path) as picture:
        assert (picture.format, getattr(picture, "n_frames", 1)) == ("PNG", 4)
