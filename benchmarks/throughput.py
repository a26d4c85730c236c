"""Images per second of a student at one and two passes, against its teacher at 50 passes and
against the bare network.

    python benchmarks/throughput.py --student runs/digits/student --teacher runs/digits/strong
    [--batch 256] [--accelerator auto]

Rounds of all four are interleaved, and ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bezierdistill.models import load_model
from bezierdistill.noise import Stream, noise
from bezierdistill.training.ranks import open_fabric


def seconds(work: Callable[[], object], least: float) -> float:
    """Seconds of one call, over as many calls as take ``least`` seconds."""
    calls, start = 0, time.perf_counter()
    while not calls or time.perf_counter() - start < least:
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        calls += 1
    return (time.perf_counter() - start) / calls


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--least", type=float, default=1.0, help="seconds a measurement")
    arguments = parser.parse_args()
    device = open_fabric(arguments.accelerator).device
    student, teacher = load_model(arguments.student), load_model(arguments.teacher)
    for model in (student, teacher):
        model.net.to(device)
    x0 = noise(0, Stream.SAMPLE, range(arguments.batch), student.shape).to(device)
    cond = student.condition(range(arguments.batch))
    cond = None if cond is None else cond.to(device)
    own = cond if cond is None else cond[:, : teacher.condition_size]
    zero, one = (
        torch.zeros(arguments.batch, device=device),
        torch.ones(arguments.batch, device=device),
    )
    work: dict[str, Callable[[], object]] = {
        "bare network": lambda: student.net(x0, zero, one, cond),
        "student, 1 pass": lambda: student.generate(x0, 1, cond=cond),
        "student, 2 passes": lambda: student.generate(x0, 2, cond=cond),
        "teacher, Heun, 50 passes": lambda: teacher.generate(x0, 50, "heun", own),
    }
    for call in work.values():
        call()
    rounds = [
        {name: seconds(call, arguments.least) for name, call in work.items()}
        for _ in range(arguments.rounds)
    ]
    for name in work:
        print(
            f"{name}: {arguments.batch / statistics.median(row[name] for row in rounds):,.0f}"
            " images a second"
        )
    for name in ("student, 1 pass", "student, 2 passes"):
        faster = statistics.median(row["teacher, Heun, 50 passes"] / row[name] for row in rounds)
        bare = statistics.median(row["bare network"] / row[name] for row in rounds)
        print(
            f"{name}: {faster:.1f} times the teacher at 50 passes, {bare:.2f} of the bare network's"
            " speed"
        )


if __name__ == "__main__":
    main()
