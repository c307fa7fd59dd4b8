"""Starting fine-tuning as users do, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "SAT_HOME": "/nowhere", "PYTHON": sys.executable}


def command(save_path: Path, *flags: str, processes: int = 1, **settings: Any) -> list[str]:
    """A run of `cogvlm-tiny` on examples/; `settings` are flags by name, None for none."""
    chosen: dict[str, Any] = {
        "from_pretrained": "cogvlm-tiny", "train_data": ROOT / "examples", "save_path": save_path, "device": "cpu",
        "batch_size": 2, "max_length": 128, "lora_rank": 4, "train_iters": 4, "save_interval": 2, "eval_interval": 0,
        "log_interval": 1, "workers": 0,
    }  # fmt: skip
    chosen |= settings
    named = [part for name, value in chosen.items() if value is not None for part in (f"--{name}", *_values(value))]
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    return [sys.executable, *launch, str(SCRIPTS / "finetune.py"), *named, *flags]


def finetune(save_path: Path, *flags: str, processes: int = 1, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    return subprocess.run(
        command(save_path, *flags, processes=processes, **settings),
        capture_output=True, text=True, env=ENVIRONMENT, timeout=900,
    )  # fmt: skip


def official(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The fourteen arguments, and flags behind them."""
    return subprocess.run(
        ["bash", str(SCRIPTS / "finetune_official.sh"), *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, env=ENVIRONMENT | environment, timeout=900,
    )  # fmt: skip


def losses(save_path: Path) -> dict[int, float]:
    """Training loss by step, as metrics.jsonl has it."""
    lines = [json.loads(line) for line in (save_path / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def _values(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)]
