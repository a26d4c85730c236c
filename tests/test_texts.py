"""Texts as data: what files give, states and back, their judges by closed forms, and a joint
distribution that one pass keeps where a factorised step cannot."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bezierdistill as bd
from arena_rows import benchmark
from bezierdistill.cli import main
from bezierdistill.data import ArrayData, Scaling
from bezierdistill.errors import UserError
from bezierdistill.metrics.text import CharacterModel, TextJudge, counted, divergence, ngrams
from bezierdistill.networks.transformer import Transformer

LAW = {"abc": 0.4, "bca": 0.3, "cab": 0.2, "aaa": 0.1}  # three characters, of which one tells most
WORDS = ["a", "bab", "cabbage", "dad"] * 30


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def lines(of: list[str]) -> str:
    return "".join(f"{one}\n" for one in of)


def words(path: Path, of: list[str] = WORDS) -> str:
    return f"words:{write(path / 'words.txt', lines(of))}"


def texts(name: str) -> ArrayData:
    data = bd.load_data(name)
    assert isinstance(data, ArrayData)
    return data


@settings(deadline=None)
@given(st.lists(st.text("abz", max_size=6), min_size=1, max_size=9).filter(any))
def test_states_are_texts_again(found: list[str]) -> None:
    original = np.array(found)
    scaling = Scaling.measure(np.array([*found, "ab"]).astype("U6"))
    states = scaling.encode(original)
    assert states.shape == (len(found), original.dtype.itemsize // 4, len(scaling.alphabet))
    assert scaling.decode(states).tolist() == found
    assert scaling.decode(states + 0.3 * torch.rand(states.shape)).tolist() == found
    ones = scaling.encode(np.array(list(scaling.alphabet)))
    assert float(ones.mean()) == pytest.approx(0, abs=1e-6)
    assert float(ones.square().mean()) == pytest.approx(1, abs=1e-5)


def test_words_end_in_blanks_and_are_split(tmp_path: Path) -> None:
    data = texts(words(tmp_path))
    assert data.shape == (7, len(" abcdeg"))
    assert data.scaling.alphabet == " abcdeg"
    every = [*data.train, *data.valid, *data.test]
    assert sorted(every) == sorted(WORDS)
    short = texts(f"{words(tmp_path)}@3")
    assert short.shape == (3, 4)
    assert set(short.train) == {"a", "bab", "dad"}
    assert texts(f"{words(tmp_path)}@3@alphabet=a-f").scaling.alphabet == " abcdef"


def test_prose_is_cut_into_pieces(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one two\n\n  three\t" * 400)
    data = texts(f"text:{path}")
    whole = "one two three " * 400
    pieces = {whole[k : k + 64].rstrip() for k in range(0, len(whole), 64)}
    assert data.shape == (64, len(" ehnortw"))
    assert {*data.train, *data.valid, *data.test} <= pieces
    assert texts(f"text:{path}@20").shape[0] == 20


@pytest.mark.parametrize(
    ("content", "name", "told"),
    [
        (b"", "words:{}", "holds no text"),
        (b" \n\n", "text:{}", "holds no text"),
        (b"\xff\xfe\x00bad", "words:{}", "no text in UTF-8"),
        (b"aaaa\naa\n" * 99, "words:{}", "'a' again and again"),
        (b"a" * 9999, "text:{}", "'a' again and again"),
        (b"ab\n" + b"x" * 70, "words:{}", "words:PATH@10"),
        (b"ab\nc\x00d\n", "words:{}", "plain text"),
        (b"ab\nd\n" * 99, "words:{}@alphabet=a-c", "'d' in 'd'"),
        (b"ab\nd\n", "words:{}", "64 or more"),
        (b"ab\nd\n" * 99, "words:{}@pca3", "view of texts"),
        (None, "words:{}", "cannot be read"),
        (None, "text:", "cannot be read"),
    ],
)
def test_bad_files_end_in_one_line(
    content: bytes | None, name: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    out = tmp_path / "out"
    assert main(["train", "--data", name.format(path), "--out", str(out)]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert told in error[-1]
    assert len(error) == 1 or "left out" in error[0]
    assert not out.exists()


def test_a_scaling_of_texts_has_an_alphabet() -> None:
    with pytest.raises(UserError, match="rising"):
        Scaling(layout="tokens", alphabet="ba")
    with pytest.raises(UserError, match="of tokens alone"):
        Scaling(alphabet="ab")
    with pytest.raises(UserError, match="expected characters of 'ab'"):
        Scaling.tokens("ab").encode(np.array(["abc"]))
    with pytest.raises(UserError, match="does not fit"):
        Scaling.tokens("ab").check((4, 3))


def test_trigrams_and_their_divergence() -> None:
    codes = np.array([[0, 1, 2, 0], [0, 1, 2, 1]])
    assert ngrams(codes, 3, 3).tolist() == [[5, 15], [5, 16]]
    own, other = counted(ngrams(codes, 3, 3)), counted(ngrams(2 - codes, 3, 3))
    assert divergence(own, own) == pytest.approx(0)
    assert divergence(own, other) == pytest.approx(1)  # nothing in common: one bit


def test_a_character_model_is_a_distribution_and_that_of_long_texts() -> None:
    draws = np.random.default_rng(0)
    chain = np.array([[0.1, 0.8, 0.1], [0.3, 0.1, 0.6], [0.5, 0.25, 0.25]])
    codes = np.zeros((200, 200), np.int64)
    for k in range(1, 200):
        codes[:, k] = (draws.random((200, 1)) > chain[codes[:, k - 1]].cumsum(1)).sum(1)
    model = CharacterModel(codes, 3)
    for order in range(1, 6):
        grams = np.arange(3**order).reshape(-1, 3)
        assert model.probability(grams, order).sum(1) == pytest.approx(1)
    assert model.probability(np.array([[0, 1, 2]]), 2)[0] == pytest.approx(chain[0], abs=0.02)
    share = np.linalg.matrix_power(chain, 50)[0]
    rate = -(share[:, None] * chain * np.log(chain)).sum()
    assert math.log(model.perplexity(codes)) == pytest.approx(rate, abs=0.02)
    assert model.perplexity(np.full((50, 50), 0)) > 3.5  # worse than by chance: that is rare there


def test_the_judge_tells_learnt_from_held_out(tmp_path: Path) -> None:
    every = ["".join(letters) for letters in itertools.product("abcd", repeat=4)]
    data = texts(words(tmp_path, every))
    made = np.array([*data.train[:30], *data.test[:10], *data.valid[:10], *["a"] * 50])
    scaled = Scaling.tokens(" abcd")
    judge = TextJudge(ArrayData("x", data.train, data.valid, data.test, scaled))
    train = scaled.encode(data.train[:100])
    scores = judge(scaled.encode(made), train)
    assert (scores.train, scores.held_out, scores.valid) == (0.3, 0.2, 0.5)
    assert scores.distinct == 0.51
    assert scores.words is None
    assert scores.trigrams.value > 2 * scores.trigrams.floor
    assert scores.entropy.value < scores.entropy.floor
    assert judge(train, train).perplexity.ratio == 1


@torch.no_grad()
def test_a_transformer_without_places_knows_no_order() -> None:
    net = Transformer((5, 4), 32, 2, outputs=2)
    for weight in net.parameters():
        weight.normal_(0, 0.3)
    net.places.zero_()
    x, s, t = torch.randn(3, 5, 4), torch.rand(3), torch.rand(3)
    order = torch.randperm(5)
    assert net(x, s, t).shape == (3, 2, 5, 4)
    assert torch.allclose(net(x[:, order], s, t), net(x, s, t)[:, :, order], atol=1e-4)
    with pytest.raises(UserError, match="expects texts"):
        Transformer((1, 4, 4), 32)
    with pytest.raises(UserError, match="multiple of 32"):
        Transformer((5, 4), 33)


def correlation(shares: dict[str, float]) -> float:
    """Bits that the characters tell of each other: the sum of their entropies minus the joint."""

    def entropy(found: list[float]) -> float:
        return -sum(p * math.log2(p) for p in found if p)

    parts = [
        [sum(p for word, p in shares.items() if word[k] == c) for c in "abc"] for k in range(3)
    ]
    return sum(map(entropy, parts)) - entropy(list(shares.values()))


def shares_of(found: np.ndarray) -> dict[str, float]:
    own, counts = np.unique(found, return_counts=True)
    return dict(zip(own.tolist(), (counts / counts.sum()).tolist(), strict=True))


def variation(shares: dict[str, float], law: dict[str, float]) -> float:
    return sum(abs(shares.get(w, 0) - law.get(w, 0)) for w in shares.keys() | law.keys()) / 2


class ExactDenoiser(nn.Module):
    """The best network of masked diffusion: characters given those that are shown, by the law."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        ones = torch.eye(3)[torch.tensor([["abc".index(c) for c in word] for word in LAW])]
        prior = torch.tensor(list(LAW.values()))
        fits = torch.einsum("nlv,wlv->nw", x, ones) >= x.sum((1, 2))[:, None] - 1e-6
        behind = fits * prior
        return torch.einsum("nw,wlv->nlv", behind / behind.sum(1, keepdim=True), ones).log()


def test_characters_that_belong_together_stay_so_in_one_pass(tmp_path: Path) -> None:
    """A step of masked diffusion draws characters independently: it ends on the product of their
    marginals, of a known distance to the law. A student's characters all come from one noise."""
    product = {
        "".join(word): math.prod(
            sum(p for other, p in LAW.items() if other[k] == c) for k, c in enumerate(word)
        )
        for word in itertools.product("abc", repeat=3)
    }
    rival, x0 = benchmark("masked_diffusion"), torch.randn(20_000, 3, 3)
    decode = Scaling.tokens("abc").decode
    found = {
        k: shares_of(decode(rival.sample(ExactDenoiser(), torch.eye(3), 0, x0, k)))
        for k in (1, 256)
    }
    assert variation(found[1], LAW) == pytest.approx(variation(product, LAW), abs=0.02)
    assert variation(product, LAW) > 0.7
    assert correlation(found[1]) < 0.01
    assert variation(found[256], LAW) < 0.05  # it needs many passes

    data = words(tmp_path, [word for word, p in LAW.items() for _ in range(round(12_000 * p))])
    student = bd.run_recipe(
        bd.RecipeConfig(
            data,
            tmp_path / "run",
            1_000_000,
            batch=128,
            network=bd.NetworkConfig("mlp", 64, 3),
            loop=bd.LoopConfig(accelerator="cpu"),
        )
    )
    for passes in (1, 2):
        own = shares_of(student.sample(20_000, passes))
        assert variation(own, LAW) < 0.05, passes
        assert correlation(own) > 0.85 * correlation(LAW)


def test_a_transformer_of_texts_from_data_to_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = words(tmp_path), tmp_path / "run"
    small = ["--network.kind", "transformer", "--network.width", "32", "--network.depth", "1"]
    budget = ["--budget", "12000", "--batch", "16", "--loop.accelerator", "cpu"]
    assert main(["recipe", "--data", data, "--out", str(run), *small, *budget]) == 0
    made = {}
    for ending in ("txt", "npz"):
        out = run / f"a.{ending}"
        model = ["--model", str(run / "student"), "--count", "40"]
        assert main(["sample", *model, "--out", str(out)]) == 0
        scores = run / f"{ending}.json"
        arguments = ["--samples", str(out), "--data", data, "--out", str(scores)]
        assert main(["evaluate", *arguments]) == 0
        made[ending] = json.loads(scores.read_text())["text"]
    assert made["txt"] == made["npz"]
    assert made["txt"]["distinct"] > 0.1
    lines = (run / "a.txt").read_text().splitlines()
    assert len(lines) == 40
    assert set("".join(lines)) <= set(" abcdeg")
    capsys.readouterr()
    assert main(["report", "--run", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "The first texts of each" in page
    assert f"<td>{lines[1]}</td>" in page or lines[1] == ""
    from bezierdistill.app.generate import Draw  # it takes seconds to import
    from bezierdistill.app.run import open_run

    draw = Draw.of(open_run(run), "student", 0, 1, 8, [], 1.0, 4)
    few, more = (replace(draw, count=n).sampled(draw.model, 1, "euler")[0] for n in (8, 80))
    assert isinstance(few, np.ndarray)
    assert isinstance(more, np.ndarray)
    assert few.shape[1:] == more.shape[1:]
    assert few.shape[0] < more.shape[0]  # more lines
    bad = [["--out", "a.csv"], ["--out", str(run / "b.txt"), "--grid", str(run / "b.png")]]
    for wrong in bad:
        assert main(["sample", "--model", str(run / "student"), *wrong]) == 2
    long = write(run / "long.txt", "abcdefgh\n" * 20)
    assert main(["evaluate", "--samples", str(long), "--data", data]) == 2
    assert "up to 8 characters" in capsys.readouterr().err
