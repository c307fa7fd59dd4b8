"""Golden folders in the layout on disk of an original: what every family's parity test does (see golden_set.py)."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sat_models.checkpoint.huggingface import read_shard_file, weight_files
from sat_models.errors import ConfigError
from sat_models.generation.sampling import SamplingOptions
from sat_models.serving.core import Question, ServerCore
from sat_models.serving.requests import Finished
from sat_models.zoo.load import load_config
from sat_models.zoo.vlm import VLM

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from golden_set import SET, folders, reference, tensors  # noqa: E402

__all__ = [
    "SET",
    "TOLERANCE",
    "Reference",
    "folders",
    "in_processes",
    "in_two_processes",
    "most_processes",
    "same_answers",
    "same_through_a_server",
    "weights_of",
]

TOLERANCE = 2e-5
"""Of logits in fp32."""


class Reference:
    """What the original gave.

    Attributes:
        cases, train_cases: of `reference.json`.
        tensors: of `reference.safetensors`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.content: dict[str, Any] = reference(folder)
        self.cases: list[dict[str, Any]] = self.content["cases"]
        self.train_cases: list[dict[str, Any]] = self.content.get("train_cases", [])
        self.tensors: dict[str, Tensor] = tensors(folder)


def same_answers(vlm: VLM, case: dict[str, Any], **asked: Any) -> None:
    """Greedy ids and text equal the original's, with the cache and computed anew for each token."""
    ends = set(vlm.processor.tokenizer.eos_ids)
    wanted = [token for token in case["generated"] if token not in ends]
    found = vlm.generate(**asked, max_new_tokens=len(case["generated"]))
    assert found.token_ids == wanted and found.text == case["text"]
    given = vlm.processor(**asked).model_kwargs()
    for token in wanted[:6]:
        with torch.inference_mode():
            assert int(vlm.model(**given)[0][0, -1].argmax()) == token
        given = longer(given, token)


def same_through_a_server(vlm: VLM, asked: list[tuple[Any, str, list]], tokens: int) -> None:
    """Dialogues (images, question, history) asked all at once give what each gives alone; asked again, beginnings of
    their prompts are kept."""
    alone = [vlm.generate(*call, max_new_tokens=tokens).token_ids for call in asked]
    core = ServerCore(vlm, vlm.engine(keep_prefixes=4), names=["model"])
    for _ in range(2):
        answers: list[queue.Queue] = [queue.Queue() for _ in asked]
        requests = [
            core.prepare(Question(query, shown, history, options=SamplingOptions(max_new_tokens=tokens)))
            for shown, query, history in asked
        ]
        core.scheduler.submit_all([(r, answer.put) for r, answer in zip(requests, answers, strict=True)])
        for wanted, answer in zip(alone, answers, strict=True):
            event = answer.get(timeout=120)
            while not isinstance(event, Finished):
                event = answer.get(timeout=120)
            assert event.answer.token_ids == wanted
    core.scheduler.close()


def longer(given: dict[str, Any], token: int) -> dict[str, Any]:
    """Arguments of a forward with one more token of text."""
    grown = dict(given)
    grown["input_ids"] = torch.cat((given["input_ids"], torch.tensor([[token]])), dim=1)
    grown["position_ids"] = torch.cat((given["position_ids"], given["position_ids"][:, -1:] + 1), dim=1)
    for name in ("image_embed_mask", "vision_expert_mask"):
        if grown.get(name) is not None:
            grown[name] = torch.nn.functional.pad(given[name], (0, 1))
    return grown


def weights_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a Hugging Face folder."""
    return {name: value for file in weight_files(folder)[0] for name, value in read_shard_file(file).items()}


def most_processes(folder: Path, most: int) -> int:
    """The largest number of processes, at most so many, over which a folder's sizes let its model be split."""
    config = load_config(folder)
    for count in range(most, 1, -1):
        with contextlib.suppress(ConfigError):
            config.check_model_parallel(count)
            return count
    return 1


def in_two_processes(folder: Path, out: Path) -> list[float]:
    """`in_processes` with two."""
    return in_processes(folder, out, 2)


def in_processes(folder: Path, out: Path, count: int) -> list[float]:
    """The largest difference of any golden logit in each process that shares the model: so many, or as many fewer as
    its sizes ask for."""
    count = most_processes(folder, count)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += [str(ROOT / "tests" / "parallel" / "hf_golden_worker.py"), str(folder), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(count)]
