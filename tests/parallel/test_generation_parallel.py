"""Generating with one model over two processes: what is sent, and that all say the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sat_models.generation.answer import GenerationResult, Request
from sat_models.generation.sampling import SamplingOptions
from sat_models.zoo import load_pretrained

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
WORKER = Path(__file__).with_name("generation_worker.py")
sys.path.insert(0, str(WORKER.parent))
sys.path.insert(0, str(ROOT / "tests" / "generation"))
import generation_worker  # noqa: E402
import whole_forward  # noqa: E402


@pytest.fixture(scope="module", params=["cogvlm-mini", "cogagent-mini"])
def name(request: pytest.FixtureRequest) -> str:
    """Each miniature in turn."""
    return request.param


@pytest.fixture(scope="module")
def reports(name: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both processes wrote."""
    folder = tmp_path_factory.mktemp("generation")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, str(WORKER), str(GOLDEN / name), str(folder)],
        env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_sums_over_the_ranks_per_layer(reports: list[dict[str, Any]], name: str) -> None:
    """One after attention, one after the MLP, whichever experts ran; cross-attention has one of its own."""
    for report in reports:
        sums = report["sums"]
        if name == "cogvlm-mini":
            assert sums["slices"] == sums["index lists"] == sums["text"] == [2, 2, 2]
        else:
            assert sums["slices"] == [3, 3, 3]
            assert sums["text"] == [2, 2, 2]
        assert min(sums["with LoRA"]) > sums["slices"][0], "a wrapped expert sums by itself"


def test_batches_and_shared_sessions_are_those_of_one_process(reports: list[dict[str, Any]], name: str) -> None:
    first, second = reports
    vlm = load_pretrained(GOLDEN / name, device="cpu", dtype="float32")
    asked = generation_worker.prompts(vlm, GOLDEN / name)
    engine = generation_worker.Engine(vlm.model, eos_id=-5, max_length=256, device="cpu")
    alone = [row.token_ids for row in engine.answers(list(map(Request, asked, generation_worker.options())))]
    assert first["rows"] == second["rows"]
    assert [first["rows"][row] for row in (0, 2, 3)] == [alone[row] for row in (0, 2, 3)]
    assert len(first["rows"][1]) == 5
    answers = [list(vlm.engine().tokens(inputs, SamplingOptions(max_new_tokens=6))) for inputs in asked]
    assert first["turns"] == [answers[0]] * 2
    assert first["cached"] == [0, asked[0].length - 1]
    end = vlm.engine().answer(generation_worker.with_stop(vlm, asked[0], answers[0]))
    assert end.finish_reason == "stop" and len(end.token_ids) < 6
    assert first["stopped"] == [[end.text, end.token_ids, end.finish_reason]] * 4
    assert first["rows_of_session"] == [answers[row] for row in (0, 2, 3)]
    assert first["after"] == answers[2]


def test_forms_hold_on_all_processes(reports: list[dict[str, Any]], name: str) -> None:
    """Rows that all processes drive, drawn without a seed; streams and a session that the first one leads."""
    first, second = reports
    assert first["strict rows"] == second["strict rows"]
    vlm = load_pretrained(GOLDEN / name, device="cpu", dtype="float32")
    asked = generation_worker.strict(vlm, generation_worker.prompts(vlm, GOLDEN / name))
    alone = [answer.text for answer in vlm.engine().answers(asked)]
    for texts in (first["strict rows"], first["strict streams"], first["strict session"]):
        assert texts[1::2] == alone[1::2], "the greedy ones"
        for text in texts[:2]:
            assert set(json.loads(text)) == {"color", "why"}
        for text in texts[2:4]:
            assert vlm.read(text, (100, 100)).boxes
        assert {*texts[4:6]} <= {"left", "right"}


def test_scores_equal_one_forward_of_one_process(reports: list[dict[str, Any]], name: str) -> None:
    """Of rows that all processes drive, on each of them, drawn ones too; and of a stream that the first one leads."""
    vlm = load_pretrained(GOLDEN / name, device="cpu", dtype="float32")
    asked = generation_worker.prompts(vlm, GOLDEN / name)
    said = [*zip(asked, reports[0]["scored rows"], strict=True), *zip(asked, reports[1]["scored rows"], strict=True)]
    for inputs, found in [*said, (asked[1], reports[0]["scored stream"])]:
        whole_forward.check(vlm, inputs, GenerationResult("", finish_reason="length", **found), top=3)
