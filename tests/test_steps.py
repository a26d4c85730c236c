"""Solver steps that follow the error of the ends: closed forms of linear fields, the exact mixture,
the record, the account, and a store that is continued."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bezierdistill import simulation as simulation_module
from bezierdistill.errors import UserError
from bezierdistill.fields import GaussianMixture
from bezierdistill.models import Model
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.noise import Stream, noise
from bezierdistill.reporting import write_report
from bezierdistill.simulation import MOST_STEPS, SAMPLE, Simulation, choose_steps, least_steps
from bezierdistill.solvers import TABLEAUX, solve, time_grid
from bezierdistill.stages.simulate import CurveSettings, SimulateConfig, main_simulate, simulate
from bezierdistill.stages.train import TrainConfig, train
from bezierdistill.store import CurveStore, CurveWriter, merge
from bezierdistill.training.settings import LoopConfig
from conftest import Account, CountedField, close, gaussian

RATE = -3.0


def starts(start: int, rows: int) -> tuple[Tensor, None]:
    return noise(3, Stream.SIMULATE, range(start, start + rows), (2,)).double(), None


linear = CountedField(lambda x, t: RATE * x)


def cost_of(steps: int, rows: int) -> int:
    """Passes of a choice of so many Heun steps, for curves of degree 4."""
    return rows * sum(2 * n for n in (4, 8, 16, 32, 64, 128) if n <= 2 * steps)


def growth(method: str, n: int) -> float:
    """The factor that n steps of a method of order p give: the exponential's series up to p."""
    z, order = RATE / n, TABLEAUX[method].order
    return sum(z**k / math.factorial(k) for k in range(order + 1)) ** n


@pytest.mark.parametrize("method", TABLEAUX)
def test_the_error_of_a_linear_field_is_its_closed_form(method: str) -> None:
    order = TABLEAUX[method].order
    middle = float(starts(0, SAMPLE)[0].norm(dim=1).median())
    found = {}
    for tolerance in (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4):
        simulation, chosen = choose_steps(Simulation(linear, method=method), starts, tolerance)
        n = simulation.steps
        found[n] = chosen.error
        gap = abs(growth(method, n) - growth(method, 2 * n)) * middle
        assert chosen.error == pytest.approx(gap / (1 - 2**-order), rel=1e-9)
        true = abs(growth(method, n) - math.exp(RATE)) * middle
        assert chosen.error == pytest.approx(true, rel=0.35 if n < 16 else 0.1)
        assert chosen.reached or n == MOST_STEPS
    assert sorted(found) == [n for n in (4, 8, 16, 32, 64) if n in found]
    assert len(found) > 2
    for n, error in found.items():
        if n >= 16 and 2 * n in found:  # an order of p: half the step, 2^-p of the error
            assert error / found[2 * n] == pytest.approx(2**order, rel=0.15)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "rk4"])
@pytest.mark.parametrize("backwards", [False, True])
def test_the_fewest_steps_are_chosen_whose_ends_are_right(
    method: str, backwards: bool, mixture: GaussianMixture
) -> None:
    simulation = Simulation(mixture, 1, steps=2, method=method, backwards=backwards)
    tolerance = 2.0 if method == "euler" else 0.3
    chosen, why = choose_steps(simulation, starts, tolerance)
    x = starts(0, SAMPLE)[0]
    grid = time_grid(256, 1.0, 0.0) if backwards else time_grid(256)
    exact = solve(mixture, x, grid, "rk4").state
    apart = torch.cdist(exact, exact).fill_diagonal_(math.inf).amin(1).median()
    errors = {
        n: float((replace(chosen, steps=n).end(x).state - exact).norm(dim=1).median() / apart)
        for n in (2, 4, 8, 16, 32, 64)
    }
    expected = min(n for n, error in errors.items() if error <= tolerance)
    assert chosen.steps == expected < MOST_STEPS
    assert why.error / why.neighbours == pytest.approx(errors[expected], rel=0.35)
    assert why.neighbours == pytest.approx(float(apart), rel=0.1)


def test_straight_paths_get_the_fewest_steps_and_stiff_ones_more() -> None:
    # Along x0 + t (0.5 + 2 x0).
    straight = CountedField(lambda x, t: 0.5 + 2 * (x - 0.5 * t) / (1 + 2 * t))

    def steps(std: float) -> int:
        return choose_steps(Simulation(gaussian([2.0, -1.0], [1.0, std])), starts)[0].steps

    for degree, least in ((1, 2), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8)):
        simulation, chosen = choose_steps(Simulation(straight, degree, method="euler"), starts)
        assert simulation.steps == least
        assert chosen.error < 1e-12 < chosen.neighbours
    assert least_steps(66) == 128  # enough for a fit, whatever the error
    assert steps(1.0) < steps(0.1) < steps(0.003)


@pytest.mark.parametrize(
    ("more", "networks"),
    [({}, 2), ({"guides": "hermite"}, 2), ({"guides": "endpoints"}, 2), ({"through": True}, 4)],
)
def test_every_pass_of_the_choice_is_counted(
    more: dict[str, Any], networks: int, mixture: GaussianMixture
) -> None:
    field = CountedField(mixture, passes=2)
    given: dict[str, Any] = more | ({"through": field} if more.get("through") else {})
    teachers = (field, field)
    simulation, chosen = choose_steps(
        Simulation(field, teachers=teachers, **given), starts, batch=100, rows=300
    )
    n, parts = simulation.steps, 3
    calls = sum(2 * k for k in (4, 8, 16, 32, 64, 128) if k <= 2 * n) * networks // 2
    assert field.calls == calls * parts
    assert chosen.passes == 2 * calls * 300
    before = field.calls
    _, passes = simulation.curves(starts(0, 10)[0])
    assert passes == simulation.cost == 2 * (field.calls - before)


def test_batches_and_a_through_flow_change_nothing_but_rounding(mixture: GaussianMixture) -> None:
    simulation = Simulation(mixture)
    whole, parts = (choose_steps(simulation, starts, batch=batch) for batch in (SAMPLE, 77))
    assert whole[0] == parts[0]
    assert whole[1].error == pytest.approx(parts[1].error, rel=1e-9)
    # There and back through the same flow is the identity: Heun's errors remain, of both halves.
    x = starts(0, 50)[0]
    errors = [
        float((Simulation(mixture, steps=n, through=mixture).end(x).state - x).norm(dim=1).median())
        for n in (8, 32)
    ]
    assert errors[0] > 10 * errors[1]


def test_what_may_be_spent_bounds_the_sample_and_the_steps() -> None:
    stiff = Simulation(gaussian([0.0, 0.0], [1.0, 0.002]))
    free = choose_steps(stiff, starts)
    assert free[0].steps == MOST_STEPS
    for most in (500, 5_000, 50_000, 200_000):
        simulation, chosen = choose_steps(stiff, starts, most=most)
        assert chosen.passes <= most
        assert simulation.steps < MOST_STEPS
        assert not chosen.reached
    assert simulation.steps > 4


def test_rows_without_an_end_are_left_out_and_none_is_refused(mixture: GaussianMixture) -> None:
    def broken(beyond: float) -> Simulation:
        return Simulation(
            CountedField(lambda x, t: torch.where(x[:, :1] > beyond, torch.nan, mixture(x, t)))
        )

    few, all_of_them = broken(2.0), broken(-99.0)
    assert not bool(few.end(starts(0, SAMPLE)[0]).state.isfinite().all())
    assert math.isfinite(choose_steps(few, starts)[1].error)
    with pytest.raises(UserError, match="NaN or infinite states in 512 rows of 512 that were"):
        choose_steps(all_of_them, starts)


@pytest.mark.parametrize("tolerance", [0.0, -0.1, math.nan, math.inf])
def test_a_tolerance_that_is_none_is_refused(tolerance: float) -> None:
    with pytest.raises(UserError, match=f"tolerance is {tolerance}, expected a number above 0"):
        CurveSettings(tolerance=tolerance)
    with pytest.raises(UserError, match="tolerance"):
        choose_steps(Simulation(linear), starts, tolerance)
    with pytest.raises(UserError, match="'dopri5', expected one with fixed steps"):
        choose_steps(Simulation(linear, method="dopri5"), starts)


def test_steps_and_the_tolerance_that_chooses_them_exclude_each_other() -> None:
    assert CurveSettings().steps is None
    assert CurveSettings(steps=4).tolerance == CurveSettings(tolerance=0.2).tolerance / 2
    with pytest.raises(UserError, match=r"steps is 4 and tolerance 0\.2, which chooses them"):
        CurveSettings(steps=4, tolerance=0.2)
    with pytest.raises(UserError, match="steps is 0"):
        CurveSettings(steps=0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Model:
    out, loop = tmp_path_factory.mktemp("teacher") / "t", LoopConfig(accelerator="cpu")
    return train(TrainConfig("moons", out, 80, 64, network=NetworkConfig(width=32), loop=loop))


def config(teacher: Model, out: Path, **more: Any) -> SimulateConfig:
    assert teacher.folder is not None
    given: dict[str, Any] = {"count": 300, "batch": 50, "accelerator": "cpu"}
    return SimulateConfig((teacher.folder,), out, **given | more)


def test_the_record_holds_what_was_chosen_and_every_pass(
    teacher: Model, tmp_path: Path, account: Account
) -> None:
    told = main_simulate(config(teacher, tmp_path / "c", tolerance=0.02))
    store = CurveStore.open(tmp_path / "c")
    recipe = store.recipe
    assert recipe.chosen is not None
    assert recipe.chosen.reached
    assert recipe.chosen.tolerance == 0.02
    assert recipe.steps in (8, 16, 32, 64)
    assert store.manifest.passes == account.passes == told["passes"]
    assert store.manifest.passes == 300 * 2 * recipe.steps + recipe.chosen.passes
    assert recipe.chosen.passes == cost_of(recipe.steps, 64)
    assert (told["steps"], told["error"]) == (recipe.steps, recipe.chosen.error)
    again = main_simulate(config(teacher, tmp_path / "c", tolerance=0.02))  # finished: left alone
    assert again == told
    assert store.manifest.passes == account.passes
    same = simulate(config(teacher, tmp_path / "given", steps=recipe.steps))
    assert same.recipe.chosen is None
    assert same.manifest.passes == 300 * 2 * recipe.steps
    rows = torch.arange(300)
    assert torch.equal(same.curves(rows).points, store.curves(rows).points)
    page = write_report(tmp_path / "c").read_text()
    assert f"heun, {recipe.steps} steps" in page
    assert f"steps were chosen for {recipe.chosen.tolerance:g} of that distance" in page


def test_a_continued_store_keeps_its_steps(
    teacher: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = CurveWriter.plan
    monkeypatch.setattr(
        CurveWriter, "plan", lambda own, count, batch: plan(own, count, batch, 50 * 5 * 2 * 4)
    )
    whole, wanted = simulate(config(teacher, tmp_path / "whole")), config(teacher, tmp_path / "c")
    assert len(whole.shards) == 6
    true, calls = Simulation.curves, iter(range(100))

    def stopped(*arguments: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return true(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Simulation, "curves", stopped)
        with pytest.raises(KeyboardInterrupt):
            simulate(wanted)
    assert len([*(tmp_path / "c").glob("shard-*.safetensors")]) == 3
    monkeypatch.setattr(simulation_module, "choose_steps", lambda *_: pytest.fail("chosen again"))
    store = simulate(wanted)
    assert (store.recipe.steps, store.recipe.chosen) == (whole.recipe.steps, whole.recipe.chosen)
    assert [shard.sha256 for shard in store.shards] == [shard.sha256 for shard in whole.shards]
    assert store.manifest.passes == whole.manifest.passes
    (tmp_path / "c" / store.shards[1].file).write_bytes(b"broken")
    repaired = simulate(replace(wanted, repair=True))
    assert repaired.digest == store.digest
    with pytest.raises(UserError, match="another run of simulate, with other steps"):
        simulate(replace(wanted, steps=whole.recipe.steps))


@pytest.mark.parametrize("steps", [None, 4])
@pytest.mark.parametrize("budget", [3_000, 60_000])
def test_a_budget_pays_for_the_choice_and_for_as_many_curves_as_it_can(
    steps: int | None, budget: int, teacher: Model, tmp_path: Path, account: Account
) -> None:
    store = simulate(config(teacher, tmp_path / "c", count=10**6, steps=steps, budget=budget))
    recipe = store.recipe
    assert recipe.steps
    assert recipe.count == len(store)
    cost = 2 * recipe.steps
    assert account.passes == store.manifest.passes <= budget < store.manifest.passes + cost
    assert (recipe.chosen is None) == (steps is not None)
    assert recipe.chosen is None or recipe.chosen.passes <= budget // 4
    few = simulate(config(teacher, tmp_path / "few", count=20, steps=steps, budget=budget))
    assert len(few) == 20


def test_real_rows_are_no_neighbours_of_themselves(teacher: Model, tmp_path: Path) -> None:
    """A few real states to start from: rows beyond them are the same again."""
    x = starts(0, 90)[0].float().numpy()
    loop, network = LoopConfig(accelerator="cpu"), NetworkConfig(width=16)
    own = train(TrainConfig(x, tmp_path / "t", 20, 16, network=network, loop=loop))
    store = simulate(config(own, tmp_path / "c", invert_from=x))
    assert store.recipe.chosen is not None
    assert store.recipe.chosen.neighbours > 0.01
    assert store.recipe.chosen.reached


def test_merged_stores_tell_of_the_greatest_error_and_of_all_passes(
    teacher: Model, tmp_path: Path
) -> None:
    stores = [simulate(config(teacher, tmp_path / f"{seed}", seed=seed)) for seed in (0, 1)]
    both = merge((tmp_path / "0", tmp_path / "1"), tmp_path / "both")
    chosen = [store.recipe.chosen for store in stores]
    assert both.recipe.chosen is not None
    assert both.recipe.chosen.error == max(one.error for one in chosen if one)
    assert both.manifest.passes == sum(store.manifest.passes for store in stores)
    given = simulate(config(teacher, tmp_path / "given", seed=2, steps=5))
    with pytest.raises(UserError, match="were made with other steps"):
        merge((tmp_path / "0", given.folder), tmp_path / "none")


def test_the_end_is_that_of_the_curve(mixture: GaussianMixture) -> None:
    x = starts(0, 9)[0]
    modes: list[dict[str, Any]]
    modes = [{}, {"backwards": True}, {"guides": "hermite"}, {"through": mixture}]
    for more in modes:
        simulation = Simulation(mixture, **more)
        curve, end = simulation.curves(x)[0], simulation.end(x).state
        close(curve.source if simulation.backwards else curve.data, end)
