"""Fine-tuning on one rank and on two: the same losses, the same weights, the same merged model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sat_models.checkpoint.adapter import read_adapter
from sat_models.zoo import load_pretrained

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "cogvlm-mini"
WORKER = Path(__file__).with_name("lora_worker.py")
sys.path.insert(0, str(WORKER.parent))
import lora_worker  # noqa: E402

KEYS = list(lora_worker.PLANS)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what both runs wrote."""
    folder = tmp_path_factory.mktemp("lora")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(WORKER), str(GOLDEN), str(folder)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-4000:]
    report = {key: lora_worker.train(GOLDEN, *given, folder, key) for key, given in lora_worker.PLANS.items()}
    (folder / "1-0.json").write_text(json.dumps(report))
    return folder


@pytest.fixture(scope="module")
def reports(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Of one rank alone, and of both ranks of two."""
    alone, first, second = (json.loads((out / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    return alone, [first, second]


@pytest.mark.parametrize("key", ["lora", "dora", "full"])
def test_the_losses_are_the_same(reports: tuple, key: str) -> None:
    alone, both = reports
    losses = alone[key]["losses"]
    assert losses[3] < losses[0] - 0.1, "it learns: both are of one sample"
    for report in both:
        assert max(abs(a - b) for a, b in zip(losses, report[key]["losses"], strict=True)) <= 1e-4


@pytest.mark.parametrize("key", KEYS)
def test_ranks_agree_on_what_is_whole(reports: tuple, key: str) -> None:
    first, second = reports[1]
    assert first[key]["apart"] == second[key]["apart"] == 0.0
    assert first[key]["losses"] == second[key]["losses"]


@pytest.mark.parametrize("key", [key for key in KEYS if key != "full"])
def test_merged_models_give_the_trained_logits(reports: tuple, key: str) -> None:
    alone, both = reports
    for report in (alone, *both):
        assert report[key]["merged"] <= 1e-5


@pytest.mark.parametrize("key", ["lora", "dora", "dropout"])
def test_an_adapter_trained_on_two_ranks_is_whole(out: Path, key: str) -> None:
    model = load_pretrained(out / f"{key}-2", device="cpu", dtype="float32").model
    assert read_adapter(out / f"{key}-2").extra["step"] == lora_worker.PLANS[key][3]
    trained = torch.load(out / f"{key}-logits-2.pt")
    assert (lora_worker.logits_of(model, GOLDEN) - trained).abs().max() <= 2e-5


@pytest.mark.parametrize("key", ["lora", "dora", "full"])
def test_both_sizes_end_with_the_same_model(out: Path, key: str) -> None:
    one, two = (torch.load(out / f"{key}-logits-{size}.pt") for size in (1, 2))
    assert (one - two).abs().max() <= 1e-3


def test_the_table_counts_the_whole_model_on_any_number_of_ranks(reports: tuple) -> None:
    alone, both = reports
    assert all(report[key]["table"] == alone[key]["table"] for report in both for key in KEYS)
