"""Hostile input: whatever a file or a command line holds, the answer is a result or one line, and
nothing else happens."""

from __future__ import annotations

from collections import Counter

import pytest

from hostile import Hostile
from hostile_formats import FORMATS, build_assets

TOTAL = sum(form.cases for form in FORMATS.values())


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    root = tmp_path_factory.mktemp("hostile")
    ready = Hostile(root, FORMATS)
    build_assets(ready.assets)
    return ready


def played(hostile: Hostile, cases: int, first: int) -> Counter[str]:
    """Play about so many cases, every format with its share; how many each had."""
    counts = Counter({name: -(-form.cases * cases // TOTAL) for name, form in FORMATS.items()})
    outcomes = [
        hostile.case(name, first + seed) for name, count in counts.items() for seed in range(count)
    ]
    wrong = [str(outcome) for outcome in outcomes if outcome.problem]
    assert not wrong, f"{len(wrong)} of {len(outcomes)} cases:\n" + "\n".join(wrong[:20])
    refused = Counter(outcome.format for outcome in outcomes if outcome.refused)
    assert set(refused) == set(FORMATS)  # mutations reach what is checked
    return counts


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_not_spoilt_is_read(name: str, hostile: Hostile) -> None:
    outcome = hostile.case(name, 0, spoil=False)
    assert outcome.problem is None
    assert not outcome.refused, outcome.message


def test_hostile_input_is_read_or_refused_in_one_line(hostile: Hostile) -> None:
    assert played(hostile, 200, 0).total() >= 200


@pytest.mark.slow
def test_two_thousand_hostile_inputs(hostile: Hostile, capsys: pytest.CaptureFixture[str]) -> None:
    counts = played(hostile, 2000, 1000)
    assert counts.total() >= 2000
    with capsys.disabled():
        print(
            f"\nhostile input: {counts.total():,} cases;"
            f" {', '.join(f'{name} {count}' for name, count in counts.items())}"
        )
