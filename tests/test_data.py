"""Data: reversible scaling, disjoint splits, files that are read back or rejected, and the
distributions of the toys."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import kstest

from bezierdistill.data import BUILT_IN, ArrayData, Data, Scaling, load_data
from bezierdistill.data.base import Split
from bezierdistill.data.toys import TOYS, loops, loops_sampler, manifold_sampler
from bezierdistill.noise import Stream
from bezierdistill.noise import generator as stream_generator
from bezierdistill.records import from_json, to_json

LAYOUTS = {"flat": (80, 5), "hw": (80, 4, 6), "hwc": (80, 4, 6, 3), "chw": (80, 3, 4, 6)}
STATES = {"flat": (5,), "hw": (1, 4, 6), "hwc": (3, 4, 6), "chw": (3, 4, 6)}
RNG = np.random.default_rng(0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64, np.int32])
def test_scaling_is_reversible_and_standardises(layout: str, dtype: type) -> None:
    own = RNG.normal(size=LAYOUTS[layout]) * 20 + 100
    own = (
        np.clip(np.rint(own), 0, 255).astype(dtype)
        if dtype in (np.uint8, np.int32)
        else own.astype(dtype)
    )
    scaling = Scaling.measure(own)
    x = scaling.encode(own)
    assert scaling.layout == layout
    assert x.dtype == torch.float32
    assert tuple(x.shape[1:]) == STATES[layout]
    back = scaling.decode(x)
    if dtype == np.uint8:
        assert back.dtype == np.uint8
        np.testing.assert_array_equal(back, own)
        torch.testing.assert_close(scaling.encode(np.zeros_like(own)), torch.full_like(x, -1.0))
    else:
        np.testing.assert_allclose(back, own, rtol=1e-5, atol=1e-5)
        axes = [i for i in range(x.ndim) if i != 1]
        torch.testing.assert_close(x.mean(axes), torch.zeros(x.shape[1]), rtol=0, atol=1e-5)
        torch.testing.assert_close(
            x.std(axes, correction=0), torch.ones(x.shape[1]), rtol=1e-4, atol=0
        )
    assert from_json(to_json(scaling), Scaling, "scaling") == scaling


def test_bytes_are_exact_and_clamped() -> None:
    every = np.arange(256, dtype=np.uint8)[:, None]
    scaling = Scaling.measure(every)
    np.testing.assert_array_equal(scaling.decode(scaling.encode(every)), every)
    np.testing.assert_array_equal(
        scaling.decode(torch.tensor([[-9.0], [0.003], [9.0]])), [[0], [128], [255]]
    )


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_a_constant_component_is_encoded_as_zero_at_scale_one(constant: float) -> None:
    own = np.stack([RNG.normal(size=1000), np.full(1000, constant)], 1)
    scaling = Scaling.measure(own)
    assert scaling.scale[1] == 1.0
    assert scaling.encode(own)[:, 1].abs().max() <= 1e-6 * max(constant, 1)


@pytest.mark.parametrize("shape", [(80,), (80, 5, 4, 6), (80, 1, 1, 1, 1)])
def test_scaling_rejects_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(N, D\), \(N, H, W\)"):
        Scaling.measure(np.zeros(shape))


def load_array(path: Path, **arrays: np.ndarray) -> Data:
    np.savez_compressed(path / "data.npz", **arrays)  # pyright: ignore[reportArgumentType]
    return load_data(str(path / "data.npz"))


def rows(x: torch.Tensor | np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in np.ascontiguousarray(x)}


@pytest.mark.parametrize("shift", [(8.0,), (1.0, 5.0, 9.0)], ids=str)
@pytest.mark.parametrize(("low", "high"), [(0.0, 16.0), (0.0, None), (None, 16.0), (None, None)])
def test_clamping_states_is_what_saving_does(
    shift: tuple[float, ...], low: float | None, high: float | None
) -> None:
    scaling = Scaling(shift, tuple(4.0 + i for i in range(len(shift))), "chw", low, high)
    x = 5 * torch.randn(7, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        scaling.clamp(x), scaling.encode(scaling.decode(x)), rtol=0, atol=1e-5
    )
    assert bool((scaling.clamp(x) != x).any()) == (low is not None or high is not None)
    inside = x.clone().requires_grad_()
    scaling.clamp(inside).sum().backward()
    assert inside.grad is not None
    assert torch.equal(inside.grad, (scaling.clamp(x) == x).float())


@pytest.mark.parametrize("source", ["digits", "npz", "npz with test"])
def test_splits_are_disjoint_complete_and_deterministic(source: str, tmp_path: Path) -> None:
    own = RNG.normal(size=(200, 3)).astype(np.float32)
    held = RNG.normal(size=(70, 3)).astype(np.float32)

    def load() -> Data:
        if source == "digits":
            return load_data("digits")
        return (
            load_array(tmp_path, train_images=own, test_images=held)
            if source == "npz with test"
            else load_array(tmp_path, x=own)
        )

    data, again = load(), load()
    assert isinstance(data, ArrayData)
    sides = [rows(side) for side in (data.train, data.valid, data.test)]
    assert len(set.union(*sides)) == sum(map(len, sides))
    sizes = [len(side) for side in (data.train, data.valid, data.test)]
    whole = {"digits": 1797, "npz": 200, "npz with test": 270}[source]
    assert sum(sizes) == whole
    assert sizes[2] == (70 if source == "npz with test" else whole // 4)
    assert sizes[1] == (whole - sizes[2]) // 8
    if source == "npz with test":
        assert sides[2] == rows(held)
        assert sides[0] | sides[1] == rows(own)
    for split in ("train", "valid", "test"):
        side, count = getattr(data, split), data.count(split)
        assert count == len(side)
        x = data.real(len(side), 3, split)
        assert rows(x) == rows(data.scaling.encode(side))  # distinct, and no other
        assert torch.equal(x, again.real(len(side), 3, split))
        assert torch.equal(x[:10], data.real(10, 3, split))
        assert not torch.equal(x, data.real(len(side), 4, split))
        with pytest.raises(ValueError, match=f"{len(side) + 1} {split} samples"):
            data.real(len(side) + 1, 0, split)
    assert rows(data.batch(500, generator())[0]) <= rows(data.scaling.encode(data.train))
    assert torch.equal(data.batch(50, generator(1))[0], again.batch(50, generator(1))[0])


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "uint16", "int64", ">f4", ">i2", "longdouble"]
)
def test_npy_of_any_number_type_is_read_back(dtype: str, tmp_path: Path) -> None:
    own = np.rint(RNG.normal(size=(90, 4)) * 50 + 300).astype(dtype)
    np.save(tmp_path / "a.npy", np.asfortranarray(own))
    data = load_data(str(tmp_path / "a.npy"))
    assert isinstance(data, ArrayData)
    everything = np.concatenate(
        [
            data.scaling.decode(data.real(data.count(s) or 0, 0, s))
            for s in ("train", "valid", "test")
        ]
    )
    assert rows(np.rint(everything).astype(np.float64)) == rows(own.astype(np.float64))


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA", "mixed"])
def test_image_folders_are_read_in_the_order_of_their_names(mode: str, tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (70, 4, 6, 3), dtype=np.uint8)
    pixels[0 if mode in ("L", "P") else 40 :, ..., 1:] = pixels[
        0 if mode in ("L", "P") else 40 :, ..., :1
    ]  # those are grey
    for i, array in enumerate(pixels):
        file = tmp_path / f"class{i // 35}" / f"{i:03}.{'PNG' if i % 2 else 'png'}"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(array if i < 40 and mode not in ("L", "P") else array[..., 0]).convert(
            None if mode == "mixed" else mode
        ).save(file)
    data = load_data(str(tmp_path))
    assert isinstance(data, ArrayData)
    assert data.shape == ((1, 4, 6) if mode == "L" else (3, 4, 6))
    same = load_array(tmp_path, x=pixels[..., 0] if mode == "L" else pixels)
    for split in ("train", "valid", "test"):
        np.testing.assert_array_equal(getattr(data, split), getattr(same, split))


def image(path: Path, size: tuple[int, int]) -> None:
    Image.fromarray(RNG.integers(0, 256, size).astype(np.uint8)).save(path)


def with_nan(shape: tuple[int, ...]) -> np.ndarray:
    x = np.zeros(shape)
    x[7] = np.nan
    return x


def cut(path: Path, save: Callable[[Path, np.ndarray], object]) -> None:
    save(path, RNG.normal(size=(100, 3)))
    path.write_bytes(path.read_bytes()[:-50])


BAD = {
    "nan.npy": (
        lambda p: np.save(p, with_nan((100, 3))),
        r"NaN or infinite numbers in 1 rows \(first: row 7\)",
    ),
    "nan.npz": (lambda p: np.savez(p, x=with_nan((100, 2, 2))), "first: row 7"),
    "objects.npy": (lambda p: np.save(p, np.array([{}] * 100), allow_pickle=True), "objects.npy"),
    "objects.npz": (lambda p: np.savez(p, x=np.array([{}] * 100)), "objects.npz"),
    "words.npy": (lambda p: np.save(p, np.array([["a"]] * 100)), "expected integers or floats"),
    "complex.npy": (
        lambda p: np.save(p, np.zeros((100, 2), complex)),
        "complex128', expected integers, floats or text",
    ),
    "keys.npz": (lambda p: np.savez(p, z=np.zeros((100, 2))), r"holds \['z'\], expected x"),
    "testonly.npz": (
        lambda p: np.savez(p, test_images=np.zeros((100, 2))),
        "expected x, or train_images and test_images",
    ),
    "emptytest.npz": (
        lambda p: np.savez(p, train_images=np.zeros((100, 2)), test_images=np.zeros((0, 2))),
        "emptytest.npz",
    ),
    "shapes.npz": (
        lambda p: np.savez(p, train_images=np.zeros((100, 2)), test_images=np.zeros((100, 3))),
        "expected one shape",
    ),
    "scalar.npy": (lambda p: np.save(p, np.float64(5)), r"shape \(\)"),
    "nanscalar.npy": (lambda p: np.save(p, np.float64(np.nan)), "nanscalar.npy"),
    "vector.npy": (lambda p: np.save(p, np.zeros(100)), r"shape \(100,\)"),
    "empty.npy": (lambda p: np.save(p, np.zeros((100, 0))), r"shape \(100, 0\)"),
    "few.npy": (lambda p: np.save(p, np.zeros((63, 2))), "with N of 64 or more"),
    "cut.npz": (lambda p: cut(p, lambda q, x: np.savez(q, x=x)), "cut.npz cannot be read"),
    "cut.npy": (lambda p: cut(p, np.save), "cut.npy cannot be read"),
    "nothing.npy": (lambda p: p.write_bytes(b""), "nothing.npy cannot be read"),
    "text.npy": (lambda p: p.write_text("1 2 3"), "text.npy"),
    "sizes": (
        lambda p: [p.mkdir(), image(p / "a.png", (4, 6)), image(p / "b.png", (6, 4))],
        "resize them to one size",
    ),
    "noimage": (lambda p: p.mkdir(), "holds no image"),
    "broken": (
        lambda p: [p.mkdir(), (p / "a.png").write_bytes(b"\x89PNG\r\n")],
        "cannot be read as an image",
    ),
    "missing.npz": (lambda p: None, "missing.npz"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_rejected_in_one_line(name: str, tmp_path: Path) -> None:
    make, message = BAD[name]
    make(tmp_path / name)
    with pytest.raises(ValueError, match=message) as error:
        load_data(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_one_wrong_byte_anywhere_is_noticed_or_harmless(tmp_path: Path) -> None:
    own, path = RNG.normal(size=(66, 2)).astype(np.float32), tmp_path / "data.npz"
    before = load_array(tmp_path, x=own).real(10, 0, "train")
    content, messages = path.read_bytes(), []
    for position in range(0, len(content), 2):
        path.write_bytes(
            content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :]
        )
        try:
            assert torch.equal(load_data(str(path)).real(10, 0, "train"), before)
        except ValueError as error:
            messages.append(str(error))
    assert messages
    assert not [message for message in messages if "\n" in message]


@pytest.mark.parametrize(
    "name", ["swissroll", "manifold0", "manifold-3", "loops0", "loops_2", "Moons"]
)
def test_unknown_names_are_rejected_and_the_known_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=", ".join(BUILT_IN)):
        load_data(name)


def test_checkerboard_is_uniform_on_its_black_squares() -> None:
    x = TOYS["checkerboard"](40_000, generator())
    assert x.abs().max() < 2
    assert (x.floor().sum(1) % 2 == 0).all()
    _, counts = torch.unique(x.floor(), dim=0, return_counts=True)
    assert len(counts) == 8
    assert ((counts - 5000).abs() < 4.5 * math.sqrt(40_000 * 7 / 64)).all()
    for axis in range(2):
        assert kstest((x[:, axis] - x[:, axis].floor()).numpy(), "uniform").pvalue > 1e-3


def test_toys_have_their_shapes() -> None:
    x = TOYS["gaussians"](20_000, generator())
    angle = torch.arange(8) * math.pi / 4
    centres = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    residual = x - centres[torch.cdist(x, centres).argmin(1)]
    assert kstest((residual / 0.15).flatten().numpy(), "norm").pvalue > 1e-3
    x = TOYS["moons"](20_000, generator())
    upper, lower = x.norm(dim=1), (x - torch.tensor([1.0, 0.5])).norm(dim=1)
    nearest = torch.minimum((upper - 1).abs(), (lower - 1).abs())
    assert nearest.max() < 5 * 0.08
    assert (x.mean(0) - torch.tensor([0.5, 0.25])).abs().max() < 4 * float(
        x.std(0).max()
    ) / math.sqrt(20_000)
    x = TOYS["spirals"](20_000, generator())
    radius, squared = x.norm(dim=1), x.square().sum(1)
    assert abs(float(squared.mean()) - (2 + 2 * 0.05**2)) < 4 * float(squared.std()) / math.sqrt(
        20_000
    )  # uniform on the disc of radius 2
    assert (x.mean(0).abs() < 4 * x.std(0) / math.sqrt(20_000)).all()  # the arms are opposite
    turned = torch.atan2(x[:, 1], x[:, 0]) - 3 * math.pi * radius / 2
    assert torch.sin(turned)[radius > 0.5].abs().max() < 5 * 0.05 * math.hypot(
        1 / 0.5, 1.5 * math.pi
    )


@pytest.mark.parametrize("dimension", [1, 16, 24])
def test_manifold_is_one_distribution_for_everybody(dimension: int) -> None:
    torch.manual_seed(1)
    x = manifold_sampler(dimension)(2000, generator(5))
    torch.manual_seed(2)
    assert torch.equal(manifold_sampler(dimension)(2000, generator(5)), x)
    data = load_data(f"manifold{dimension}")
    assert data.shape == (dimension,)
    np.testing.assert_allclose(
        data.scaling.decode(data.batch(2000, generator(5))[0]), x.numpy(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("latent", [2, 3])
def test_manifold_sheets_have_the_dimension_of_their_latent(latent: int) -> None:
    x = manifold_sampler(16, latent)(3000, generator(1)).double()
    nearest = (
        torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").topk(3, largest=False).values
    )
    dimension = (
        1 / (nearest[:, 2] / nearest[:, 1]).log().mean()
    )  # two nearest neighbours (Facco et al. 2017)
    assert float(dimension) == pytest.approx(latent, abs=0.3)


@pytest.mark.parametrize("dimension", [2, 20, 33])
def test_loops_are_one_distribution_for_everybody(dimension: int) -> None:
    torch.manual_seed(1)
    x = loops_sampler(dimension)(2000, generator(5))
    torch.manual_seed(2)
    assert torch.equal(loops_sampler(dimension)(2000, generator(5)), x)
    data = load_data(f"loops{dimension}")
    assert load_data("loops").shape == (20,)
    assert data.shape == (dimension,)
    np.testing.assert_allclose(
        data.scaling.decode(data.batch(2000, generator(5))[0]), x.numpy(), rtol=1e-5, atol=1e-5
    )


def test_loops_are_closed_smooth_curves_and_samples_lie_on_them() -> None:
    angle = torch.linspace(0, 2 * math.pi, 2001, dtype=torch.float64)
    curves = [loops(20)(torch.full((2001,), k), angle) for k in range(8)]
    for curve in curves:
        assert curve[0].tolist() == pytest.approx(curve[-1].tolist(), abs=1e-6)
        steps = curve.diff(dim=0).norm(dim=1)
        assert steps.max() < 30 * 2 * math.pi / 2000  # no jump
        gap = (curve[:1000] - curve[1000:2000]).norm(dim=1).min()
        assert gap > 0.5  # it is a curve, not a point or a line walked twice
        coefficients = torch.fft.rfft(curve[:-1], dim=0).norm(dim=1)
        assert coefficients[4:].max() < 1e-5 * coefficients[1:4].min()
    whole = torch.cat(curves)
    x = loops_sampler(20)(4000, generator(1)).double()
    far, place = torch.cdist(x, whole, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert float(far.square().mean().sqrt()) == pytest.approx(0.02 * 19**0.5, rel=0.03)
    counts = torch.bincount(place // 2001, minlength=8)
    assert ((counts - 500).abs() < 4.5 * (4000 * 7 / 64) ** 0.5).all()


def test_loops_are_thin() -> None:
    """Around a sample one direction holds nearly all, and the whole fills many."""
    x = load_data("loops").real(20_000, 0, "train").double()
    shares = []
    for k in range(20):
        near = x[(x - x[k]).norm(dim=1).argsort()[:60]]
        values = torch.linalg.svdvals(near - near.mean(0)).square()
        shares.append(float(values[0] / values.sum()))
    assert np.median(shares) > 0.9
    values = torch.linalg.svdvals(x - x.mean(0)).square()
    assert values[0] / values.sum() < 0.4


@pytest.mark.parametrize("name", ["manifold", "loops", *TOYS])
def test_endless_data_is_standardised_and_its_splits_are_different_draws(name: str) -> None:
    data = load_data(name)
    x = {split: data.real(4000, 0, split) for split in ("train", "valid", "test")}
    assert (
        not rows(x["train"]) & rows(x["test"])
        | rows(x["valid"]) & rows(x["test"])
        | rows(x["train"]) & rows(x["valid"])
    )
    assert torch.equal(data.real(4000, 0, "test"), x["test"])
    assert data.count("train") is None
    y, _ = data.batch(20_000, generator(9))
    assert (
        y.mean(0).abs() < 6 / math.sqrt(20_000)
    ).all()  # two estimates differ: this mean and that of the scaling
    assert ((y.square().mean(0) - 1).abs() < 6 * y.square().std(0) / math.sqrt(20_000)).all()


@pytest.mark.parametrize("source", ["digits", "bytes"])
def test_principal_components_are_those_of_the_training_split(source: str, tmp_path: Path) -> None:
    if source == "digits":
        whole, name = load_data("digits"), "digits"
    else:
        noise = (
            RNG.normal(size=(300, 5)) @ RNG.normal(size=(5, 24)) * 25
            + RNG.normal(size=(300, 24))
            + 128
        )
        whole, name = (
            load_array(tmp_path, x=noise.clip(0, 255).astype(np.uint8).reshape(300, 4, 6)),
            str(tmp_path / "data.npz"),
        )
    data = load_data(f"{name}@pca5")
    assert isinstance(data, ArrayData)
    assert isinstance(whole, ArrayData)
    train = whole.train.reshape(len(whole.train), -1).astype(np.float64)
    centre, (_, stretch, axes) = (
        train.mean(0),
        np.linalg.svd(train - train.mean(0), full_matrices=False),
    )
    for split in ("train", "valid", "test"):
        expected = (getattr(whole, split).reshape(len(getattr(whole, split)), -1) - centre) @ axes[
            :5
        ].T
        found = getattr(data, split).astype(np.float64)
        signs = np.sign((expected * found).sum(0))  # an axis has two directions
        np.testing.assert_allclose(found * signs, expected, atol=2e-4 * np.abs(expected).max())
    orthonormal = np.linalg.lstsq(train - centre, data.train.astype(np.float64), rcond=None)[0]
    np.testing.assert_allclose(orthonormal.T @ orthonormal, np.eye(5), atol=1e-4)
    np.testing.assert_allclose(data.train.var(0), stretch[:5] ** 2 / len(train), rtol=1e-4)
    x = data.scaling.encode(data.train)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(5), rtol=1e-4, atol=0)
    torch.testing.assert_close(x.T @ x / len(x), torch.eye(5), rtol=0, atol=1e-3)
    assert data.shape == (5,)
    assert data.name == f"{name}@pca5"
    np.testing.assert_allclose(
        data.scaling.decode(data.scaling.encode(data.test)), data.test, rtol=1e-4, atol=1e-3
    )


def test_principal_components_follow_a_changed_file(tmp_path: Path) -> None:
    first = RNG.normal(size=(90, 4))
    load_array(tmp_path, x=first)
    name = f"{tmp_path / 'data.npz'}@pca2"
    before = load_data(name)
    assert load_data(name) is before  # decomposed once
    load_array(tmp_path, x=first * [1, 2, 3, 4])
    assert not torch.equal(load_data(name).real(10, 0, "test"), before.real(10, 0, "test"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits@pca65", "digits@pca65 asks for 65 principal components, digits has 64"),
        ("moons@pca2", "expected a file, a folder or digits"),
        ("loops@pca2", "expected a file, a folder or digits"),
        ("manifold@pca2", "expected a file, a folder or digits"),
        ("nowhere.npz@pca2", "no data called 'nowhere.npz'"),
        ("digits@pca0", "digits@pca0 asks for the view @pca0, expected @cropNxN, @NxN"),
        ("digits@pca", "digits@pca asks for the view @pca, expected"),
        ("@pca3", "no data called ''"),
    ],
)
def test_principal_components_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(name)


@pytest.mark.parametrize("name", ["digits", "manifold16", "loops", "moons"])
def test_rows_of_training_states_are_a_table(name: str) -> None:
    """Row i is a function of the seed, the stream and i alone."""
    data = load_data(name)
    x, cond = data.take(range(600), 3, Stream.SIMULATE)
    assert x.shape == (600, *data.shape)
    rows = np.array([599, 0, 255, 256, 7, 7])
    y, some = data.take(rows, 3, Stream.SIMULATE)
    assert torch.equal(y, x[torch.from_numpy(rows)])
    assert data.take(range(0), 3, Stream.SIMULATE)[0].shape == (0, *data.shape)
    far = np.array([10**12, 5])
    assert torch.equal(data.take(far, 3, Stream.SIMULATE)[0][1], x[5])
    for seed, stream in ((4, Stream.SIMULATE), (3, Stream.TRAIN)):
        other = data.take(range(600), seed, stream)[0]
        assert (x == other).flatten(1).all(1).double().mean() < 0.02
    if cond is None:
        assert some is None
        return
    assert some is not None
    assert torch.equal(some, cond[torch.from_numpy(rows)])
    assert isinstance(data, ArrayData)
    place = {row.tobytes(): k for k, row in enumerate(data.scaling.encode(data.train).numpy())}
    labels = [data.given["train"][place[row.tobytes()]] for row in x.numpy()]
    assert cond.argmax(1).tolist() == labels


def test_what_evaluates_is_never_what_training_drew() -> None:
    """Of endless data, whatever the seeds; valid belongs to the search."""
    data = load_data("manifold4")
    drawn = {
        (seed, split): rows(data.real(200, seed, split))
        for seed in (0, 1, 3)
        for split in ("train", "valid", "test")
    }
    for seed in (0, 1, 3):
        for stream in Stream:
            drawn |= {
                (seed, stream): rows(data.take(range(600), seed, stream)[0]),
                (seed, stream, "batch"): rows(data.batch(200, stream_generator(seed, stream))[0]),
            }
    assert len(set.union(*drawn.values())) == sum(map(len, drawn.values()))


def test_a_batch_does_not_scan_the_labels() -> None:
    class Labels(np.ndarray):
        scans = 0

        def max(self, *arguments: Any, **options: Any) -> Any:
            Labels.scans += 1
            return super().max(*arguments, **options)

    labels = (np.arange(300) % 7).view(Labels)
    x = RNG.normal(size=(300, 2)).astype(np.float32)
    given: dict[Split, np.ndarray] = {"train": labels, "valid": labels, "test": labels}
    data = ArrayData("rows", x, x, x, Scaling(), given)
    for _ in range(5):
        _, cond = data.batch(64, generator())
        assert cond is not None
        assert cond.shape == (64, 7)
        assert torch.equal(cond.sum(1), torch.ones(64))
    assert Labels.scans == 3  # one for each split, once


def test_frequencies_of_classes() -> None:
    x, labels = np.zeros((80, 2), np.float32), np.array([0] * 20 + [2] * 60)
    given: dict[Split, np.ndarray] = {"train": labels, "valid": labels, "test": labels}
    data = ArrayData("rows", x, x, x, Scaling(), given)
    assert data.frequencies == (0.25, 0.0, 0.75)
    assert data.class_names == ("0", "1", "2")
    moons = load_data("moons")
    assert (moons.frequencies, moons.class_names, moons.classes) == (None, (), 0)
