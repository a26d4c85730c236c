"""Ending politely: a signal that asks the process to end is noted, and obeyed between two steps.

Ctrl-C, ``kill``, a closed terminal and a scheduler's warning all come as signals.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # not all of them exist on every system


class Ended(SystemExit):
    """A signal has asked the process to end; ``code`` is its exit status."""


class Stop:
    """While open, ``asked`` is the number of the signal that has come, or 0.

    Outside of the main thread nothing changes, and ignored signals (``nohup``) stay so.

    Args:
        patient: whether further signals are ignored; else a second one ends the process at once.
            torchrun sends its own after that of the terminal, and kills who does not end in time.
    """

    def __init__(self, patient: bool) -> None:
        self.asked, self.patient = 0, patient
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        """Listen."""
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
                if signal.getsignal(number) not in (None, signal.SIG_IGN):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = self.asked or number
        if not self.patient:
            self.__exit__()

    def __exit__(self, *error: object) -> None:
        """Leave signals to whoever had them before."""
        while self._before:
            signal.signal(*self._before.popitem())


def leave(number: int) -> None:
    """End as the signal ``number`` would have ended the process, but with everything closed.

    Raises:
        KeyboardInterrupt: for Ctrl-C.
        Ended: for the others, with the exit status 128 + ``number``.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Ended(128 + number)
