"""Hold the memory estimate of training against measured peaks, on this machine's CPU.

python scripts/measure_memory.py                     # the cases below: a random CogVLM of 215 M parameters
python scripts/measure_memory.py zero1-all-fp32      # some of them

A case trains two steps in a process of its own. Its peak is the largest resident memory above the level after imports.
glibc's allocator gives blocks of 1 MB and more back at once, as with MALLOC_MMAP_THRESHOLD_=1048576; with --as_is it
keeps what it likes, which is up to as much again as the activations. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from collections.abc import Sequence

import torch

from sat_models import registry, runtime
from sat_models.checkpoint.memory import forget_peak, process_bytes
from sat_models.config import read_json
from sat_models.errors import run_script
from sat_models.models.build import build_model, make_config
from sat_models.training.activations import example_batch
from sat_models.training.engine import DTYPES, import_deepspeed, start_engine
from sat_models.training.losses import token_loss
from sat_models.training.memory import estimate_memory
from sat_models.training.settings import FinetuneSettings
from sat_models.training.trainable import apply_plan, plan_of

M_MMAP_THRESHOLD = -3  # of malloc.h
SIZES = {"num_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "inner_hidden_size": 2048, "vocab_size": 8000}
TOWER = {"num_layers": 8, "hidden_size": 512, "num_attention_heads": 8, "inner_hidden_size": 2048}
SHORT, LONG = {"batch_size": 1, "length": 96}, {"batch_size": 2, "length": 256}
KEEP, AGAIN = ({"checkpoint_language": flag, "checkpoint_vision": flag} for flag in (False, True))
CASES = {
    "zero0-all-fp32": (0, "fp32", ("all", -1), SHORT, KEEP),
    "zero1-all-fp32": (1, "fp32", ("all", -1), SHORT, KEEP),
    "zero2-all-fp32": (2, "fp32", ("all", -1), SHORT, KEEP),
    "zero1-all-bf16": (1, "bf16", ("all", -1), SHORT, KEEP),
    "zero1-expert-fp32": (1, "fp32", ("expert", -1), SHORT, KEEP),
    "zero2-lora-fp32": (2, "fp32", ("all", 10), LONG, KEEP),
    "zero1-lora-fp32-recompute": (1, "fp32", ("all", 10), LONG, AGAIN),
}


def measure(name: str) -> tuple[int, int]:
    """Measured and estimated bytes of a case."""
    zero, precision, plan, shape, again = CASES[name]
    import_deepspeed(torch.device("cpu"))  # before the case begins, so that it belongs to its level
    runtime.init_model_parallel(1)
    tiny = read_json(registry.config_path("cogvlm-tiny"))
    config = make_config({**tiny, **SIZES, "eva_args": {**tiny["eva_args"], **TOWER}})
    shapes = build_model(config)
    apply_plan(shapes, plan_of(*plan))
    estimate = estimate_memory(
        shapes, config, **shape, **again, precision=precision, zero_stage=zero, data_parallel=1, device="cpu"
    )
    print(f"{name}, {sum(p.numel() for p in shapes.parameters()) / 1e6:.0f} M parameters\n{estimate.table()}")
    forget_peak()
    level = process_bytes("VmRSS")
    model = build_model(config, device="cpu", dtype=DTYPES[precision])
    apply_plan(model, plan_of(*plan))
    settings = FinetuneSettings(
        from_pretrained="-", train_data=("-",), save_path="-", zero=zero, batch_size=shape["batch_size"], **again
    )
    engine = start_engine(model, settings, precision, torch.device("cpu"))
    del model
    inputs = example_batch(config, **shape)
    inputs.vision_image = torch.zeros(inputs.vision_image.shape, dtype=DTYPES[precision])
    inputs.labels = inputs.input_ids.masked_fill(inputs.image_embed_mask == 1, -100)
    engine.train()
    for _ in range(2):
        loss, count = token_loss(engine, inputs)
        engine.backward(loss / count)
        engine.step()
    return process_bytes("VmHWM") - level, estimate.total


def main(argv: Sequence[str] | None = None) -> int:
    """Run it. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="default: all")
    parser.add_argument("--as_is", action="store_true", help="leave the C library's allocator as it is")
    arguments = parser.parse_args(argv)
    if not arguments.as_is:
        ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 1 << 20)
    for name in arguments.cases or CASES:
        child = os.fork()
        if child == 0:
            measured, estimated = measure(name)
            off = estimated / measured - 1
            print(f"measured {measured / 1e9:.3f} GB, estimated {estimated / 1e9:.3f} GB ({off:+.1%})\n", flush=True)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            print(f"{name} failed", file=sys.stderr)
            return 1
    return 0


def command() -> None:
    """The console command `sat-measure-memory`, and `scripts/measure_memory.py`."""
    run_script(main)
