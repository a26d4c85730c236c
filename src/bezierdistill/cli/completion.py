"""Completion of verbs, options and choices by the shell."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class CompletionConfig:
    """Print a script by which a shell completes verbs and options.

    Shells that are opened later read it where the examples put it, once the folder is there.

    Example::

        bezierdistill completion bash > ~/.local/share/bash-completion/completions/bezierdistill
        bezierdistill completion zsh > "${fpath[1]}/_bezierdistill"
        bezierdistill completion fish > ~/.config/fish/completions/bezierdistill.fish
    """

    shell: Literal["bash", "zsh", "fish"] = dataclasses.field(metadata={"positional": True})
    """Bash, zsh or fish."""


def main_completion(config: CompletionConfig) -> None:
    """Print the script, which `shtab <https://docs.iterative.ai/shtab>`_ makes of the parser."""
    import shtab

    from bezierdistill.cli.parser import build_parser  # imported here: this is one of its verbs

    print(shtab.complete(build_parser(), config.shell))
