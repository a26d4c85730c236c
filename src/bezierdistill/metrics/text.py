r"""Judges of texts: which are words of the data, held out or not, and how likely their characters
are.

Trigrams are compared by the Jensen-Shannon divergence, which is finite without any smoothing. A
model of five characters says how likely a sample is: counts of the test split, interpolated after
Witten & Bell,

.. math:: p(c \mid h) = \frac{n(hc) + T(h)\, p(c \mid h')}{n(h) + T(h)},

where T(h) is the number of different characters after the history h, h' is h without its first
character, and a character without history is as likely as any of the alphabet at last. A low
perplexity alone is what a repetition has too, so it stands beside the entropy of trigrams.

Source: Witten & Bell 1991, *The zero-frequency problem*, IEEE Trans. Inf. Theory 37(4).
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
from torch import Tensor

from bezierdistill.data import ArrayData, Data
from bezierdistill.data.scaling import BLANK, character_codes
from bezierdistill.records import Score, TextScores

ORDER = 5  # characters of an n-gram, the last of which is told by the others


class Counts(NamedTuple):
    """n-grams as numbers in rising order, and how often each is there."""

    grams: np.ndarray
    counts: np.ndarray

    def of(self, grams: np.ndarray) -> np.ndarray:
        """How often n-grams are there."""
        place = np.searchsorted(self.grams, grams).clip(max=len(self.grams) - 1)
        return np.where(self.grams[place] == grams, self.counts[place], 0)


def ngrams(codes: np.ndarray, order: int, size: int) -> np.ndarray:
    """All n-grams within texts ``(N, L)`` of numbers below ``size``, each as one number,
    ``(N, L - order + 1)``.
    """
    width = codes.shape[1] - order + 1
    found = np.zeros((len(codes), max(width, 0)), np.int64)
    for k in range(order if width > 0 else 0):
        found = found * size + codes[:, k : k + width]
    return found


def counted(grams: np.ndarray) -> Counts:
    """Counts of n-grams."""
    return Counts(*np.unique(grams, return_counts=True))


def entropy(counts: np.ndarray) -> float:
    """Entropy of frequencies, in bits."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def divergence(a: Counts, b: Counts) -> float:
    """Jensen-Shannon divergence of two frequencies, from 0 to 1 bit."""
    grams = np.union1d(a.grams, b.grams)
    p, q = (own.of(grams) / own.counts.sum() for own in (a, b))
    return entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2


class CharacterModel:
    """How likely a character is after those before it.

    Args:
        codes: texts ``(N, L)`` of numbers below ``size``.
        size: characters of the alphabet.
        order: characters of the longest n-gram.
    """

    def __init__(self, codes: np.ndarray, size: int, order: int = ORDER) -> None:
        self.size, self.order = size, min(order, codes.shape[1])
        self.counts = [counted(ngrams(codes, k, size)) for k in range(1, self.order + 1)]
        self.after = [counted(own.grams // size) for own in self.counts]  # T of histories
        self.before = [
            Counts(own.grams, np.add.reduceat(all_.counts, self._starts(all_.grams // size)))
            for own, all_ in zip(self.after, self.counts, strict=True)
        ]

    @staticmethod
    def _starts(rising: np.ndarray) -> np.ndarray:
        return np.flatnonzero(np.diff(rising, prepend=-1))

    def probability(self, grams: np.ndarray, order: int) -> np.ndarray:
        """How likely the last character of n-grams is after the others, by n-grams of ``order``."""
        if order == 0:
            return np.full(grams.shape, 1 / self.size)
        own = grams % self.size**order
        shorter = self.probability(grams, order - 1)
        history = own // self.size
        seen, kinds = (part[order - 1].of(history) for part in (self.before, self.after))
        likely = self.counts[order - 1].of(own) + kinds * shorter
        return np.where(seen > 0, likely / np.maximum(seen + kinds, 1), shorter)

    def perplexity(self, codes: np.ndarray) -> float:
        """Perplexity per character of texts ``(N, L)``, those at the start by what is before."""
        parts = [
            self.probability(ngrams(codes[:, : k if k < self.order else None], k, self.size), k)
            for k in range(1, self.order + 1)
        ]
        return float(np.exp(-np.log(np.concatenate(parts, 1)).mean()))


def _words(texts: np.ndarray) -> list[str]:
    """Whole words within texts: those at the ends may be cut."""
    return [word for text in texts for word in str(text).split(BLANK)[1:-1] if word]


class TextJudge:
    """Scores of texts against those of one data set.

    Args:
        data: texts in memory.
    """

    def __init__(self, data: ArrayData) -> None:
        self.data, self.size = data, len(data.scaling.alphabet)
        self.train = set(data.train.tolist())
        self.others = {*data.valid.tolist(), *data.test.tolist()} - self.train
        splits = (data.train, data.valid, data.test)
        self.words = {word for own in splits for word in _words(own)}

    @cached_property
    def model(self) -> CharacterModel:
        """Of the test split."""
        return CharacterModel(self._codes(self.data.test), self.size)

    @cached_property
    def trigrams(self) -> Counts:
        """Of the test split."""
        return counted(ngrams(self._codes(self.data.test), 3, self.size))

    def __call__(self, x: Tensor, train: Tensor) -> TextScores:
        """Scores of states ``(N, L, V)``, and floors by as many states of the training split."""
        texts = self.data.scaling.decode(x)
        found = texts.tolist()
        own, real = (self._likelihood(part.argmax(2).numpy()) for part in (x, train))
        names = ("trigrams", "perplexity", "entropy")
        scores = {k: Score(value=a, floor=b) for k, a, b in zip(names, own, real, strict=True)}
        words = _words(texts)
        return TextScores(
            train=sum(text in self.train for text in found) / len(found),
            held_out=sum(text in self.others for text in found) / len(found),
            distinct=len(set(found)) / len(found),
            found=len(set(found) & (self.train | self.others)) / len(found),
            words=sum(w in self.words for w in words) / max(len(words), 1) if self.words else None,
            **scores,
        )

    def _likelihood(self, codes: np.ndarray) -> tuple[float, float, float]:
        own = counted(ngrams(codes, 3, self.size))
        divergent = max(divergence(own, self.trigrams), 1e-12)
        return divergent, self.model.perplexity(codes), max(entropy(own.counts), 1e-12)

    def _codes(self, texts: np.ndarray) -> np.ndarray:
        return character_codes(texts, self.data.scaling.alphabet)


def text_judge(data: Data) -> TextJudge | None:
    """The judge of a data set; None where it has no texts."""
    return TextJudge(data) if isinstance(data, ArrayData) and data.scaling.alphabet else None
