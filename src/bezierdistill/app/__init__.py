"""The web page: curves in two dimensions, a student at work, translations, and an arena's result, in four tabs (Gradio).

It shows what a run's folder holds, or the small run that ships with the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bezierdistill.training.config import as_paths


@dataclass(frozen=True)
class AppConfig:
    """Open a web page on this machine: curves, samples, translations and results of a run.

    Args:
        run: folder of a run; without it the page shows the small run that ships with the package.
        host: address to listen on; 0.0.0.0 lets other machines in.
        port: port to listen on.
        open: open the page in the browser.
    """

    run: Path | None = None
    host: str = "127.0.0.1"
    port: int = 7860
    open: bool = False

    def __post_init__(self) -> None:
        if self.run is not None:
            as_paths(self, "run")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}, expected 0 to 65535 (0 takes any that is free)")


def serve(config: AppConfig) -> None:
    """Serve the page until it is interrupted.

    Raises:
        ValueError: if the folder holds no run, the extra ``app`` is not installed, or the port is taken.
    """
    raise NotImplementedError
