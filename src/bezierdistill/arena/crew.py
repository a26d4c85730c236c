"""Processes that share the cells of an arena, of one thread each.

Each is asked for one cell at a time, by a line on its standard input, and answers by a line when
the cell's file is written; a closed input stops it, so none outlives who asked. One that dies takes
its cell with it and no other: it is told, and another process takes its place.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TextIO

import torch

from bezierdistill.arena.cells import Cell, Cells, failed
from bezierdistill.arena.runner import ArenaConfig, choose_methods
from bezierdistill.data import load_data
from bezierdistill.errors import UserError
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.progress import announce, silent, stage
from bezierdistill.records import to_json, write_record
from bezierdistill.training.settings import LoopConfig

PATIENCE = 120.0  # seconds in which a process that is stopped saves its state


class Crew:
    """Processes that run cells.

    Args:
        config: settings of the arena, as they are run.
        done: called after each cell, by one thread at a time.
    """

    def __init__(self, config: ArenaConfig, done: Callable[[Cell], object]) -> None:
        self.config, self.done, self.lock = config, done, threading.Lock()
        self.stopped, self.running = False, set[subprocess.Popen[str]]()

    def run(self, cells: Sequence[Cell]) -> None:
        """Run cells, in this order.

        Raises:
            UserError: if teachers for all cannot be trained.
            OSError: if the disk is full.
        """
        left, count = deque(enumerate(cells, 1)), len(cells)

        def work() -> None:
            process = None
            while not self.stopped:
                with self.lock:
                    if not left:
                        break
                    k, cell = left.popleft()
                what = cell.method or "teachers for all"
                announce(f"cell {k} of {count}: {what}, seed {cell.seed}")
                process = process or self._started()
                process = self._run(process, cell)
                announce(f"cell {k} of {count} has ended: {what}, seed {cell.seed}")
                advance(1)
            if process is not None:
                self._end(process)

        jobs = min(self.config.jobs, count)
        with stage("cells", count) as advance, ThreadPoolExecutor(max(1, jobs)) as pool:
            futures = [pool.submit(work) for _ in range(jobs)]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self._stop()
                raise

    def _started(self) -> subprocess.Popen[str]:
        paths = os.pathsep.join(filter(None, sys.path))
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "bezierdistill.arena.crew"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
            start_new_session=True,  # Ctrl-C reaches it once, through us
        )
        self.running.add(process)
        with suppress(BrokenPipeError):  # it has died: no answer will tell
            _send(process, to_json(self.config))
        return process

    def _run(self, process: subprocess.Popen[str], cell: Cell) -> subprocess.Popen[str] | None:
        """Have a cell run; None if the process has died."""
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            _send(process, cell)
        answer = process.stdout.readline()
        if self.stopped:
            return process
        if answer:
            told = json.loads(answer)
            if told:
                raise {"UserError": UserError}.get(told[0], OSError)(told[1])
        else:
            self.running.discard(process)
            row = failed(cell, f"its process ended with {process.wait()}")
            write_record(cell.file(self.config.out), [row])
        with self.lock:
            self.done(cell)
        return process if answer else None

    def _end(self, process: subprocess.Popen[str]) -> None:
        """Close a process's input, and wait for its end."""
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(PATIENCE)
        except BaseException:
            process.kill()
            raise
        finally:
            self.running.discard(process)

    def _stop(self) -> None:
        self.stopped = True
        for process in [*self.running]:
            with suppress(BrokenPipeError):
                assert process.stdin is not None
                process.stdin.close()
        for process in [*self.running]:
            with suppress(subprocess.TimeoutExpired):
                self._end(process)


def _send(process: subprocess.Popen[str], value: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(value) + "\n")
    process.stdin.flush()


def _settings(told: dict[str, Any]) -> ArenaConfig:
    parts = {"network": NetworkConfig, "loop": LoopConfig}
    inner = {name: kind(**_tuples(told[name])) for name, kind in parts.items()}
    return ArenaConfig(**_tuples(told) | inner)


def _tuples(told: dict[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in told.items()
    }


def _serve(asked: SimpleQueue[str], answers: TextIO, busy: threading.Event) -> None:
    """Run the cells that are asked for, until the input ends."""
    config = _settings(json.loads(asked.get()))
    data, methods = load_data(config.data), choose_methods(config.methods, config.track)
    cells = Cells(config, data, methods)
    while line := asked.get():
        told: list[str] = []
        busy.set()
        try:
            cells.run(Cell(*json.loads(line)))
        except (UserError, OSError) as error:
            told = [type(error).__name__, str(error)]
        busy.clear()
        print(json.dumps(told), file=answers, flush=True)


def main() -> None:
    """One process of a crew."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # by which a closed input stops it
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what methods print is no answer
    asked, busy = SimpleQueue[str](), threading.Event()

    def listen() -> None:
        for line in sys.stdin:
            asked.put(line)
        asked.put("")
        if busy.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=listen, daemon=True).start()
    with suppress(KeyboardInterrupt), silent():  # who asked tells of the cells
        _serve(asked, answers, busy)


if __name__ == "__main__":
    main()
