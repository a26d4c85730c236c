"""Teachers that are given to every method of the arena, at no charge: the user's own, or a strong
and a weak one for each seed, trained once with many times the budget.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from bezierdistill.budget import Budget
from bezierdistill.data import Data
from bezierdistill.errors import UserError
from bezierdistill.models.folder import is_model, load_model, read_card
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.objectives import FlowMatching
from bezierdistill.progress import announce
from bezierdistill.stages.train import TrainConfig, train

if TYPE_CHECKING:
    from bezierdistill.arena.runner import ArenaConfig

BUDGETS, WEAK = 10, 0.08  # budgets of the strong teacher; the weak one's share of its steps
Given = tuple[Path | None, Path | None]


def given_teachers(config: ArenaConfig, seed: int) -> Given:
    """Folders of the strong and the weak teacher of a seed: given, or trained where they are not
    yet; None where every method trains its own.
    """
    if config.track == "own-teacher":
        return None, None
    if config.teacher is not None:
        return config.teacher, config.weak
    budget = Budget(BUDGETS * config.budget, config.batch)
    steps = budget.steps(FlowMatching.cost, what="a teacher")
    strong = _trained(config, "strong", seed, steps, seed)
    return strong, _trained(config, "weak", seed, max(1, int(WEAK * steps)), seed + 1)


def _trained(config: ArenaConfig, name: str, seed: int, steps: int, own_seed: int) -> Path:
    """The teacher that all methods of a seed are given; one process makes it, others wait."""
    folder = config.out / "shared" / f"{name}-{seed}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not is_model(folder):
            announce(f"the {name} teacher that every method of seed {seed} is given")
            settings = {"conditional": config.conditional, "network": config.network}
            train(
                TrainConfig(
                    config.data, folder, steps, config.batch, own_seed, loop=config.loop, **settings
                )
            )
    return folder


def check_given(config: ArenaConfig, data: Data) -> dict[str, str]:
    """Digests of the teachers in the settings, by which a run is known, wherever they lie.

    Raises:
        UserError: if one of them is no flow of the data, its conditions and the network.
    """
    folders = {"teacher": config.teacher, "weak": config.weak}
    return {
        name: _checked(config, data, folder)
        for name, folder in folders.items()
        if folder is not None
    }


def _checked(config: ArenaConfig, data: Data, folder: Path) -> str:
    model = load_model(folder)
    size = data.condition_size if config.conditional else 0
    told = f"{folder} does not fit {data.name}"
    if model.domain is not None or model.card.kind != "teacher":
        raise UserError(f"{folder} is no teacher that starts from noise: expected such a flow")
    if model.shape != data.shape or model.scaling != data.scaling:
        raise UserError(
            f"{told}: it was trained on {model.card.data}, with states of shape {model.shape} and"
            f" units of its own, the data's have shape {data.shape}: expected a teacher of these"
        )
    if model.condition_size != size:
        raise UserError(
            f"{told}: its conditions have {model.condition_size} numbers, expected {size}, as"
            f" conditional is {config.conditional}"
        )
    return model.digest


def network_of(config: ArenaConfig) -> NetworkConfig:
    """The network of students that do not start as the teacher: that of a teacher in the settings,
    as far as it is one of ours.
    """
    found = None if config.teacher is None else load_model(config.teacher).network
    return found if isinstance(found, NetworkConfig) else config.network


def digests(given: Given) -> tuple[str, ...]:
    """What given teachers are known by."""
    return tuple(read_card(folder).digest for folder in given if folder is not None)
