"""Peak memory of what runs in a cell of the arena: the process's, or a CUDA device's."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

import torch


def reset_peak(device: torch.device) -> None:
    """Start measuring peak memory again, where the system can (Linux, but not in every sandbox)."""
    if device.type == "cuda":
        torch.cuda.init()  # nothing may have run there yet, and then there is nothing to reset
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device: torch.device) -> float:
    """Peak memory in MB since the last reset, or since the process's start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes, others kB
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
