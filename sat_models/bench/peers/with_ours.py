"""This project as a worker of `protocol.py`."""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from protocol import Answer, Draw, Seen, run

BITS = {"fp32": None, "bf16": None, "int8": 8, "int4": 4}


def serve(folder: Path, form: str, threads: int) -> tuple[str, Answer]:
    """The engine on the LLaVA of `folder`, asked about text."""
    import torch

    from sat_models.generation.engine import Engine
    from sat_models.generation.sampling import SamplingOptions
    from sat_models.processing.layout import VLMInputs, layout_prompt
    from sat_models.zoo import load_pretrained

    torch.set_num_threads(threads)
    dtype = "bfloat16" if form == "bf16" else "float32"
    vlm = load_pretrained(folder / "hf", device="cpu", dtype=dtype, quant=BITS[form])
    engine = Engine(vlm.model, eos_id=-1, max_length=2**20, device="cpu")

    def answer(ids: Sequence[int], new: int, seen: Seen) -> None:
        layout = layout_prompt([ids[1:]], bos_id=ids[0], form=vlm.config.sequence_form)
        for token in engine.tokens(VLMInputs.from_layout(layout), SamplingOptions(max_new_tokens=new)):
            seen(token)

    return f"this project, {engine.way}, torch {torch.__version__}", answer


def draw(folder: Path, form: str, threads: int) -> tuple[str, Draw]:
    """The painter of `folder`, with as little in memory as it can do with."""
    import torch

    from sat_models.zoo import load_pretrained

    torch.set_num_threads(threads)
    dtype = "bfloat16" if form == "bf16" else "float32"
    painter = load_pretrained(folder / "painter-ours", device="cpu", dtype=dtype, quant=BITS[form], keep="none")

    def drawn(request: Mapping[str, Any], stepped: Callable[[], None]) -> None:
        options = {name: request[name] for name in ("steps", "guidance", "seed")}
        for state in painter.steps(request["prompt"], size=tuple(request["size"]), sampler="diffusers", **options):
            last = state
            stepped()
        last.images()[0].save(request["file"])

    return f"this project, torch {torch.__version__}", drawn


def train(folder: Path, form: str, threads: int) -> dict[str, Any]:
    """A LoRA of the language model on `folder`/train, in twelve steps."""
    import torch

    from sat_models.training.finetune import main

    torch.set_num_threads(threads)
    plan = json.loads((folder / "train" / "plan.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as run_folder:
        flags = {
            "from_pretrained": folder / "hf", "local_tokenizer": plan["tokenizer"],
            "train_data": folder / "train" / "data.jsonl", "lora_rank": plan["rank"], "lora_alpha": plan["rank"],
            "lora_targets": "language", "trainable": "all", "batch_size": plan["batch"], "max_length": 800,
            "train_iters": plan["steps"], "log_interval": 1, "save_interval": 10**6, "eval_interval": 0,
            "save_path": run_folder, "device": "cpu", "precision": "fp32",
        }  # fmt: skip
        given = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        main([*given, "--no-merge", *([] if form == "checkpointed" else ["--no-checkpoint_language"])])
        lines = (Path(run_folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [values for line in lines if "tokens_per_s" in (values := json.loads(line))]
    smooth = [step["tokens_per_s"] for step in steps]  # each is 0.9 of the one before and 0.1 of the step's own
    own = [10 * after - 9 * before for before, after in itertools.pairwise(smooth)]
    return {"tokens_per_s": statistics.median(own[1:]), "loss": steps[-1]["loss"]}


if __name__ == "__main__":
    run({"torch": "torch"}, serve, draw=draw, train=({"deepspeed": "deepspeed"}, train))
