"""The memory estimate where two processes share a model. `torchrun … memory_worker.py FOLDER`"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sat_models import runtime
from sat_models.checkpoint.find import find_checkpoint
from sat_models.errors import run_script
from sat_models.models.build import build_model, make_config
from sat_models.training.memory import estimate_memory
from sat_models.training.trainable import apply_plan, plan_of

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "cogvlm-mini"


def main() -> None:
    """folder for reports."""
    runtime.init_model_parallel(2)
    config = make_config(find_checkpoint(GOLDEN).config)
    model = build_model(config)
    apply_plan(model, plan_of("all", -1))
    estimate = estimate_memory(
        model, config, precision="fp32", zero_stage=1, data_parallel=1, batch_size=2, length=40, device="cpu"
    )
    report = {"phases": estimate.phases, "note": estimate.note}
    (Path(sys.argv[1]) / f"{runtime.rank()}.json").write_text(json.dumps(report))
    print(runtime.gather_objects("still together"))


if __name__ == "__main__":
    run_script(main)
