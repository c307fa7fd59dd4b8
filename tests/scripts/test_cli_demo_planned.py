"""scripts/cli_demo_image.py with the bundled painter's kind: no extra package, one process and two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from planned_painter import small_folder

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc-per-node=2"]
PROMPT = "A red circle and a blue square."


def drawn(*flags: object, cwd: Path, launcher: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "scripts" / "cli_demo_image.py")
    command = [sys.executable, *(launcher or []), script, "--from_pretrained", "painter", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, flags)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
def test_one_process_and_two_draw_the_same(tmp_path: Path) -> None:
    small_folder(tmp_path / "painter")
    one = drawn("--prompt", PROMPT, "--seed", 3, "--output", "one.png", "--json", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    assert json.loads(one.stdout) == {
        "files": ["one.png"], "prompt": PROMPT, "size": [96, 96], "steps": 160, "guidance": 1.0, "seed": 3,
    }  # fmt: skip
    two = drawn("--prompt", PROMPT, "--seed", 3, "--output", "two.png", cwd=tmp_path, launcher=TORCHRUN)
    assert two.returncode == 0, two.stderr
    assert "two.png" in two.stdout and two.stdout.count("seed 3") == 1
    first, second = (Image.open(tmp_path / name) for name in ("one.png", "two.png"))
    assert first.size == (96, 96) and first.tobytes() == second.tobytes()
    several = drawn("--prompt", PROMPT, "--seed", 2, "--count", 2, "--output", "all", "--batch", 2, cwd=tmp_path)
    assert several.returncode == 0, several.stderr
    assert Image.open(tmp_path / "all" / "0002.png").tobytes() == first.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--size", "512x512"], "draws 96x96"),
        (["--steps", "50"], "160 tokens"),
        (["--guidance", "5"], "has none"),
        (["--sampler", "diffusers"], "sampler"),
        (["--quant_text", "8"], "no text encoder"),
    ],
)
def test_what_it_does_not_have_is_said(tmp_path: Path, flags: list[str], said: str) -> None:
    small_folder(tmp_path / "painter")
    refused = drawn("--prompt", PROMPT, *flags, cwd=tmp_path)
    assert refused.returncode == 2 and said in refused.stderr and not (tmp_path / "image.png").exists()
