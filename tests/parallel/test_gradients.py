"""One model over two processes: every gradient is that of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
WORKER = Path(__file__).with_name("gradients_worker.py")
sys.path.insert(0, str(WORKER.parent))
import gradients_worker  # noqa: E402


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what two processes wrote."""
    folder = tmp_path_factory.mktemp("gradients")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, str(WORKER), str(GOLDEN), str(folder)], env=environment, capture_output=True, text=True, timeout=900
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return folder


@pytest.mark.parametrize("recompute", [False, True], ids=["kept activations", "computed again"])
@pytest.mark.parametrize("name", gradients_worker.MODELS)
def test_two_processes_have_the_gradients_of_one(out: Path, name: str, recompute: bool) -> None:
    alone, _ = gradients_worker.whole_gradients(gradients_worker.backward(GOLDEN / name, recompute=recompute))
    both, apart = torch.load(out / f"{name}-{recompute}.pt", weights_only=True)
    assert apart <= 1e-6, "processes disagree on parameters that each of them holds"
    assert alone.keys() == both.keys()
    halved = 0
    for parameter, expected in alone.items():
        found = both[parameter]
        if ".vit_model.transformer.layers." in parameter and parameter.endswith(("dense.bias", "dense_4h_to_h.bias")):
            found, halved = 2 * found, halved + 1  # SAT divides these biases by the number of processes: numerics.md
        furthest = float((found - expected).abs().max())
        assert furthest <= 1e-6 + 1e-4 * float(expected.abs().max()), f"{parameter}: {furthest}"
    assert halved == 4
