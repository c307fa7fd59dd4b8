"""Compiles the kernels of whole steps for an H100, where no GPU is: what the interpreter takes, a compiler may refuse.

Run by `test_triton.py` in a process of its own. Prints how many kernels were compiled.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

from mixins.kv_cache import KVStore, kv_cache
from sat_models.bench.random_models import config_of_sizes, random_model
from sat_models.generation.steps import triton_attention, triton_products, triton_step
from sat_models.generation.steps.flat import TokenStep
from sat_models.generation.steps.triton_language import tl

NAMES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
COMPILED: list[Any] = []


def compile_instead_of_launching() -> None:
    """Kernels see a GPU, are compiled for what they are given, and do not run."""
    target = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )  # fmt: skip
    triton.runtime.driver.set_active(target)
    run = triton.runtime.jit.JITFunction.run

    def compiled(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        COMPILED.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    triton.runtime.jit.JITFunction.run = compiled
    triton_step.can_launch_on = lambda device: True
    for module in (triton_products, triton_attention):
        module.dot_type = lambda x: NAMES[x.dtype]


def step(bits: int | None, rows: int, dtype: torch.dtype, *, masked: bool) -> None:
    """One step of a model whose heads are as wide as those of the 7 B models, with a cache that is split."""
    config = config_of_sizes(
        layers=1, hidden_size=256, heads=2, inner_size=512, vocab_size=128, image_tokens=16, vision_layers=1,
        vision_hidden_size=32, vision_heads=2, vision_inner_size=64,
    )  # fmt: skip
    model = random_model(config, dtype=dtype, device=torch.device("cpu"), bits=bits)
    with torch.inference_mode(), kv_cache(model, 0):
        store = KVStore(1, 512)
        store.append(0, *torch.zeros(2, rows, 2, 1, 128, dtype=dtype))
        mask = torch.ones(rows, 1, 1, 1, dtype=torch.bool) if masked else None
        decode = triton_step.TritonStep(TokenStep.of(model))
        decode(torch.zeros(rows, dtype=torch.long), torch.zeros(rows, 1, dtype=torch.long), store, mask, max_position=0)


if __name__ == "__main__":
    compile_instead_of_launching()
    cases = {
        "few": [(None, 1, torch.bfloat16, False), (4, 3, torch.bfloat16, True)],
        "all": [
            (bits, rows, dtype, rows > 1)
            for dtype in (torch.bfloat16, torch.float16, torch.float32)
            for bits in (None, 8, 4)
            for rows in (1, 3, 20)
        ],
    }
    for bits, rows, dtype, masked in cases[sys.argv[1]]:
        step(bits, rows, dtype, masked=masked)
    print(f"{len({kernel.hash for kernel in COMPILED})} kernels compiled")
