"""VisualGLM, LLaVA and MiniGPT-4 over two processes: logits, answers and fine-tuning are those of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sat_models.checkpoint.io import save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("zoo_worker.py")
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "models")]
import miniatures  # noqa: E402
from golden_set import each_folder, folders  # noqa: E402

NAMES = (
    "cogvlm2-tiny", "glm4v-tiny", "visualglm-mini", "llava-tiny", "minigpt4-tiny", "minigpt4-llama2-tiny",
    "internvl-tiny", "internvl2-tiny", "xcomposer2-tiny", "xcomposer2-4khd-tiny",
)  # fmt: skip


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    """What one process and two processes report."""
    out = tmp_path_factory.mktemp("zoo")
    by_name = {mini.name: mini for mini in miniatures.MINIATURES}
    for name in NAMES:
        save_checkpoint(by_name[name].build(), out / name, by_name[name].config, step=1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    given = [str(WORKER), str(out), *(str(out / name) for name in NAMES), *map(str, folders("visualglm"))]
    for launcher in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]):
        run = subprocess.run(
            [sys.executable, *launcher, *given], env=environment, capture_output=True, text=True, timeout=900
        )
        assert run.returncode == 0, run.stderr[-4000:]
    return {size: torch.load(out / f"{size}.pt", weights_only=True) for size in (1, 2)}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_are_as_one(reports: dict[int, dict], name: str) -> None:
    one, two = reports[1][name], reports[2][name]
    torch.testing.assert_close(two["logits"], one["logits"], atol=2e-5, rtol=0)
    assert one["answer"] == two["answer"] and one["answer"]
    torch.testing.assert_close(torch.tensor(two["losses"]), torch.tensor(one["losses"]), atol=2e-4, rtol=0)
    assert one["losses"][-1] < 0.7 * one["losses"][0], "nothing was learnt, so equal losses prove nothing"


@pytest.mark.slow
@each_folder("visualglm")
def test_logits_over_processes_are_the_originals(reports: dict[int, dict], folder: Path) -> None:
    assert all(reports[size]["golden"][folder.name] <= 2e-5 for size in (1, 2))
