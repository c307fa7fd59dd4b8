"""The memory estimate under model parallelism: a rank's share, found without a word between the ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from sat_models import runtime
from sat_models.checkpoint.find import find_checkpoint
from sat_models.models.build import build_model, make_config
from sat_models.training.memory import estimate_memory
from sat_models.training.trainable import apply_plan, plan_of

ROOT = Path(__file__).resolve().parents[2]


def test_each_of_two_ranks_needs_less_than_one_alone(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(Path(__file__).with_name("memory_worker.py")), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-4000:]
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert reports[0] == reports[1] and not reports[0]["note"]
    runtime.init_model_parallel(1)
    config = make_config(find_checkpoint(ROOT / "tests/golden/cogvlm-mini").config)
    model = build_model(config)
    apply_plan(model, plan_of("all", -1))
    alone = estimate_memory(
        model, config, precision="fp32", zero_stage=1, data_parallel=1, batch_size=2, length=40, device="cpu"
    ).phases
    for part, phase in (("weights", "step"), ("optimizer", "step"), ("gradients", "backward")):
        assert 0.5 * alone[phase][part] < reports[0]["phases"][phase][part] < 0.75 * alone[phase][part], part
    shared, whole = reports[0]["phases"]["forward"]["activations"], alone["forward"]["activations"]
    assert 0.45 * whole < shared < 0.95 * whole
