"""Data to a teacher, by flow matching: ``bezierdistill train``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bezierdistill.errors import UserError
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.settings import (
    Contents,
    Coupling,
    as_paths,
    check_choice,
    check_counts,
    check_coupling,
    check_seed,
)
from bezierdistill.stages.sources import as_data
from bezierdistill.training.settings import LoopConfig
from bezierdistill.words import listed

if TYPE_CHECKING:
    from bezierdistill.data import Data
    from bezierdistill.models.model import Model
    from bezierdistill.models.teacher import Teacher
    from bezierdistill.records import Conditions, ModelCard
    from bezierdistill.training.loop import Trainer


@dataclass(frozen=True, kw_only=True)
class FlowSettings:
    """How a flow is trained."""

    coupling: Coupling = "independent"
    """How noise or the domain and data are joined: independently, by optimal transport within the
    batch (ot), or by optimal transport within each label of a domain and data that have the same
    labels (label-ot), which translations then keep."""
    conditional: bool = False
    """Condition on the data's class labels or condition vectors."""
    drop: float = 0.1
    """Share of rows that are trained without their condition, which guidance needs."""

    def __post_init__(self) -> None:
        check_choice("coupling", self.coupling, Coupling)
        if not 0 <= self.drop < 1:
            raise UserError(f"drop is {self.drop}, expected a share of the rows in [0, 1)")
        if not self.conditional and self.drop != FlowSettings.drop:
            raise UserError(
                f"drop is {self.drop} and conditional is False, there is no condition to drop:"
                " expected --conditional, or no --drop"
            )


@dataclass(frozen=True)
class TrainConfig(FlowSettings):
    """Train a teacher by flow matching.

    Example::

        bezierdistill train --data digits --out runs/strong --steps 3000
        bezierdistill train --data photos --network.kind unet --out runs/photos
    """

    data: str | object
    """Built-in name, path, hf:OWNER/NAME or FILE.py:function; in Python an object as well."""
    out: Path
    """Folder of the new model."""
    steps: int = 6000
    """Optimizer steps."""
    batch: int = 512
    """Rows per step."""
    seed: int = 0
    """Seed of weights and draws."""
    domain: str | object | None = None
    """Data of another domain to start from instead of noise: a flow that translates."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """The network."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """How weights are updated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        as_paths(self, "out")
        as_data(self, "data", "domain")
        check_flow(self.network)
        check_seed(self.seed)
        check_counts(steps=self.steps, batch=self.batch)
        check_coupling(self.conditional, self.domain, self.coupling)


def check_flow(network: NetworkConfig) -> None:
    """Raise ``UserError`` if a network that is to be a flow emits curves, of which flow matching
    would train the first control point alone.
    """
    if network.control_points > 1:
        raise UserError(
            f"network.control-points is {network.control_points}, and a flow has one velocity a"
            " pass: expected 1, and distill --control-points for the student"
        )


CONTENTS = Contents(
    "a teacher, trained by flow matching",
    {
        "model.json": "the model's card: network, shape, units, network passes spent, settings",
        "model.safetensors": "its averaged weights; bezierdistill sample --model {out} reads both",
        "state-*.safetensors": "the whole state of the training, from which it continues",
        "log.jsonl": "losses and steps per second, a line every so many steps",
        "tensorboard/": "the same for: tensorboard --logdir {out}",
    },
    grows={"steps": "state-teacher.safetensors"},
)


def train(config: TrainConfig) -> Model:
    """Train a teacher by flow matching.

    Raises:
        UserError: on bad data or settings, or a folder that holds another run.
    """
    from bezierdistill.couplings import Independent, MinibatchOT
    from bezierdistill.data import load_data
    from bezierdistill.models.folder import load_model
    from bezierdistill.models.model import Model
    from bezierdistill.objectives import FlowMatching
    from bezierdistill.progress import notice
    from bezierdistill.records import Conditions, Passes
    from bezierdistill.run import Run
    from bezierdistill.training.batches import PairBatches
    from bezierdistill.training.loop import Trainer

    data = load_data(config.data)
    domain = None if config.domain is None else load_data(config.domain)
    if domain is not None and domain.shape != data.shape:
        raise UserError(
            f"domain {config.domain} has shape {domain.shape}, data {config.data} {data.shape}:"
            " expected one, resize by @16x16"
        )
    if domain is not None and config.coupling == "label-ot":
        check_labels(domain, data)
    elif domain is not None and data.condition_size and domain.condition_size:
        notice(f"{config.out}: both domains have labels, which --coupling label-ot keeps")
    conditions = conditions_of(data) if config.conditional else Conditions()
    net = config.network.build(data.shape, config.seed, conditions.size)
    objective = FlowMatching(Independent() if config.coupling == "independent" else MinibatchOT())
    trainer = Trainer({"teacher": net}, config.loop, config.out, "teacher")
    drop = config.drop if conditions.size else None
    rows, alike = trainer.share(config.batch), config.coupling == "label-ot"
    batches = PairBatches(data, rows, trainer.device, drop, domain, trainer, alike)
    card = card_of(
        config,
        "teacher",
        network=asdict(config.network),
        shape=data.shape,
        scaling=data.scaling,
        passes=Passes(training=trainer.cost(objective, config.steps, config.batch)),
        conditions=conditions,
        domain=None if domain is None else domain.scaling,
        domain_data=None if config.domain is None else str(config.domain),
        data=str(config.data),
        drop=drop,
    )
    with Run(config.out, "train", config, CONTENTS, barrier=trainer.fabric.barrier):
        if trainer.fabric.broadcast(is_trained(config.out, config.steps)):
            return load_model(config.out)
        net = trainer.fit(objective, batches, config.steps, config.seed)
        return saved(config.out, Model(net, card), trainer)


def is_trained(out: Path, steps: int, setting: str = "steps") -> bool:
    """Whether a folder holds a model that has had its steps, by the setting that counts them; one
    that has had fewer is trained on.
    """
    from bezierdistill.models.folder import is_model, read_card

    return is_model(out) and read_card(out).settings.get(setting, steps) >= steps


def conditions_of(data: Data) -> Conditions:
    """What the conditions of a model of the data are.

    Raises:
        UserError: if it has none.
    """
    from bezierdistill.records import Conditions

    if not data.condition_size:
        raise UserError(
            f"{data.name} has neither labels nor conditions, expected some of them for"
            " --conditional"
        )
    return Conditions(
        size=data.condition_size, frequencies=data.frequencies, names=data.class_names
    )


def check_labels(domain: Data, data: Data) -> None:
    """Raise ``UserError`` unless a domain and data have labels of the same classes."""
    for own in (domain, data):
        if not own.classes:
            raise UserError(
                f"{own.name} has no labels, coupling label-ot joins both sides by theirs"
            )
    if domain.class_names != data.class_names:
        raise UserError(
            f"domain {domain.name} has the classes {listed(domain.class_names)}, data {data.name}"
            f" {listed(data.class_names)}: coupling label-ot expects the same in one order"
        )
    seen = (own.frequencies or () for own in (domain, data))
    for name, source, target in zip(data.class_names, *seen, strict=True):
        if target and not source:
            raise UserError(
                f"domain {domain.name} has no training samples of class {name}, which {data.name}"
                " has: coupling label-ot expects some of every class"
            )


def card_of(config: Any, kind: str, **more: Any) -> ModelCard:
    """The card of a model that a stage makes with its settings."""
    from bezierdistill import __version__
    from bezierdistill.records import ModelCard, to_json

    return ModelCard(
        kind=kind,  # pyright: ignore[reportArgumentType]
        seed=config.seed,
        steps=config.steps,
        settings={key: value for key, value in to_json(config).items() if key != "out"},
        package=__version__,
        **more,
    )


def saved(out: Path, model: Model, trainer: Trainer, own: Teacher | None = None) -> Model:
    """The model, written by the first process and read by all; ``own`` is the teacher whose module
    it is.
    """
    from bezierdistill.models.folder import load_model, save_model

    if trainer.rank == 0:
        save_model(out, model)
    trainer.fabric.barrier()
    return load_model(out, own)


def main_train(config: TrainConfig) -> dict[str, Any]:
    """The verb ``train``."""
    model = train(config)
    print(f"{config.out}: teacher for {config.data}, {model.spent:,} network passes spent")
    if names := model.conditions.names:
        print(
            f"classes by their numbers: {listed([f'{k} {name}' for k, name in enumerate(names)])}"
        )
    return model.facts()
