"""Speed and memory on random weights, beside SAT's own generation on the same ones and this machine's floors.

`--preset gpu` runs the whole table of the 17-billion-parameter shape on one GPU, in under eight minutes.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from sat_models.errors import run_script
from sat_models.files import check_place
from sat_models.flags import add_device_flags, check_numbers

PRESETS = {
    "cpu": {},
    "gpu": {
        "model": "cogvlm-chat", "device": "cuda", "dtype": "bfloat16", "contexts": [1300, 2000], "text_contexts": [300],
        "new_tokens": 64, "repeats": 2, "train": "lora", "train_batch": 1, "seconds": 360.0,
        "cases": ["vision", "prefill", "decode", "batch", "profile", "train", "quant"], "kernels": ["triton"],
    },
}  # fmt: skip


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read and check the flags. Raises ConfigError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu", help="defaults of the other flags")
    parser.add_argument(
        "--cases",
        nargs="+",
        metavar="CASE",
        help="of vision prefill decode batch train quant profile (default: without the last)",
    )
    size = parser.add_argument_group("the model: a name of the zoo for its sizes, or sizes (default: 90 M parameters)")
    size.add_argument("--model", metavar="NAME")
    for flag, value in {
        "layers": 8, "hidden-size": 512, "heads": 8, "inner-size": 1376, "vocab-size": 32000, "image-tokens": 1225,
        "vision-layers": 8, "vision-hidden-size": 256, "vision-heads": 4, "vision-inner-size": 1024,
    }.items():  # fmt: skip
        size.add_argument(f"--{flag}", type=int, default=value, metavar="N", help=f"default: {value}")
    size.add_argument("--quant", type=int, choices=[8, 4], help="bits of its linears in every case, from the start")
    what = parser.add_argument_group("what is measured")
    what.add_argument("--contexts", type=int, nargs="*", metavar="N", default=[1300], help="tokens, with a picture")
    what.add_argument("--text-contexts", type=int, nargs="*", metavar="N", default=[300], help="tokens, without one")
    what.add_argument("--batches", type=int, nargs="+", metavar="N", default=[1, 4, 16])
    what.add_argument("--new-tokens", type=int, metavar="N", default=32, help="steps of a measurement")
    what.add_argument("--stock-tokens", type=int, metavar="N", default=16, help="steps of the stock path")
    what.add_argument("--repeats", type=int, metavar="N", default=3)
    what.add_argument("--bits", type=int, nargs="*", choices=[8, 4], default=[8, 4], help="of quantised decoding")
    what.add_argument(
        "--kernels", nargs="*", choices=["triton"], default=[], help="also decode through these, beside the usual step"
    )
    what.add_argument("--train", choices=["full", "lora"], default="full")
    what.add_argument("--train-batch", type=int, metavar="N", default=2)
    what.add_argument("--no-stock", dest="stock", action="store_false", help="leave the stock path out")
    what.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: for a busy machine, with --threads 1"
    )
    what.add_argument("--seconds", type=float, metavar="S", help="begin no further case after this time")
    where = parser.add_argument_group("where")
    add_device_flags(where)
    where.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    where.add_argument("--output", type=Path, metavar="FILE", help="JSON")
    where.add_argument("--plot", type=Path, metavar="FILE", help="decode speed over context")
    known, _ = parser.parse_known_args(argv)
    parser.set_defaults(**PRESETS[known.preset])
    args = parser.parse_args(argv)
    sizes = [name for name in vars(args) if name.endswith(("_size", "_tokens", "heads", "layers"))]
    counts = [*sizes, "contexts", "text_contexts", "batches", "repeats", "train_batch", "threads"]
    check_numbers(args, dict.fromkeys(counts, 1), above={"seconds": 0})
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run it. Returns the exit code."""
    args = parse_args(argv)
    import torch

    from sat_models import runtime
    from sat_models.bench import random_models as bench_models
    from sat_models.bench import report as bench_report
    from sat_models.bench.rows import USUAL_CASES, BenchSettings
    from sat_models.bench.suite import Bench
    from sat_models.figures import new_figure

    runtime.setup_logging()
    for place in filter(None, (args.output, args.plot)):
        check_place(place)
    if args.plot:
        new_figure(1, 1)  # says now, not after the measurements, that it cannot be drawn
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(runtime.choose_device(args.device))
    dtype = runtime.choose_dtype(args.dtype, device)
    sizes = ("layers", "hidden_size", "heads", "inner_size", "vocab_size", "image_tokens")
    sizes += ("vision_layers", "vision_hidden_size", "vision_heads", "vision_inner_size")
    if args.model:
        config = bench_models.config_of_name(args.model)
    else:
        config = bench_models.config_of_sizes(**{name: getattr(args, name) for name in sizes})
    given = (
        "quant",
        "batches",
        "new_tokens",
        "repeats",
        "stock",
        "stock_tokens",
        "train",
        "train_batch",
        "clock",
        "seconds",
    )
    settings = BenchSettings(
        cases=tuple(args.cases or USUAL_CASES), contexts=tuple(args.contexts), text_contexts=tuple(args.text_contexts),
        bits=tuple(args.bits), kernels=tuple(args.kernels), **{name: getattr(args, name) for name in given},
    )  # fmt: skip
    make = functools.partial(bench_models.random_model, config, dtype=dtype, device=device)
    runner = Bench(lambda bits: make(bits=bits), settings, device)
    parameters = sum(p.numel() for p in runner.model.parameters())
    report = {
        "machine": bench_report.surroundings(device, dtype, args.clock, parameters, runner.floors, runner.decode_step),
        "command": sys.argv,
    }
    report["rows"] = runner.run()
    print(json.dumps(report["machine"]))
    print(bench_report.table(report["rows"]))
    if args.output:
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if args.plot:
        bench_report.plot(report["rows"], args.plot)
    return 0


def command() -> None:
    """The console command `sat-bench`."""
    run_script(main)
