"""The web page: curves in the plane, a student at work, translations if the run has any, and an
arena's result, in tabs (Gradio).

It shows what a run's folder holds, or the small run that ships with the package, which
``benchmarks/bundled.py`` makes.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bezierdistill.errors import UserError
from bezierdistill.objects import as_named
from bezierdistill.settings import as_paths

MAX_WAITING, MAX_AT_ONCE = 32, 2


@dataclass(frozen=True)
class AppConfig:
    """Open a page of a run: curves, samples, translations, results.

    Example::

        bezierdistill app --run runs/demo --browser
    """

    run: Path | None = None
    """Folder of a run; without it the page shows the small run that ships with the package."""
    network: str | object | None = None
    """Of students that are your own module: FILE.py:function that returns their teacher."""
    host: str = "127.0.0.1"
    """Address (IPv4) or name to listen on; 0.0.0.0 lets other machines in, and there is no
    password."""
    port: int = 7860
    """Port to listen on."""
    browser: bool = False
    """Open the page in the browser."""

    def __post_init__(self) -> None:
        as_named(self, "network")
        if self.run is not None:
            as_paths(self, "run")
        if not 1 <= self.port <= 65535:
            raise UserError(f"port is {self.port}, expected 1 to 65535")


def serve(config: AppConfig) -> None:
    """Serve the page until it is interrupted.

    Raises:
        UserError: if the extra ``app`` is not installed, the folder holds no run, or the address
            cannot be listened on.
    """
    if find_spec("gradio") is None:
        missing = "gradio is not installed, which the page needs"
        raise UserError(f'{missing}: pip install "bezierdistill[app]"')
    from bezierdistill.app.page import build, look
    from bezierdistill.app.run import open_run
    from bezierdistill.app.upload import LARGEST

    _check_address(config.host, config.port)
    for name in ("NO_PROXY", "no_proxy"):  # Gradio asks its own address once, which no proxy sees
        known = [os.environ[name]] if os.environ.get(name) else []
        os.environ[name] = ",".join([*known, config.host, "127.0.0.1", "localhost"])
    page = build(open_run(config.run, config.network))
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=MAX_AT_ONCE)
    page.launch(
        server_name=config.host,
        server_port=config.port,
        inbrowser=config.browser,
        max_file_size=LARGEST,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        **look(),
    )
    print(f"{page.local_url}: {page.title}, Ctrl-C ends it", flush=True)
    page.block_thread()


def _check_address(host: str, port: int) -> None:
    with socket.socket() as trial:
        # As servers do: a page that has just ended does not count.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except socket.gaierror:
            expected = "an IPv4 address or a name of this machine, such as 127.0.0.1"
            raise UserError(f"host is {host!r}, expected {expected}") from None
        except OSError as error:
            raise UserError(
                f"{host}:{port} cannot be listened on ({error.strerror}): is another page open?"
                " Choose another --port"
            ) from None


def main_app(config: AppConfig) -> None:
    """The verb ``app``."""
    serve(config)
