"""A model sent to the Hugging Face hub, from where ``load_model("OWNER/NAME")`` has it: the verb
``push``.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bezierdistill.errors import UserError
from bezierdistill.settings import as_paths

# What a model is read from, and what it was measured to be; no state, log or record of the machine.
KEPT = ("model.safetensors", "second-time.safetensors", "sampler.py", "lora")
# The folders of a path that is absolute, of the home or above: what stays is its last name.
PLACE = re.compile(r"(?<![\w.~/-])(?:~|\.\.|[A-Za-z]:)?[/\\](?![/\\])(?:[^/\\\n]*[/\\])*")
TOLD = ("settings", "data", "domain_data", "teachers")  # of a card: words and paths of its maker


@dataclass(frozen=True)
class PushConfig:
    """Send a student or teacher to the Hugging Face hub.

    Weights, the card without this machine's paths, and a README; load_model("OWNER/NAME") and
    --model OWNER/NAME have it from there.

    Example::

        bezierdistill push --model runs/recipe/student --to owner/two-pass-digits
    """

    model: Path
    """Folder of the model."""
    to: str
    """Its name on the hub, OWNER/NAME; what is there of this name is replaced file by file."""
    private: bool = False
    """Whether a model that is new there can be read by you alone."""

    def __post_init__(self) -> None:
        as_paths(self, "model")


def main_push(config: PushConfig) -> dict[str, Any]:
    """The verb ``push``."""
    from tempfile import TemporaryDirectory

    from bezierdistill.hub import check_sending, send

    check_sending(config.to)
    with TemporaryDirectory() as made:
        folder = Path(made)
        write_public(config.model, folder, config.to)
        page = send(folder, config.to, config.private)
        files = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())
    print(f"{page}: {', '.join(files)}")
    return {"model": config.model, "page": page, "files": files}


def write_public(source: Path, folder: Path, name: str) -> None:
    """Write what others need of a model folder, without this machine's paths.

    Args:
        source: the model's folder.
        folder: an empty folder.
        name: what the model will be called, ``OWNER/NAME``.

    Raises:
        UserError: if there is no model, or it needs a pipeline's weights.
    """
    from bezierdistill.files import read_text, write_json
    from bezierdistill.models import load_model
    from bezierdistill.models.folder import CARD, read_card
    from bezierdistill.records import parse_json

    card = read_card(source)
    if card.is_pipeline:
        raise UserError(
            f"{source} is of a pipeline, whose weights are its own: export it, and send that folder"
        )
    if not card.is_own:
        load_model(source)  # which is whole, or refused
    for part in KEPT:
        if (source / part).is_dir():
            shutil.copytree(source / part, folder / part)
        elif (source / part).exists():
            shutil.copyfile(source / part, folder / part)
    for file in (CARD, "metrics.json"):
        if (source / file).exists():
            record = parse_json(source / file, read_text(source / file, "model"))
            told = {k: public(v) for k, v in record.items() if file != CARD or k in TOLD}
            write_json(folder / file, record | told)
    (folder / "README.md").write_text(_readme(folder, name), encoding="utf-8")


def public(value: Any) -> Any:
    """A record without the folders of absolute paths."""
    if isinstance(value, dict):
        return {public(key): public(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [public(item) for item in value]
    return PLACE.sub("", value) if isinstance(value, str) else value


def _readme(folder: Path, name: str) -> str:
    from bezierdistill.interop.writing import origin
    from bezierdistill.models.folder import read_card

    card = read_card(folder)
    passes = max(card.knots, default=1 if card.kind == "student" else 20)
    first = f'model = load_model("{name}")'
    if card.is_own:
        first = f"""teacher = ...  # your module {card.network["name"]} in a bezierdistill.Teacher
model = load_model("{name}", teacher)"""
    use = f"x = model.sample(16, passes={passes})  # (16, ...), original units"
    if card.domain is not None:
        use = f"y = model.translate(x, passes={passes})  # (N, ...), original units of both"
    return f"""---
library_name: bezierdistill
tags: [bezierdistill, flow-matching, flow-map, few-step]
---

# A {card.kind} of states of shape {" x ".join(map(str, card.shape))}

Made by bezierdistill {card.package}, of data {card.data or "that are not named"}.

```python
from bezierdistill import load_model

{first}
{use}
```

{origin(card, folder)}"""
