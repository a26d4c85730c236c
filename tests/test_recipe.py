"""The recipe: its budget holds everything, it goes on where it stopped, and its search finds the
blend that is exact."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from bezierdistill.cli import main, parse
from bezierdistill.curves import Time
from bezierdistill.data import EndlessData, Scaling
from bezierdistill.fields import Field, GaussianMixture
from bezierdistill.models import Model, load_model
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.objectives import Alignment, CurveRegression
from bezierdistill.stages import distill as distillation
from bezierdistill.stages import recipe as recipe_module
from bezierdistill.stages.recipe import FINER, GUIDANCE, RecipeConfig, choose_blend, run_recipe
from bezierdistill.stages.train import TrainConfig, train
from bezierdistill.store import CurveStore
from bezierdistill.training.settings import LoopConfig
from conftest import Account, CountedNet, FieldNet, gaussian

NET, LOOP = NetworkConfig(width=16, depth=2), LoopConfig(accelerator="cpu")
BUDGET, BATCH = 240_000, 128


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(
        file,
        x=(np.random.default_rng(0).standard_normal((500, 3)) * [1, 2, 3] + 7).astype(np.float32),
    )
    return str(file)


def small(data: str, out: Path, **changes: Any) -> RecipeConfig:
    settings: dict[str, Any] = {"budget": BUDGET, "batch": BATCH, "network": NET, "loop": LOOP}
    return RecipeConfig(data, out, **{**settings, **changes})


@pytest.fixture(scope="module")
def whole(data: str, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The student of an uninterrupted run."""
    return run_recipe(small(data, tmp_path_factory.mktemp("whole") / "run"))


VARIANTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "one teacher": {"weak_share": 0.0},
    "lines": {"degree": 1},
    "unaligned": {"align_share": 0.0},
    "searched": {"search_share": 0.03},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_budget_holds_every_pass(
    variant: str, data: str, tmp_path: Path, account: Account
) -> None:
    config = small(data, tmp_path / "run", **VARIANTS[variant])
    student = run_recipe(config)
    assert student.spent == account.passes
    assert 0.95 * BUDGET <= student.spent <= BUDGET
    passes, teachers = student.card.passes, 2 if config.weak_share else 1
    assert passes.keys() == {"training", "curves", "teachers", "search", "total"}
    assert passes["total"] == sum(passes.values()) - passes["total"]
    store = CurveStore.open(tmp_path / "run" / "curves")
    assert (
        passes["curves"]
        == store.manifest.passes
        == pytest.approx(config.curves_share * BUDGET, rel=0.01)
    )
    steps = [
        int(share * BUDGET) // (3 * BATCH) for share in (config.strong_share, config.weak_share)
    ]
    assert passes["teachers"] == 3 * BATCH * sum(steps)
    assert passes["search"] == 8 * 4 * 4 * (int(config.search_share * BUDGET) // (8 * 4 * 4))
    assert student.card["config"]["align"] == int(config.align_share * BUDGET) // (
        BATCH * (3 + (1 + 3))
    )
    assert store.recipe.degree == config.degree
    assert len(store.recipe.teachers) == teachers
    assert set(student.knots) == {1, 2}


def test_the_best_blend_of_the_search_is_what_is_simulated(
    data: str, tmp_path: Path, whole: Model
) -> None:
    assert whole.card["weights"] == [[1.25], [-0.25]]  # without a search
    found = run_recipe(small(data, tmp_path / "run", search_share=0.03))
    searched = recipe_module.read_json(tmp_path / "run" / "search.json", "search")
    best = min(searched["scores"], key=lambda g: searched["scores"][g])
    assert float(best) == searched["best"]
    assert len(searched["scores"]) == searched["trials"] == len(GUIDANCE) + len(FINER)
    weights = torch.tensor(found.card["weights"]).flatten()
    torch.testing.assert_close(
        weights, torch.tensor([searched["best"], 1 - searched["best"]]), rtol=0, atol=1e-6
    )


def test_a_run_stopped_in_every_stage_gives_the_same_weights(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_recipe(small(data, tmp_path / "whole", search_share=0.03))
    config, stages = (
        small(data, tmp_path / "run", search_share=0.03),
        ("train", "choose_blend", "simulate", "distill", "save_model"),
    )
    for stage in stages:
        own: Callable[..., Any] = getattr(recipe_module, stage)

        def stopped(*arguments: Any, own: Callable[..., Any] = own, stage: str = stage) -> None:
            if stage in ("train", "distill"):
                own(*arguments)  # stopped at the end of the stage, before anything is made of it
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(recipe_module, stage, stopped)
            with pytest.raises(KeyboardInterrupt):
                run_recipe(config)
    assert (tmp_path / "run" / "student" / "model.json").exists()  # all but the count of the search
    student = run_recipe(config)
    assert student.card.digest == whole.card.digest
    assert student.card.passes == whole.card.passes
    with monkeypatch.context() as patch:  # a finished one is only read
        for stage in stages:
            patch.setattr(
                recipe_module,
                stage,
                lambda *arguments: pytest.fail("a finished stage was run again"),
            )
        assert run_recipe(config).card == student.card


@pytest.mark.parametrize(("objective", "call"), [(CurveRegression, 7), (Alignment, 12)])
def test_a_student_stopped_at_work_gives_the_same_weights(
    objective: Any,
    call: int,
    data: str,
    tmp_path: Path,
    whole: Model,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = LoopConfig(accelerator="cpu", save_every=5)
    true, calls = objective.loss, iter(range(1, 10_000))

    def loss(*arguments: Any, **more: Any) -> Tensor:
        if next(calls) == call:
            raise KeyboardInterrupt
        return true(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(objective, "loss", loss)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(small(data, tmp_path / "run", loop=loop))
    assert run_recipe(small(data, tmp_path / "run", loop=loop)).card.digest == whole.card.digest


def test_alignment_gets_clamped_samples_many_real_rows_and_its_own_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, rows, true, trainer = [], [], Alignment.loss, distillation.Trainer

    def recorded(
        objective: Alignment, net: Any, batch: Any, real: Tensor, cond: Tensor | None
    ) -> Tensor:
        assert (
            float(objective.clamp(torch.full((1, 1, 8, 8), 9.0)).max()) == 1.0
        )  # the digits' own range is 0 to 16
        rows.append(len(real))
        return true(objective, net, batch, real, cond)

    def train_at(nets: Any, loop: Any, folder: Any, stage: str, own: Any = None) -> Any:
        rates.append((stage, own))
        return trainer(nets, loop, folder, stage, own)

    monkeypatch.setattr(Alignment, "loss", recorded)
    monkeypatch.setattr(distillation, "Trainer", train_at)
    run_recipe(small("digits", tmp_path / "run", align_lr=3e-4))
    assert rows == [4 * BATCH] * (int(0.14 * BUDGET) // (7 * BATCH))
    assert ("alignment", {"student": 3e-4}) in rates


def test_a_folder_of_another_recipe_is_refused(data: str, whole: Model, tmp_path: Path) -> None:
    assert whole.folder is not None
    out = whole.folder.parent
    assert run_recipe(small(data, out)).card.digest == whole.card.digest
    with pytest.raises(ValueError, match="holds another recipe, with other budget, degree"):
        run_recipe(small(data, out, budget=2 * BUDGET, degree=2))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no recipe"):
        run_recipe(small(data, tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_given_teachers_are_used_and_charged(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = [
        train(TrainConfig(data, tmp_path / name, steps, BATCH, seed, network=NET, loop=LOOP))
        for name, steps, seed in (("good", 300, 5), ("poor", 20, 6))
    ]
    monkeypatch.setattr(
        recipe_module, "train", lambda *arguments: pytest.fail("a teacher was trained")
    )
    student = run_recipe(
        small(data, tmp_path / "run", strong=tmp_path / "good", weak=tmp_path / "poor")
    )
    assert [entry["digest"] for entry in student.card["teachers"]] == [
        teacher.card.digest for teacher in teachers
    ]
    assert student.card.passes["teachers"] == 3 * BATCH * 320
    assert 0.95 * BUDGET <= student.spent <= BUDGET
    assert not (tmp_path / "run" / "strong").exists()
    with pytest.raises(
        ValueError, match="for the student: expected 384 or more"
    ):  # what is given may cost more than all there is
        run_recipe(
            small(
                data,
                tmp_path / "other",
                strong=tmp_path / "good",
                weak=tmp_path / "poor",
                budget=100_000,
            )
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strong_share": 0.9}, "a sum below 1"),
        ({"align_share": -0.1}, "none below 0"),
        ({"budget": 0}, "budget is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"batch": 1}, "batch is 1, expected 2 or more"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"weak_share": 0.0, "search_share": 0.1}, "no blend to search"),
        ({"degree": 0}, "degree is 0"),
        ({"degree": 8}, "a fit of degree 8 needs 7"),
        ({"solver_steps": 2}, "a fit of degree 4 needs 3"),
        ({"huber": -1.0}, "huber is -1.0"),
        ({"anchor": -1.0}, "anchor is -1.0"),
        ({"align_lr": 0.0}, "align_lr is 0.0"),
        ({"search_share": -0.1}, "none below 0"),
        ({"weak_share": 0.0, "weak": Path("weak")}, "leave one of them out"),
    ],
)
def test_settings_are_checked_before_anything_is_trained(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        small("moons", tmp_path / "run", **changes)


@pytest.mark.parametrize(
    ("budget", "what"), [(300, "the strong teacher"), (3000, "the weak teacher")]
)
def test_a_budget_that_is_too_small_is_named(
    budget: int, what: str, data: str, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError,
        match=f"budget is {budget} passes, which leaves .* for {what}: expected 384 or more",
    ):
        run_recipe(small(data, tmp_path / "run", budget=budget))


class Beside:
    """The exact field of a law, and ``amount`` of a wind beside it that blows samples away."""

    passes = 1

    def __init__(self, law: GaussianMixture, amount: float) -> None:
        self.law, self.amount = law, amount

    def __call__(self, x: Tensor, t: Time, cond: Tensor | None = None) -> Tensor:
        return self.law(x, t) + self.amount * torch.tensor([0.8, -0.6]).to(x)


LAW = gaussian([0.3, -0.2], [0.5, 0.8])


def model(field: Field) -> Model:
    return Model(CountedNet(FieldNet(field)), NetworkConfig(), (2,), Scaling())


def law_data() -> EndlessData:
    return EndlessData(
        "law", (2,), Scaling(), lambda count, generator: LAW.sample(count, generator).float()
    )


@pytest.mark.parametrize("true", [1.0, 1.35, 1.6, 2.15])
def test_the_search_finds_the_blend_that_is_exact(true: float) -> None:
    strong, weak = (
        (0.0, 1.0) if true == 1 else (1.0, true / (true - 1))
    )  # g strong + (1 - g) weak is no wind where g is the true one
    teachers = [model(Beside(LAW, amount)) for amount in (strong, weak)]
    asked = 400_000
    found = choose_blend(teachers[0], teachers[1], law_data(), 0, asked)
    assert found["best"] == true
    calls = [teacher.net.passes for teacher in teachers if isinstance(teacher.net, CountedNet)]
    assert found["passes"] == sum(calls) * found["samples"]
    assert 0.99 * asked < found["passes"] <= asked
    far = max(found["scores"], key=lambda g: abs(float(g) - true))
    assert found["scores"][far] == max(found["scores"].values())


def test_a_blend_of_a_teacher_with_itself_is_that_teacher() -> None:
    found = choose_blend(model(LAW), model(LAW), law_data(), 0, 40_000)
    scores = list(found["scores"].values())
    assert max(scores) == pytest.approx(min(scores), rel=1e-3)


def test_the_command_runs_it_and_reports_it(
    data: str, whole: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = [
        f"--budget={BUDGET}",
        f"--batch={BATCH}",
        "--network.width=16",
        "--network.depth=2",
        "--loop.accelerator=cpu",
    ]
    command = ["recipe", "--data", data, "--out", str(tmp_path / "run"), *sizes]
    assert main(command) == 0
    assert f"{whole.spent:,} network passes spent in all" in capsys.readouterr().out
    assert load_model(tmp_path / "run" / "student").card.digest == whole.card.digest
    assert main(["report", "--run", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert (
        page.count("data:image/png;base64,") == 12
    )  # samples: real, and three models twice; curves; losses of four stages
    assert "http" not in page
    capsys.readouterr()
    for more, message in (
        (["--seed=1"], "holds another recipe, with other seed"),
        (["--degree=9"], "needs 8 or more distinct inner times"),
    ):
        assert main([*command, *more]) == 2
        error = capsys.readouterr().err
        assert error.startswith("bezierdistill recipe: ")
        assert error.count("\n") == 1
        assert message in error


@pytest.mark.parametrize(
    "file",
    sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml")),
    ids=lambda file: file.stem,
)
def test_every_recipe_file_is_taken_and_says_how_it_is_run(file: Path) -> None:
    head = file.read_text()
    assert f"--config recipes/{file.name}" in head
    assert "# Hardware:" in head
    assert parse(["recipe", "--config", str(file), "--data", "digits", "--out", "x"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conditional": True, "source": "moons"}, "takes no condition"),
        ({"conditional": True, "coupling": "ot"}, "expected --coupling independent"),
        ({"source": "moons", "search_share": 0.1}, "flows from noise without conditions"),
        ({"through": "x"}, "expected --source"),
        ({"align_batch": 1}, "expected 2 or more"),
        ({"loop": LoopConfig(accumulate=2)}, "counted in whole batches"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_anything_is_made(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        RecipeConfig("moons", tmp_path / "r", **changes)
    assert not (tmp_path / "r").exists()


def test_teachers_that_do_not_fit_are_refused_before_others_are_trained(
    data: str, whole: Model, tmp_path: Path
) -> None:
    assert whole.folder is not None
    with pytest.raises(ValueError, match="is no flow of moons to states"):
        run_recipe(small(data, tmp_path / "a", source="moons", through=whole.folder))
    with pytest.raises(ValueError, match="takes no numbers as condition and conditional is True"):
        run_recipe(small("digits", tmp_path / "b", conditional=True, strong=whole.folder))
    assert not list(tmp_path.rglob("model.json"))


def test_alignment_has_a_batch_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, true = [], Alignment.loss

    def recorded(
        objective: Alignment, net: Any, batch: Any, real: Tensor, cond: Tensor | None
    ) -> Tensor:
        rows.append((batch[0].points.shape[1], len(real)))
        return true(objective, net, batch, real, cond)

    monkeypatch.setattr(Alignment, "loss", recorded)
    student = run_recipe(small("digits", tmp_path / "run", align_batch=2 * BATCH))
    assert rows == [(2 * BATCH, 8 * BATCH)] * (int(0.14 * BUDGET) // (14 * BATCH))
    assert BUDGET - 3 * BATCH < student.spent <= BUDGET


def test_the_benchmark_of_images_has_the_settings_of_its_recipe() -> None:
    from importlib.util import module_from_spec, spec_from_file_location

    root = Path(__file__).parents[1]
    spec = spec_from_file_location("bezier_images", root / "benchmarks" / "bezier_images.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    written = yaml.safe_load((root / "recipes" / "images.yaml").read_text())
    assert {key: written[key] for key in module.SETTINGS} == module.SETTINGS
    default = asdict(RecipeConfig("digits", Path("x")))
    own = {"budget", "batch", "conditional", "network", "loop"}  # of the arena's cell
    assert {key for key in written if written[key] != default[key]} - own == set(module.SETTINGS)
