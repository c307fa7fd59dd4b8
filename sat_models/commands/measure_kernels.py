"""The C kernels of a decode step beside torch's operators: a product by rows and dtype, and attention for one token.

Both read what was not used for a while, as in a model. Medians, taken in turns.

With `--device cuda` the Triton kernels' products instead: the tiles of `generation/steps/triton_tuning.py` and the best
that are found, with the lines to put there.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sat_models.errors import ZooError, run_script
from sat_models.flags import check_numbers

if TYPE_CHECKING:
    import torch

    from sat_models.generation.steps.native import TokenKernels


def main(argv: Sequence[str] | None = None) -> int:
    """Run it. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 32, 64], metavar="N")
    parser.add_argument("--shape", type=int, nargs=2, metavar=("OUTPUTS", "INPUTS"))
    parser.add_argument("--heads", type=int, nargs=2, default=[8, 64], metavar=("HEADS", "WIDTH"))
    parser.add_argument("--context", type=int, default=1300, metavar="TOKENS")
    parser.add_argument("--repeats", type=int, default=31, metavar="N")
    parser.add_argument("--threads", type=int, metavar="N")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args(argv)
    args.shape = args.shape or {"cpu": [32000, 512], "cuda": [11008, 4096]}[args.device]
    check_numbers(args, dict.fromkeys(("rows", "shape", "heads", "context", "repeats", "threads"), 1))
    import torch

    from sat_models.generation.steps import native as token_kernels

    if args.device == "cuda":
        return search_tiles(*args.shape)
    if args.threads:
        torch.set_num_threads(args.threads)
    kernels = token_kernels.load()
    if kernels is None:
        raise ZooError("there are no C kernels here; install again with a C compiler at hand")
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}")
    print("| what | kernel | torch | times faster |\n| --- | --- | --- | --- |")
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        for rows in args.rows:
            found = milliseconds(args.repeats, *products(kernels, *args.shape, rows, dtype))
            print_line(f"product {args.shape[0]} x {args.shape[1]}, {rows} row(s), {name}", *found)
        found = milliseconds(args.repeats, *attentions(kernels, *args.heads, args.context, dtype))
        print_line(f"attention, {args.heads[0]} heads of {args.heads[1]}, {args.context} tokens, {name}", *found)
    return 0


def search_tiles(outputs: int, inputs: int) -> int:
    """Print what is found on the GPU as it is found."""
    import torch

    from sat_models import runtime
    from sat_models.bench import triton_tiles
    from sat_models.generation.steps.triton_language import can_launch_on

    device = torch.device(runtime.choose_device("cuda"))
    if not can_launch_on(device):
        raise ZooError("Triton is not installed here; torch's builds for GPUs bring it")
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, a weight of {outputs} x {inputs}")
    for line in triton_tiles.report(outputs, inputs, device):
        print(line, flush=True)
    return 0


def products(
    kernels: TokenKernels, outputs: int, inputs: int, rows: int, dtype: torch.dtype
) -> tuple[Callable[[], object], ...]:
    """The kernel's and torch's."""
    import torch

    weight, x, out = torch.randn(outputs, inputs).to(dtype), torch.randn(rows, inputs), torch.empty(rows, outputs)
    given = x.to(dtype).squeeze(0)  # one row is a vector, as in the decode step
    return lambda: kernels.product(out, x, weight), lambda: torch.nn.functional.linear(given, weight)


def attentions(
    kernels: TokenKernels, heads: int, width: int, context: int, dtype: torch.dtype
) -> tuple[Callable[[], object], ...]:
    """The kernel's, with rotation and the new token's way into the cache, and torch's, without."""
    import torch

    keys, values = (torch.randn(1, heads, context, width).to(dtype) for _ in range(2))
    mixed, query = torch.randn(1, 3 * heads * width), torch.randn(1, heads, 1, width).to(dtype)
    out, scores = torch.empty(1, heads * width), torch.empty(heads * context)
    turns = (torch.ones(1, width), torch.zeros(1, width))
    return (
        lambda: kernels.attend(out, mixed, turns, keys, values, context - 1, None, scores),
        lambda: torch.nn.functional.scaled_dot_product_attention(query, keys, values),
    )


def milliseconds(repeats: int, *ways: Callable[[], object]) -> list[float]:
    """Medians, each after reading much else."""
    import torch

    other = torch.randn(50_000_000)
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats):
        for way, seen in zip(ways, times, strict=True):
            other.sum()
            start = time.perf_counter()
            way()
            seen.append(time.perf_counter() - start)
    return [1e3 * statistics.median(seen) for seen in times]


def print_line(what: str, ours: float, theirs: float) -> None:
    print(f"| {what} | {ours:.3f} ms | {theirs:.3f} ms | {theirs / ours:.2f} |")


def command() -> None:
    """The console command `sat-measure-kernels`, and `scripts/measure_kernels.py`."""
    run_script(main)
