"""The README's code and commands run as they stand, only with smaller numbers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from bezierdistill.cli import STORE, VERBS, main
from bezierdistill.metrics import classifier

README = (Path(__file__).parents[1] / "README.md").read_text()
SMALLER = [
    ("steps=3000", "steps=3"),
    ("steps=500", "steps=2"),
    ("align=600", "align=2, steps=3"),
    ('out="runs/curves"', 'out="runs/curves", count=90'),
    ('out="runs/guided")', 'out="runs/guided", count=90)'),
    ('out="runs/guided-student"', 'out="runs/guided-student", steps=3'),
]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BEZIERDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(classifier, "STEPS", 10)


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_blocks(block: str) -> None:
    for large, small in SMALLER:
        block = block.replace(large, small)
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert "images" not in names or getattr(names["images"], "shape", None) == (64, 8, 8)


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    net = ["--network.width", "16", "--network.depth", "2"]
    smaller = {
        "demo": ["--fast"],
        "recipe": ["--budget", "240000", "--batch", "128", *net],
        "arena": [
            "--methods",
            "teacher-euler,rfd-1",
            "--seeds",
            "1",
            "--budget",
            "12000",
            "--batch",
            "32",
            "--samples",
            "64",
            *net,
        ],
        "train": ["--steps", "3"],
        "simulate": ["--count", "90"],
        "distill": ["--steps", "3"],
        "sample": ["--count", "500"],
        "reflow": ["--steps", "150", "--count", "300", "--batch", "16", *net],
    }
    commands = [
        shlex.split(line, comments=True)
        for line in re.findall(r"^    (bezierdistill .*)$", README, re.MULTILINE)
    ]
    np.save("threes.npy", np.zeros((3, 8, 8), np.float32))
    unet = UNet2DModel(
        8,
        3,
        3,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained("ddpm")
    commands = [
        [{"THREES": "threes.npy", "DDPM": "ddpm"}.get(part, part) for part in command]
        for command in commands
    ]
    stages = {
        "train",
        "simulate",
        "distill",
        "sample",
        "evaluate",
        "report",
        "reflow",
        "translate",
        "import",
        "export",
        "store",
    }
    commands = [
        command for command in commands if command[1] != "app"
    ]  # which serves until it is stopped: tests/test_browser.py
    assert stages <= {command[1] for command in commands} <= VERBS.keys() | {"store"}
    assert {command[2] for command in commands if command[1] == "store"} == STORE.keys()
    for command in commands:
        align = ["--align", "2"] if "--align" in command else []
        assert main([*command[1:], *smaller.get(command[1], []), *align]) == 0, (
            capsys.readouterr().err
        )
    assert Path("runs/one.png").exists()
    assert Path("runs/student/report.html").exists()


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in re.findall(r"^    make ([\w-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
