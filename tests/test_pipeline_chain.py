"""The chain of a pipeline: a teacher's folder, curves, a student, samples. It is stopped, damaged,
moved, and asked for what it cannot do."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bezierdistill.cli import main
from bezierdistill.data import load_data, read_array
from bezierdistill.errors import UserError
from bezierdistill.fields import Blend
from bezierdistill.files import read_tensors
from bezierdistill.models import load_model, pipeline, save_model
from bezierdistill.models.pipeline import PipelineModel, PipelineTeacher
from bezierdistill.noise import Stream
from bezierdistill.objectives import Alignment, CurveRegression
from bezierdistill.pipelines import opening, shared
from bezierdistill.simulation import Simulation
from bezierdistill.store import CurveStore
from bezierdistill.training.checkpoint import load_state

pytest.importorskip("peft")
pytest.importorskip("transformers")
tiny: Any = pytest.importorskip("tiny_pipelines")

pytestmark = pytest.mark.usefixtures("small_shards")
PROMPTS = ("a red boot", "a small blue bag", "a green handle", "boot")
SIZES = """--height 16 --width 16 --call '{"max_sequence_length": 32}' --accelerator cpu"""
CURVES = "--count 24 --batch 8 --steps 3 --degree 2 --accelerator cpu"
STEPS = "--steps 5 --batch 4 --loop.accelerator cpu --loop.save-every 2 --loop.warmup 0"
LEARN, WHOLE = f"--lora 2 {STEPS}", f"--full {STEPS}"


def run(line: str) -> None:
    """Run a command that must succeed."""
    assert main(shlex.split(line)) == 0


def fails(capsys: pytest.CaptureFixture[str], line: str) -> str:
    """The one line of a command that must fail with exit code 2."""
    capsys.readouterr()
    assert main(shlex.split(line)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock pipeline."""
    return tiny.save("sd3", tmp_path_factory.mktemp("base") / "sd3")


@pytest.fixture(scope="module")
def chain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teachers ``t`` with guidance 4 and ``t1`` without, curves ``c``, students ``s``, ``f`` of all
    weights and, aligned with the ends of the curves, ``a``: none of it stopped."""
    at = tmp_path_factory.mktemp("chain")
    (at / "prompts.txt").write_text("\n".join(PROMPTS))
    for name, guidance in (("t", 4), ("t1", 1)):
        run(
            f"import --source {base} --prompts {at}/prompts.txt --guidance {guidance}"
            f" --out {at}/{name} {SIZES}"
        )
    run(f"simulate --teachers {at}/t --out {at}/c {CURVES}")
    run(f"distill --curves {at}/c --out {at}/s {LEARN}")
    run(f"distill --curves {at}/c --out {at}/f {WHOLE}")
    run(f"distill --curves {at}/c --out {at}/a --align 5 {LEARN}")
    return at


@pytest.fixture(scope="module")
def opened(chain: Path) -> PipelineModel:
    """The teacher, which keeps its pipeline open for all tests."""
    return teacher_in(chain / "t")


@pytest.fixture(scope="module")
def images(chain: Path, opened: PipelineModel) -> Path:
    """Images that the pipeline has made."""
    run(f"sample --model {chain}/s --count 64 --passes 2 --out {chain}/images --accelerator cpu")
    return chain / "images"


def teacher_in(folder: Path) -> PipelineModel:
    model = load_model(folder)
    assert isinstance(model, PipelineModel)
    return model


def adapter(folder: Path) -> dict[str, Tensor]:
    return read_tensors(folder / "model.safetensors")[0]


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


# --- Stopped, and continued


class StoppedError(Exception):
    """What ends a run in a test."""


def half(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int, line: str) -> None:
    """Run a command up to the n-th call of a method."""
    true, calls = getattr(owner, name), iter(range(1, 10**6))

    def method(*arguments: Any, **more: Any) -> Any:
        if next(calls) == call:
            raise StoppedError
        return true(*arguments, **more)

    with patch.context() as context:
        context.setattr(owner, name, method)
        with pytest.raises(StoppedError):
            main(shlex.split(line))


def test_a_simulation_that_was_stopped_goes_on_to_the_same_store(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"simulate --teachers {chain}/t --out {tmp_path}/c {CURVES}"
    half(monkeypatch, Simulation, "curves", 3, line)
    assert len(list((tmp_path / "c").glob("shard-*.safetensors"))) == 2
    run(line)
    store, whole = CurveStore.open(tmp_path / "c"), CurveStore.open(chain / "c")
    assert len(store.shards) == 3
    assert store.digest == whole.digest


@pytest.mark.parametrize(
    ("owner", "name", "kept", "whole", "learn"),
    [
        (CurveRegression, "loss", "curves", "s", LEARN),
        (CurveRegression, "loss", "curves", "f", WHOLE),
        (Alignment, "losses", "alignment", "a", f"--align 5 {LEARN}"),
    ],
)
def test_a_training_that_was_stopped_goes_on_to_the_same_bits(
    owner: Any,
    name: str,
    kept: str,
    whole: str,
    learn: str,
    chain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = f"distill --curves {chain}/c --out {tmp_path}/s {learn}"
    half(monkeypatch, owner, name, 4, line)
    assert load_state(tmp_path / "s" / f"state-{kept}.safetensors", 5)[1] == 2
    run(line)
    assert_same(adapter(tmp_path / "s"), adapter(chain / whole))
    assert load_model(tmp_path / "s").card.digest == load_model(chain / whole).card.digest
    before = teacher_in(chain / "t").student(2).net.tensors()  # as all start
    moved = [float((before[n] - tensor).abs().max()) for n, tensor in adapter(chain / "s").items()]
    assert max(moved) > 1e-4


def test_a_chain_is_moved_between_its_stages(chain: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for name in ("t", "c"):
        shutil.copytree(chain / name, one / name)
    shutil.move(one, two)
    run(f"distill --curves {two}/c --out {two}/s {LEARN}")
    (two / "t").rename(two / "renamed")  # it is known by its digest
    run(f"distill --curves {two}/c --out {two}/again {LEARN}")
    student = load_model(two / "s")
    for model in (student, load_model(two / "again")):
        assert model.card.digest == load_model(chain / "s").card.digest
        assert np.array_equal(model.sample(4, 2), load_model(chain / "s").sample(4, 2))


# --- Two ranks


@pytest.mark.slow
@pytest.mark.parametrize("learn", [LEARN, WHOLE, f"{WHOLE} --loop.strategy fsdp"])
def test_two_ranks_make_the_store_of_one_and_end_with_the_same_weights(
    learn: str, chain: Path, tmp_path: Path
) -> None:
    where = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(Path(__file__).parent / "pipeline_child.py"), chain, tmp_path, learn],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(where)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        CurveStore.open(tmp_path / "c").manifest.shards
        == CurveStore.open(chain / "c").manifest.shards
    )
    first, second = (read_tensors(tmp_path / f"rank-{k}.safetensors")[0] for k in (0, 1))
    assert_same(first, second)
    # Ranks draw rows of their own: another student, as far from the start as that of one rank.
    own, alone = adapter(tmp_path / "s"), adapter(chain / ("s" if learn == LEARN else "f"))
    assert_same(own, first)
    before = teacher_in(chain / "t").student(2, full=learn != LEARN).net.tensors()
    steps = [
        torch.cat([(part[n] - before[n]).flatten() for n in sorted(before)])
        for part in (own, alone)
    ]
    assert float(steps[0].norm()) == pytest.approx(float(steps[1].norm()), rel=0.3)


# --- Bits that flip


def flips(path: Path, count: int) -> Iterator[tuple[int, int]]:
    """Places and bits, spread over a file from its first byte to its last."""
    size = path.stat().st_size
    for k in range(count):
        yield round(k * (size - 1) / max(1, count - 1)), k % 8


def after_flips(
    folder: Path, file: str, count: int, attempt: Callable[[], Any], capsys: Any
) -> Iterator[Any]:
    """What comes of an attempt with one bit flipped: a result, or None for exit code 2 and one
    line."""
    path = folder / file
    whole = path.read_bytes()
    for place, bit in flips(path, count):
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << bit
        path.write_bytes(spoilt)
        capsys.readouterr()
        made = attempt()
        if made is None:
            error = capsys.readouterr().err
            assert error.count("\n") == 1, (file, place, bit, error)
        yield made
    path.write_bytes(whole)


FILES = {
    "t/model.json": 60,
    "t/prompts/index.json": 12,
    "t/prompts/texts.json": 6,
    "t/prompts/rows-000000.safetensors": 8,
    "t/prompts/shared.safetensors": 8,
    "s/model.json": 60,
    "s/model.safetensors": 10,
}


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_is_refused_or_changes_nothing(
    file: str,
    chain: Path,
    opened: PipelineModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("t", "s"):
        shutil.copytree(chain / name, tmp_path / name)
    model = tmp_path / file.partition("/")[0]

    def attempt() -> bytes | None:
        out = tmp_path / "x.npz"
        code = main(
            shlex.split(
                f"sample --model {model} --count 1 --passes 2 --out {out} --accelerator cpu"
            )
        )
        assert code in (0, 2)
        return None if code else np.load(out)["x"].tobytes()

    true = attempt()
    assert true is not None
    made = list(after_flips(tmp_path, file, FILES[file], attempt, capsys))
    assert {one for one in made if one is not None} <= {true}
    assert made.count(None) >= (len(made) // 2 if file.endswith("model.json") else len(made))


@pytest.mark.parametrize("file", ["manifest.json", "shard-000001.safetensors"])
def test_curves_with_a_flipped_bit_are_refused_or_the_same(
    file: str, chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(chain / "c", tmp_path / "c")
    shutil.copytree(chain / "t", tmp_path / "t")
    true = CurveStore.open(chain / "c").digest

    def attempt() -> str | None:
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        line = f"distill --curves {tmp_path}/c --out {tmp_path}/s {LEARN} --steps 1"
        code = main(shlex.split(line))
        assert code in (0, 2)
        return None if code else CurveStore.open(tmp_path / "c").digest

    made = list(after_flips(tmp_path / "c", file, 5, attempt, capsys))
    assert None in made
    assert set(made) <= ({None, true} if file == "manifest.json" else {None})  # it has a copy


def test_latents_with_a_flipped_bit_are_refused(
    chain: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("t", "c"):
        shutil.copytree(chain / name, tmp_path / name)
    shutil.rmtree(tmp_path / "t" / "latents", ignore_errors=True)
    line = f"distill --curves {tmp_path}/c --align 1 --data {images} {LEARN} --steps 1"
    run(f"{line} --out {tmp_path}/s")
    (file,) = (tmp_path / "t" / "latents").iterdir()
    spoilt = bytearray(file.read_bytes())
    spoilt[-5] ^= 4
    file.write_bytes(spoilt)
    assert "differs from its digest" in fails(capsys, f"{line} --out {tmp_path}/other")


def test_a_changed_base_model_is_refused(
    base: Path, chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(base, tmp_path / "sd3")
    made = import_line(tmp_path / "sd3", chain / "prompts.txt", tmp_path / "t")
    run(made)
    run(f"sample --model {tmp_path}/t --count 1 --passes 2 --out {tmp_path}/x.npz")
    file = tmp_path / "sd3" / "transformer" / "diffusion_pytorch_model.safetensors"
    spoilt = bytearray(file.read_bytes())
    spoilt[-2] ^= 1  # the last weight's
    gc.collect()  # what was opened is closed
    file.write_bytes(spoilt)
    told = fails(capsys, f"sample --model {tmp_path}/t --count 1 --passes 2 --out {tmp_path}/y.npz")
    assert f"sd3 is another pipeline than that of {tmp_path}/t (digest" in told
    assert not (tmp_path / "y.npz").exists()


def import_line(source: Path | str, prompts: Path, out: Path, more: str = "") -> str:
    return f"import --source {source} --prompts {prompts} --out {out} {SIZES} {more}"


# --- One copy of the weights


def weight(model: Any) -> Tensor:
    """A weight of a model's transformer that has an adapter beside it, where there are any."""
    layer = model.net.module.transformer_blocks[0].attn.to_q
    return getattr(layer, "base_layer", layer).weight


def test_teachers_and_students_share_one_copy_of_the_weights(
    chain: Path, opened: PipelineModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[int] = []
    true = CurveRegression.loss

    def loss(self: Any, net: Any, *rest: Any) -> Tensor:
        layer = net.module.transformer_blocks[0].attn.to_q
        seen.append(layer.base_layer.weight.data_ptr())
        return true(self, net, *rest)

    monkeypatch.setattr(CurveRegression, "loss", loss)
    run(f"distill --curves {chain}/c --out {tmp_path}/s {LEARN}")
    models = [load_model(chain / name) for name in ("t", "t", "t1", "s", "s", "a")]
    places = {weight(model).data_ptr() for model in models} | {*seen}
    assert len(seen) == 5
    assert places == {weight(opened).data_ptr()}
    # Each has its own velocity nevertheless, whoever was asked before.
    x, times, cond = torch.randn(2, 4, 8, 8), torch.tensor([0.25, 0.5]), torch.tensor([[0.0], [1]])
    with torch.no_grad():
        first = [model.net(x, times, times, cond) for model in models]
        again = [model.net(x, times, times, cond) for model in reversed(models)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[3], first[4])
    distinct = (first[k] for k in (0, 2, 3, 5))
    assert len({made.numpy().tobytes() for made in distinct}) == 4


def test_adapters_of_students_that_are_gone_are_removed(chain: Path, opened: PipelineModel) -> None:
    def adapters() -> int:
        return len(opened.net.module.peft_config)

    student = load_model(chain / "s")
    gc.collect()
    load_model(chain / "s")
    before, expected = adapters(), student.sample(2, 2)
    for _ in range(3):
        load_model(chain / "s")
        gc.collect()
    assert adapters() == before
    assert np.array_equal(student.sample(2, 2), expected)


def test_the_text_encoders_are_freed_when_prompts_are_embedded(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    true = pipeline.open_pipeline

    def opened(*given: Any, **more: Any) -> Any:
        pipe = true(*given, **more)
        kept.extend(weakref.ref(pipe.components[f"text_encoder{end}"]) for end in ("", "_2", "_3"))
        return pipe

    for module in (pipeline, shared):
        monkeypatch.setattr(module, "open_pipeline", opened)
    teacher = PipelineTeacher(base, PROMPTS, 4.0, **tiny.SIZES["sd3"])
    gc.collect()
    assert len(kept) == 3
    assert [ref() for ref in kept] == [None] * 3
    assert teacher.net.loop.pipe.text_encoder is None
    assert teacher.with_prompts(["a blue boot"]).prompts.texts == ("a blue boot",)
    gc.collect()
    assert [ref() for ref in kept] == [None] * 6


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose transformer has 60 MB of weights, and nothing else many."""
    pipe, at = tiny.make("sd3"), tmp_path_factory.mktemp("wide")
    settings = {**pipe.transformer.config}
    settings |= {"num_attention_heads": 8, "attention_head_dim": 64, "caption_projection_dim": 512}
    torch.manual_seed(0)
    pipe.register_modules(transformer=type(pipe.transformer).from_config(settings))
    pipe.save_pretrained(at / "sd3", safe_serialization=True)
    (at / "prompts.txt").write_text("\n".join(PROMPTS))
    return at


def alive() -> int:
    """Bytes of all tensors that can be reached."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def test_no_stage_holds_a_second_copy_of_the_transformer(
    wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, peaks = alive(), dict[str, int]()

    def watch(owner: Any, name: str) -> None:
        true = getattr(owner, name)

        def method(*given: Any, **more: Any) -> Any:
            made = true(*given, **more)
            peaks[owner.__name__] = max(peaks.get(owner.__name__, 0), alive() - before)
            return made

        monkeypatch.setattr(owner, name, method)

    for owner, name in ((Simulation, "curves"), (CurveRegression, "loss"), (Alignment, "loss")):
        watch(owner, name)
    run(import_line(wide / "sd3", wide / "prompts.txt", wide / "t", "--guidance 4"))
    run(f"simulate --teachers {wide}/t --out {wide}/c {CURVES} --count 8")
    few = "--steps 1 --align 1 --batch 1 --loop.checkpoint true"  # of activations
    run(f"distill --curves {wide}/c --out {wide}/s {LEARN} {few}")
    size = (wide / "sd3" / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert size > 40e6
    assert len(peaks) == 3
    for peak in peaks.values():
        assert 0.99 * size < peak < 1.3 * size


# --- What cannot be


def spoil(base: Path, at: Path, name: str, change: Callable[[Path], object]) -> None:
    shutil.copytree(base, at / name)
    change(at / name)


def reindex(**entries: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = folder / "model_index.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))

    return change


def epsilon(folder: Path) -> None:
    told = {"_class_name": "DDPMScheduler", "prediction_type": "epsilon"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(told))


CODE = "open('ran', 'w')"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (reindex(unet=["diffusers", "UNet2DModel"]), "imported without --prompts"),
        (
            lambda at: (at / "model_index.json").write_text(
                '{"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}'
            ),
            "imported without --prompts",
        ),
        (epsilon, "epsilon model is imported without --prompts"),
        (
            lambda at: (at / "transformer" / "more.bin").write_bytes(b"x"),
            "may be pickled, which is not read",
        ),
        (
            lambda at: (at / "vae" / "own.py").write_text(CODE),
            "is code, which is not run",
        ),
        (
            lambda at: (at / "pipeline.py").write_text(CODE),
            "is code, which is not run",
        ),
        (reindex(vae=["own_code", "Own"]), "takes its vae from 'own_code', which is code"),
        (reindex(_class_name=["pipeline", "Own"]), "names no pipeline"),
        (reindex(_class_name="Own"), "this diffusers does not have"),
        (
            reindex(transformer_2=["diffusers", "SD3Transformer2DModel"]),
            "has a transformer_2 as well",
        ),
        (lambda at: (at / "model_index.json").unlink(), "has no model_index.json"),
        (lambda at: (at / "model_index.json").write_text("{"), "model_index.json"),
        (
            lambda at: shutil.rmtree(at / "vae"),
            "cannot be loaded as a StableDiffusion3Pipeline",
        ),
        (
            lambda at: next((at / "transformer").glob("*.safetensors")).write_bytes(b"x" * 99),
            "cannot be loaded as a StableDiffusion3Pipeline",
        ),
    ],
)
def test_folders_that_are_no_safe_pipeline_are_refused(
    change: Any,
    message: str,
    base: Path,
    chain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(base, tmp_path, "bad", change)
    monkeypatch.chdir(tmp_path)
    loaded: list[Any] = []
    if "cannot be loaded" not in message:  # it is refused before anything is
        monkeypatch.setattr(torch.nn.Module, "eval", lambda self: loaded.append(type(self)))
    told = fails(capsys, import_line(tmp_path / "bad", chain / "prompts.txt", tmp_path / "t"))
    assert message in told
    assert not loaded
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_a_pipeline_of_two_transformers_is_refused(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.save("wan22", tmp_path / "wan22")
    line = import_line(tmp_path / "wan22", chain / "prompts.txt", tmp_path / "t", "--frames 9")
    assert "has a transformer_2 as well, which takes over in the middle" in fails(capsys, line)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"", "is empty, expected a prompt a line"),
        ("p.txt", b" \n\n", "is empty, expected a prompt a line"),
        ("p.txt", b"a boot\n\xff\xfe", "is no text"),
        ("p.txt", b"a" * 20_001, "line 1 of"),
        ("p.jsonl", b'{"prompt": "a"}\n{', "line 2 of"),
        ("p.jsonl", b'{"caption": "a"}', 'has no "prompt"'),
        ("p.jsonl", b'{"prompt": 3}', 'has no "prompt"'),
        ("p.jsonl", b"[]", 'has no "prompt"'),
        ("p.jsonl", b"[" * 100_000, "line 1 of"),
        ("missing.txt", None, "no prompts at"),
    ],
)
def test_files_that_hold_no_prompts_are_refused(
    name: str,
    content: bytes | None,
    message: str,
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert message in fails(capsys, import_line(base, tmp_path / name, tmp_path / "t"))
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--height 17", "refuses the call"),
        ("--height 0", "height is 0"),
        ("--frames 5", "num_frames is no argument of a StableDiffusion3Pipeline"),
        ("--call '{'", "call is no JSON"),
        ("""--call '{"max_sequence_length": NaN}'""", "call is no JSON (it has no NaN)"),
        ("""--call '{"guidance_scale": 3}'""", "refuses the call"),
        ("--call '[1]'", "call is [1], expected arguments by name"),
        ("""--call '{"depth": 3}'""", "depth is no argument of a StableDiffusion3Pipeline"),
        ("""--call '{"latents": 3}'""", "latents is no argument"),
        ("""--call '{"max_sequence_length": "x"}'""", "refuses the call"),
        ("--guidance x", "argument --guidance"),
        ("--guidance nan", "guidance is nan"),
        (
            "--prediction velocity",
            "prediction is given, expected none: a pipeline's own loop says it",
        ),
        ("--dtype float8", "argument --dtype"),
    ],
)
def test_calls_that_a_pipeline_does_not_take_are_refused(
    more: str,
    message: str,
    base: Path,
    chain: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = f"import --source {base} --prompts {chain}/prompts.txt --out {tmp_path}/t --width 16"
    line += " --accelerator cpu" + ("" if "--height" in more else " --height 16")
    assert message in fails(capsys, f"{line} {more}")
    assert not (tmp_path / "t").exists()


def test_a_name_on_the_hub_needs_a_network(
    chain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def download(name: str, **given: Any) -> str:
        assert not any("bin" in pattern or "*.py" in pattern for pattern in given["allow_patterns"])
        raise ConnectionError("no\nroute to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for name, told in {
        "owner/model": "owner/model is no folder here, and the hub cannot be reached",
        "no/such/folder": "no/such/folder is no folder, expected a pipeline's",
        "/nowhere/model": "/nowhere/model is no folder, expected a pipeline's",
    }.items():
        assert told in fails(capsys, import_line(name, chain / "prompts.txt", tmp_path / "t"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("", "expected its rank, such as --lora 16"),
        ("--lora 0", "expected its rank, such as --lora 16"),
        ("--lora -1", "lora is -1, expected 0 or more"),
        ("--targets to_q", "without --lora"),
        ("--lora 2 --targets nowhere", "targets name nowhere, expected linear layers"),
        ("--lora 2 --targets transformer_blocks.0", "targets name transformer_blocks.0"),
        ("--lora 2 --objective end --passes 2", "expected --objective knots"),
        ("--lora 2 --loop.compile true", "asked to compile"),
        ("--lora 2 --loop.strategy fsdp", "or for fsdp"),
        ("--lora 2 --init scratch", "expected --init teacher"),
        ("--lora 2 --control-points 2 --objective knots", "control-points is 2"),
        ("--lora 2 --align 1 --data digits", "data digits are no images"),
        ("--lora 2 --data digits", "without --align"),
        ("--lora 2 --align 1 --align-features attn", "names 'attn'"),
    ],
)
def test_students_that_a_pipeline_cannot_have_are_refused(
    more: str, message: str, chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"distill --curves {chain}/c --out {tmp_path}/s --steps 1 --loop.accelerator cpu {more}"
    assert message in fails(capsys, line)
    assert not list(tmp_path.rglob("model.safetensors"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--out x.gif", "of a pipeline of images: expected a folder, a .npz or a .png file"),
        ("--out x.txt", "out is x.txt, for 2 samples of a pipeline of images"),
        ("--out x.npz --grid x.mp4", "grid is x.mp4, for 2 samples of a pipeline of images"),
    ],
)
def test_files_that_cannot_hold_samples_are_refused_before_sampling(
    more: str, message: str, chain: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(PipelineModel, "sample", lambda *_: pytest.fail("samples were drawn"))
    assert message in fails(capsys, f"sample --model {chain}/s --count 2 {more}")


def test_films_are_written_as_films(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, teacher = tiny.save("wan", tmp_path / "wan"), tmp_path / "t"
    teacher.mkdir()
    save_model(teacher, PipelineTeacher(base, PROMPTS, folder=teacher, **tiny.SIZES["wan"]))
    line = f"sample --model {teacher} --passes 2 --accelerator cpu"
    run(f"{line} --prompt boot --out {tmp_path}/one.gif")
    run(f"{line} --count 3 --out {tmp_path}/three.npz --grid {tmp_path}/three.gif")
    frames = read_array(tmp_path / "three.npz").shape[1]
    for name in ("one", "three"):
        with Image.open(tmp_path / f"{name}.gif") as film:
            assert getattr(film, "n_frames", 1) in (1, frames)  # like frames are stored once
    assert "expected a folder, a .npz or a .gif or .mp4 file" in fails(
        capsys, f"{line} --prompt boot --out {tmp_path}/one.png"
    )
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        assert "needs imageio" in fails(capsys, f"{line} --prompt boot --out {tmp_path}/one.mp4")
    else:
        run(f"{line} --prompt boot --out {tmp_path}/one.mp4")
        assert (tmp_path / "one.mp4").read_bytes()[4:8] == b"ftyp"


def test_images_of_another_size_are_refused(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    for k in range(64):
        Image.new("RGB", (24, 24), (k, 0, 0)).save(tmp_path / "images" / f"{k}.png")
    line = f"distill --curves {chain}/c --out {tmp_path}/s {LEARN} --align 1"
    assert "expected its own size" in fails(capsys, f"{line} --data {tmp_path}/images")


def test_a_map_becomes_knots(chain: Path, opened: PipelineModel) -> None:
    student = load_model(chain / "s")
    assert student.card.settings["objective"] == "knots"
    assert set(student.knots) == {2}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("simulate --teachers {t} --guidance-scale 2", "expected import --guidance"),
        ("simulate --teachers {t} --guidance-scale 1,3", "expected import --guidance"),
        ("simulate --teachers {t} {other} --weights 1.5,-0.5", "conditions of one meaning"),
        ("sample --model {s}", "passes is 1, the student knows the start time only"),
        ("sample --model {s} --passes 3", "passes is 3, the student"),
        ("sample --model {s} --passes 2 --solver heun", "expected the solver euler"),
        ("sample --model {t} --passes 3", "passes is 3, expected a multiple of 2"),
        ("sample --model {s} --passes 2 --labels 1", "labels is"),
        ("sample --model {s} --passes 2 --guidance-scale 2", "guidance_scale is 2"),
        ("sample --model {s} --passes 2 --prompt a --prompts b", "expected one of them"),
        ("sample --model {s} --passes 2 --prompts {s}/nowhere.txt", "no prompts at"),
        ("sample --model {own} --prompt boot", "is no pipeline and takes no prompt"),
    ],
)
def test_what_pipelines_do_not_take_is_refused(
    line: str,
    message: str,
    chain: Path,
    others: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = {name: chain / name for name in ("t", "s")}
    known |= {name: others / name for name in ("other", "own")}
    assert message in fails(capsys, f"{line.format(**known)} --out {tmp_path}/x.npz")
    assert not list(tmp_path.rglob("*.npz"))


@pytest.fixture(scope="module")
def others(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher ``other`` of other prompts, and ``own``, a network of ours."""
    at = tmp_path_factory.mktemp("others")
    (at / "prompts.txt").write_text("\n".join(reversed(PROMPTS)))
    run(import_line(base, at / "prompts.txt", at / "other"))
    run(
        f"train --data manifold --steps 2 --batch 8 --out {at}/own --network.width 8"
        " --network.depth 1 --loop.accelerator cpu"
    )
    return at


def test_what_is_not_installed_is_named(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install 'bezierdistill\\[pipelines\\]'"):
        PipelineTeacher(base, PROMPTS, 4.0, **tiny.SIZES["sd3"])


# --- Two teachers


def test_two_guidances_are_blended_to_a_third(
    base: Path, chain: Path, opened: PipelineModel, tmp_path: Path
) -> None:
    """With :math:`v_g = u + g (c - u)`, :math:`1.5 v_4 - 0.5 v_1 = v_{5.5}`, and an Euler step from
    noise ends on :math:`x_0 + v`."""
    run(
        f"simulate --teachers {chain}/t {chain}/t1 --weights 1.5,-0.5 --out {tmp_path}/c"
        " --count 8 --batch 4 --steps 1 --solver euler --degree 1 --accelerator cpu"
    )
    store = CurveStore.open(tmp_path / "c")
    curves, cond = store.take(torch.arange(8))
    assert cond is not None
    teachers = [opened, teacher_in(chain / "t1")]
    assert weight(teachers[0]).data_ptr() == weight(teachers[1]).data_ptr()
    strong, weak = (teacher.field(curves.source, 0.0, cond) for teacher in teachers)
    torch.testing.assert_close(curves.data, curves.source + 1.5 * strong - 0.5 * weak)
    assert store.manifest.passes == 8 * (2 + 1)
    blend = Blend([teacher.field for teacher in teachers], ((1.5,), (-0.5,)))
    torch.testing.assert_close(blend(curves.source, 0.0, cond), 1.5 * strong - 0.5 * weak)
    run(import_line(base, chain / "prompts.txt", tmp_path / "third", "--guidance 5.5"))
    third = teacher_in(tmp_path / "third").field(curves.source, 0.0, cond)
    torch.testing.assert_close(curves.data - curves.source, third, rtol=1e-4, atol=1e-4)
    assert float((third - strong).abs().max()) > 1e-2


# --- Alignment, half precision, checkpoints


def test_a_student_is_aligned_with_images_that_are_encoded_once(
    chain: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("t", "c"):
        shutil.copytree(chain / name, tmp_path / name)
    shutil.rmtree(tmp_path / "t" / "latents", ignore_errors=True)
    line = f"distill --curves {tmp_path}/c --align 2 --data {images} {LEARN}"
    run(f"{line} --out {tmp_path}/one")
    (file,) = (tmp_path / "t" / "latents").iterdir()
    kept = read_tensors(file)[0]["x"].clone()
    # Latents of the images, every one in its place: the encoder's modes, scaled as the decoder is.
    teacher = teacher_in(tmp_path / "t")
    vae = teacher.net.loop.pipe.vae
    data = load_data(str(images))
    pixels = data.scaling.decode(data.take(range(len(kept)), 0, Stream.TRAIN)[0])
    with torch.no_grad():
        z = vae.encode(torch.from_numpy(pixels).movedim(-1, 1).float() / 127.5 - 1).latent_dist
    expected = (z.mode() - vae.config.shift_factor) * vae.config.scaling_factor
    torch.testing.assert_close(kept, expected, rtol=1e-3, atol=1e-3)
    with monkeypatch.context() as patch:
        patch.setattr(type(vae), "encode", None)  # it is not asked again
        run(f"{line} --out {tmp_path}/two")
    assert_same(adapter(tmp_path / "one"), adapter(tmp_path / "two"))
    whole = adapter(chain / "s")
    assert any(not torch.equal(whole[n], part) for n, part in adapter(tmp_path / "one").items())


def test_a_chain_in_half_precision_has_adapters_in_single(
    base: Path, chain: Path, tmp_path: Path
) -> None:
    run(import_line(base, chain / "prompts.txt", tmp_path / "t", "--guidance 4 --dtype bfloat16"))
    run(f"simulate --teachers {tmp_path}/t --out {tmp_path}/c {CURVES} --count 8")
    run(f"distill --curves {tmp_path}/c --out {tmp_path}/s --align 2 {LEARN}")
    run(f"sample --model {tmp_path}/s --count 2 --passes 2 --out {tmp_path}/images")
    assert len(list((tmp_path / "images").glob("*.png"))) == 2
    student = teacher_in(tmp_path / "s")
    assert weight(student).dtype == torch.bfloat16
    assert {part.dtype for part in adapter(tmp_path / "s").values()} == {torch.float32}
    assert {part.dtype for part in student.net.tensors().values()} == {torch.float32}
    halves, wholes = (
        CurveStore.open(at / "c").take(torch.arange(8))[0] for at in (tmp_path, chain)
    )
    assert torch.equal(halves.source, wholes.source)
    error = (halves.data - wholes.data).norm() / (wholes.data - wholes.source).norm()
    assert 0 < float(error) < 0.3  # random weights under guidance make much of little


@pytest.mark.parametrize("more", ["", "--align 2"])
def test_activations_that_are_computed_again_give_the_same_student(
    more: str, chain: Path, tmp_path: Path
) -> None:
    line = f"distill --curves {chain}/c {more} {LEARN}"
    run(f"{line} --out {tmp_path}/kept")
    run(f"{line} --out {tmp_path}/again --loop.checkpoint true")
    kept, again = adapter(tmp_path / "kept"), adapter(tmp_path / "again")
    for name, part in kept.items():
        torch.testing.assert_close(again[name], part, rtol=1e-5, atol=1e-5)


def test_activations_are_computed_again_by_the_adapter_that_made_them(
    opened: PipelineModel,
) -> None:
    """Though the teacher, and another student, were asked between the pass and its gradient."""
    student, other = opened.student(2), opened.student(2)
    for k, net in enumerate((student.net, other.net)):
        generator = torch.Generator().manual_seed(k)
        drawn = {n: torch.randn(p.shape, generator=generator) for n, p in net.tensors().items()}
        net.load({name: 0.1 * part for name, part in drawn.items()})
    x, times = torch.randn(2, 4, 8, 8), torch.tensor([0.25, 0.5])
    cond = torch.tensor([[0.0], [1.0]])
    found: list[tuple[Tensor, ...]] = []
    for checkpoint in (False, True):
        if checkpoint:
            student.net.enable_gradient_checkpointing()
        made = student.net(x, times, times, cond)
        opened.net(x, times, times, cond)
        with torch.no_grad():
            other.net(x, times, times, cond)
        used = [part for part in student.net.parameters() if part.requires_grad]
        found.append(torch.autograd.grad(made.square().sum(), used, allow_unused=True))
    opened.net.module.disable_gradient_checkpointing()
    pairs = [(a, b) for a, b in zip(*found, strict=True) if a is not None]
    assert len(pairs) > 10
    for kept, again in pairs:
        torch.testing.assert_close(again, kept, rtol=1e-5, atol=1e-5)
    assert max(float(kept.abs().max()) for kept, _ in pairs) > 1e-3
