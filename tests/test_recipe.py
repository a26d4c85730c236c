"""The recipe: its budget holds everything, it goes on where it stopped, and its search finds the
blend that is exact."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from bezierdistill.cli import main, parse
from bezierdistill.curves import Time
from bezierdistill.data import EndlessData, Scaling, load_data
from bezierdistill.errors import UserError
from bezierdistill.fields import Field, GaussianMixture
from bezierdistill.models import Model, load_model
from bezierdistill.models import folder as folder_module
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.objectives import Aligned, Alignment, EmittedCurves
from bezierdistill.records import ModelCard, Passes, Search, read_record, to_json
from bezierdistill.stages import recipe as recipe_module
from bezierdistill.stages.distill import StudentSettings
from bezierdistill.stages.recipe import (
    FINER,
    WEIGHTS,
    RecipeConfig,
    Shares,
    choose_blend,
    run_recipe,
)
from bezierdistill.stages.simulate import CurveSettings
from bezierdistill.stages.train import FlowSettings, TrainConfig, train
from bezierdistill.store import CurveStore
from bezierdistill.training import loop as loop_module
from bezierdistill.training.settings import LoopConfig
from conftest import Account, CountedNet, FieldNet, gaussian

NET, LOOP = NetworkConfig(width=16, depth=2), LoopConfig(accelerator="cpu")
BUDGET, BATCH = 240_000, 128
STEP = 3 * BATCH + 2 * 38  # of the regression: 0.3 of the rows, 38 whole ones, ask two teachers
ALIGNED = 2 * BATCH * (3 + 4 + 6) / 3  # of alignment: samplers of one, two and four passes in turn


def spent_in(align: int) -> int:
    """Passes of so many steps of alignment."""
    return 2 * BATCH * sum((3, 4, 6)[k % 3] for k in range(align))


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


SEARCHED = Shares(search=0.03)
VARIANTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "one teacher": {"shares": Shares(weak=0.0)},
    "lines": {"simulate": CurveSettings(degree=1, steps=4)},
    "steps by their error": {"simulate": CurveSettings(), "shares": Shares(align=0.0)},
    "unaligned": {"shares": Shares(align=0.0)},
    "searched": {"shares": SEARCHED},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_budget_holds_every_pass(
    variant: str, data: str, tmp_path: Path, account: Account
) -> None:
    config = small(data, tmp_path / "run", **VARIANTS[variant])
    student = run_recipe(config)
    assert student.spent == account.passes
    assert 0.95 * BUDGET <= student.spent <= BUDGET
    passes, shares = student.card.passes, config.shares
    teachers = 2 if shares.weak else 1
    assert set(passes.parts) == {"training", "curves", "teachers", "search"}
    assert passes.total == sum(passes.parts.values())
    store = CurveStore.open(tmp_path / "run" / "curves")
    assert passes.curves == store.manifest.passes
    assert passes.curves == pytest.approx(shares.curves * BUDGET, rel=0.01)
    steps = [int(share * BUDGET) // (3 * BATCH) for share in (shares.strong, shares.weak)]
    assert passes.teachers == 3 * BATCH * sum(steps)
    assert passes.search == 8 * 4 * 8 * (int(shares.search * BUDGET) // (8 * 4 * 8))
    align = int(shares.align * BUDGET / ALIGNED)
    assert student.card.settings["align"] == align
    assert store.recipe.degree == config.simulate.degree
    assert len(store.recipe.teachers) == teachers
    assert set(student.knots) == {1, 2, 3, 4}


def test_the_best_blend_of_the_search_is_what_is_simulated(
    data: str, tmp_path: Path, whole: Model
) -> None:
    assert whole.card.weights == ((1.15,), (-0.15,))  # without a search
    found = run_recipe(small(data, tmp_path / "run", shares=SEARCHED))
    searched = read_record(tmp_path / "run" / "search.json", Search, "search")
    best = min(searched.scores, key=lambda g: searched.scores[g])
    assert float(best) == searched.best
    assert len(searched.scores) == len(WEIGHTS) + len(FINER)
    weights = np.array(found.card.weights).flatten()
    np.testing.assert_allclose(weights, [searched.best, 1 - searched.best], atol=1e-6)


def test_a_run_stopped_in_every_stage_gives_the_same_weights(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_recipe(small(data, tmp_path / "whole", shares=SEARCHED))
    config = small(data, tmp_path / "run", shares=SEARCHED)
    stages = [(recipe_module, name) for name in ("train", "choose_blend", "simulate", "distill")]
    stages.append((folder_module, "save_model"))  # pyright: ignore[reportArgumentType]
    for module, stage in stages:
        own: Callable[..., Any] = getattr(module, stage)

        def stopped(*arguments: Any, own: Callable[..., Any] = own, stage: str = stage) -> None:
            if stage in ("train", "distill"):
                own(*arguments)  # stopped at the end of the stage, before anything is made of it
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(module, stage, stopped)
            with pytest.raises(KeyboardInterrupt):
                run_recipe(config)
    assert (tmp_path / "run" / "student" / "model.json").exists()  # all but the count of the search
    student = run_recipe(config)
    assert student.card.digest == whole.card.digest
    assert student.card.passes == whole.card.passes
    assert student.card.passes.search > 0
    with monkeypatch.context() as patch:  # a finished one is only read
        for module, stage in stages:
            patch.setattr(module, stage, lambda *arguments: pytest.fail("run again"))
        assert run_recipe(config).card == student.card


@pytest.mark.parametrize(("objective", "call"), [(EmittedCurves, 7), (Alignment, 12)])
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
    rates, rows, true, trainer = [], [], Alignment.loss, loop_module.Trainer

    def recorded(objective: Alignment, net: Any, batch: Aligned, *more: Any) -> Tensor:
        # The digits' own range is 0 to 16.
        assert float(objective.clamp(torch.full((1, 1, 8, 8), 9.0)).max()) == 1.0
        rows.append(len(batch.real[0]))
        return true(objective, net, batch, *more)

    def train_at(nets: Any, loop: Any, folder: Any, stage: str, own: Any = None) -> Any:
        rates.append((stage, own))
        return trainer(nets, loop, folder, stage, own)

    monkeypatch.setattr(Alignment, "loss", recorded)
    monkeypatch.setattr(loop_module, "Trainer", train_at)
    run_recipe(small("digits", tmp_path / "run", distill=StudentSettings(align_lr=5e-4)))
    assert rows == [8 * BATCH] * int(0.14 * BUDGET / ALIGNED)
    assert ("alignment", {"student": 5e-4}) in rates


def test_a_folder_of_another_recipe_is_refused(data: str, whole: Model, tmp_path: Path) -> None:
    assert whole.folder is not None
    out = whole.folder.parent
    assert run_recipe(small(data, out)).card.digest == whole.card.digest
    other = CurveSettings(degree=2, steps=4)
    with pytest.raises(UserError, match="another run of recipe, with other budget, simulate:"):
        run_recipe(small(data, out, budget=2 * BUDGET, simulate=other))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no run of recipe"):
        run_recipe(small(data, tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def given_teacher(data: str, out: Path, steps: int, seed: int) -> Model:
    return train(TrainConfig(data, out, steps, BATCH, seed, network=NET, loop=LOOP))


@pytest.mark.parametrize(("names", "rest"), [(("strong", "weak"), 0.38), (("strong",), 0.42)])
def test_given_teachers_are_free_and_their_shares_go_to_the_others(
    names: tuple[str, ...], rest: float, data: str, tmp_path: Path, account: Account
) -> None:
    given = {
        name: given_teacher(data, tmp_path / f"{name}-teacher", steps, steps)
        for name, steps in (("strong", 1000), ("weak", 20))
        if name in names
    }
    account.passes = 0
    paths: dict[str, Any] = {name: model.folder for name, model in given.items()}
    student = run_recipe(small(data, tmp_path / "run", **paths))
    passes, free = student.card.passes, sum(teacher.spent for teacher in given.values())
    digests = [entry.digest for entry in student.card.teachers]
    assert [teacher.digest for teacher in given.values()] == digests[: len(given)]
    assert free > BUDGET  # what is given may cost more than all there is
    assert student.spent - free == account.passes
    assert BUDGET - STEP < account.passes <= BUDGET
    for name in ("strong", "weak"):
        assert (tmp_path / "run" / name).exists() != (name in given)
    trained = 0 if "weak" in given else 3 * BATCH * (int(0.04 * BUDGET / rest) // (3 * BATCH))
    assert passes.teachers == free + trained
    assert passes.curves == int(0.09 * BUDGET / rest) // 32 * 32
    valid = load_data(data).count("valid")
    assert valid is not None
    align = int(0.14 * BUDGET / rest / ALIGNED)
    assert student.card.settings["align"] == align
    spent = trained + passes.curves + spent_in(align) + 10 * valid
    assert student.card.settings["steps"] == (BUDGET - spent) // STEP
    steps = student.card.settings["steps"]
    assert passes.training == steps * STEP + spent_in(align) + 10 * valid


def test_one_teacher_given_as_both_is_free_once(data: str, tmp_path: Path) -> None:
    teacher = given_teacher(data, tmp_path / "teacher", 100, 0)
    student = run_recipe(small(data, tmp_path / "run", strong=teacher.folder, weak=teacher.folder))
    assert student.card.passes.teachers == teacher.spent
    assert BUDGET - STEP < student.spent - teacher.spent <= BUDGET


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda: {"shares": Shares(strong=0.9)}, "a sum below 1"),
        (lambda: {"shares": Shares(align=-0.1)}, "none below 0"),
        (lambda: {"shares": Shares(search=-0.1)}, "none below 0"),
        (lambda: {"shares": Shares(weak=0.0, search=0.1)}, "no blend to search"),
        (lambda: {"shares": Shares(weak=0.0), "weak": Path("weak")}, "leave one of them out"),
        (lambda: {"budget": 0}, "budget is 0"),
        (lambda: {"batch": 0}, "batch is 0"),
        (lambda: {"distill": StudentSettings(align_batch=1)}, "align-batch is 1, expected 2"),
        (lambda: {"seed": -1}, "seed is -1"),
        (lambda: {"blend_weight": float("nan")}, "blend-weight is nan"),
        (lambda: {"simulate": CurveSettings(degree=0)}, "degree is 0"),
        (lambda: {"simulate": CurveSettings(degree=8, steps=4)}, "a fit of degree 8 needs 7"),
        (lambda: {"simulate": CurveSettings(steps=2)}, "a fit of degree 4 needs 3"),
        (lambda: {"distill": StudentSettings(huber=-1.0)}, "huber is -1.0"),
        (lambda: {"distill": StudentSettings(anchor=-1.0)}, "anchor is -1.0"),
        (lambda: {"distill": StudentSettings(align_lr=0.0)}, "align-lr is 0.0"),
    ],
)
def test_settings_are_checked_before_anything_is_trained(
    changes: Callable[[], dict[str, Any]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run_recipe(small("moons", tmp_path / "run", **changes()))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("budget", "what"), [(300, "the strong teacher"), (3000, "the weak teacher")]
)
def test_a_budget_that_is_too_small_is_named(
    budget: int, what: str, data: str, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError,
        match=f"budget is {budget:,} passes, which leaves .* for {what}, expected 384 or more",
    ):
        run_recipe(small(data, tmp_path / "run", budget=budget))
    assert not (tmp_path / "run").exists()  # it is told before the first stage


class Beside:
    """The exact field of a distribution, and ``amount`` of a wind beside it."""

    passes = 1

    def __init__(self, exact: GaussianMixture, amount: float) -> None:
        self.exact, self.amount = exact, amount

    def __call__(self, x: Tensor, t: Time, cond: Tensor | None = None) -> Tensor:
        return self.exact(x, t) + self.amount * torch.tensor([0.8, -0.6]).to(x)


EXACT = gaussian([0.3, -0.2], [0.5, 0.8])


def model(field: Field) -> Model:
    card = ModelCard(
        kind="teacher",
        network=to_json(NET),
        shape=(2,),
        scaling=Scaling(),
        seed=0,
        steps=1,
        passes=Passes(training=0),
    )
    return Model(CountedNet(FieldNet(field)), card)


def exact_data() -> EndlessData:
    return EndlessData(
        "exact", (2,), Scaling(), lambda count, generator: EXACT.sample(count, generator).float()
    )


@pytest.mark.parametrize("true", [1.0, 1.35, 1.6, 2.15])
def test_the_search_finds_the_blend_that_is_exact(true: float) -> None:
    strong, weak = (
        (0.0, 1.0) if true == 1 else (1.0, true / (true - 1))
    )  # g strong + (1 - g) weak is no wind where g is the true one
    teachers = [model(Beside(EXACT, amount)) for amount in (strong, weak)]
    asked = 400_000
    found = choose_blend(teachers[0], teachers[1], exact_data(), 0, asked)
    assert found.best == true
    calls = [teacher.net.passes for teacher in teachers if isinstance(teacher.net, CountedNet)]
    assert found.passes == sum(calls) * found.samples
    assert 0.99 * asked < found.passes <= asked
    far = max(found.scores, key=lambda g: abs(float(g) - true))
    assert found.scores[far] == max(found.scores.values())


def test_a_blend_of_a_teacher_with_itself_is_that_teacher() -> None:
    found = choose_blend(model(EXACT), model(EXACT), exact_data(), 0, 40_000)
    scores = list(found.scores.values())
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
        page.count("data:image/png;base64,") == 11
    )  # samples: real, and three models twice; curves; losses of the teachers and two stages
    assert "http" not in page
    capsys.readouterr()
    for more, message in (
        (["--seed=1"], "holds another run of recipe, with other seed"),
        (["--simulate.degree=9"], "needs 8 or more distinct inner times"),
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


PIPELINES = Path(__file__).parents[1] / "recipes" / "pipelines"
# The transformers that these recipes are for, as their weights' settings have them.
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sana-600m": (
        "SanaTransformer2DModel",
        {"num_layers": 28, "num_attention_heads": 36, "num_cross_attention_heads": 16}
        | {"cross_attention_head_dim": 72, "cross_attention_dim": 1152},
    ),
    "sd35-medium": (
        "SD3Transformer2DModel",
        {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
        | {"pos_embed_max_size": 384, "qk_norm": "rms_norm"}
        | {"dual_attention_layers": tuple(range(13))},
    ),
    "flux1-dev": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "wan21-1.3b": (
        "WanTransformer3DModel",
        {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960},
    ),
}


def sizes_of(name: str) -> dict[str, Any]:
    """What the head of a pipeline's recipe says of its sizes."""
    head = (PIPELINES / name / "import.yaml").read_text()
    line = next(line for line in head.splitlines() if line.startswith("# Sizes: "))
    return yaml.safe_load(line.removeprefix("# Sizes: "))


@pytest.mark.parametrize(
    "file", sorted(PIPELINES.glob("*/*.yaml")), ids=lambda file: f"{file.parent.name}-{file.stem}"
)
def test_every_recipe_of_a_pipeline_is_taken_and_its_sums_are_right(file: Path) -> None:
    verb, name, text = file.stem, file.parent.name, file.read_text()
    place, sizes = f"recipes/pipelines/{name}/{file.name}", sizes_of(name)
    assert f"bezierdistill {verb}" in text
    assert f"--config {place}" in text
    assert "Not run at this size" in text
    more = ["--prompts", "x"] if verb == "import" else []
    config = parse([verb, "--config", str(file), *more]).config
    if verb == "import":
        assert f"{2 * sizes['weights'] / 1e9:.1f} GB" in text
    elif verb == "simulate":
        curve = (config.degree + 1) * int(np.prod(sizes["state"])) * 2
        assert config.points == "bfloat16"
        assert f"a curve, {config.count * curve / 1e9:.1f} GB in all" in text
        assert f"{config.count * 2 * config.steps * sizes['passes']:,} in all" in text
    else:
        assert (config.lora, config.objective) == (16, "knots")
        assert f"average), {20 * sizes['adapter'] / 1e9:.1f} GB" in text
    usual = type(config).__dataclass_fields__
    held = yaml.safe_load(text)
    assert [key for key in held if held[key] == usual[key].default] == []


@pytest.mark.parametrize("name", sorted(TRANSFORMERS))
def test_the_weights_that_these_recipes_count_are_those_of_the_classes(name: str) -> None:
    import diffusers

    from bezierdistill.pipelines.network import block_layers

    kind, settings = TRANSFORMERS[name]
    with torch.device("meta"):
        transformer = getattr(diffusers, kind)(**settings)
    parts, sizes = dict(transformer.named_modules()), sizes_of(name)
    assert sum(p.numel() for p in transformer.parameters()) == sizes["weights"]
    layers: list[Any] = [parts[layer] for layer in block_layers(transformer)]
    assert sum(16 * (part.in_features + part.out_features) for part in layers) == sizes["adapter"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": FlowSettings(conditional=True), "domain": "moons"}, "keeps no label"),
        (
            {"train": FlowSettings(conditional=True, coupling="ot")},
            "expected --coupling independent",
        ),
        ({"domain": "moons", "shares": Shares(search=0.1)}, "flows from noise without conditions"),
        (
            {"train": FlowSettings(conditional=True), "shares": Shares(search=0.1)},
            "flows from noise without conditions",
        ),
        ({"through": "x"}, "expected --domain"),
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
        run_recipe(small(data, tmp_path / "a", domain="moons", through=whole.folder))
    conditional = FlowSettings(conditional=True)
    with pytest.raises(ValueError, match=r"no numbers as condition and train\.conditional is True"):
        run_recipe(small("digits", tmp_path / "b", train=conditional, strong=whole.folder))
    assert not list(tmp_path.rglob("model.json"))


def test_alignment_has_a_batch_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, true = [], Alignment.loss

    def recorded(objective: Alignment, net: Any, batch: Aligned, *more: Any) -> Tensor:
        rows.append((len(batch.x0), len(batch.real[0])))
        return true(objective, net, batch, *more)

    monkeypatch.setattr(Alignment, "loss", recorded)
    assert [StudentSettings().align_rows(batch) for batch in (1, 8, 64, 512)] == [2, 16, 128, 256]
    own = StudentSettings(align_batch=BATCH)
    student = run_recipe(small("digits", tmp_path / "run", distill=own))
    assert rows == [(BATCH, 4 * BATCH)] * int(0.14 * BUDGET / (ALIGNED / 2))
    assert BUDGET - STEP < student.spent <= BUDGET


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
    own = {"budget", "batch", "train", "network", "loop"}  # of the arena's cell
    assert written.keys() - own == set(module.SETTINGS)
