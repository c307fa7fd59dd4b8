"""Peak memory of loading a checkpoint, against the bytes that the loaded part needs.

Without --from_pretrained a synthetic checkpoint of --gigabytes is written to a temporary folder and removed again.
Under torchrun each process measures its own part. Linux only; pages of mapped files do not count.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sat_models.errors import run_script
from sat_models.flags import check_numbers


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of a call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from_pretrained", "--from-pretrained", metavar="NAME_OR_PATH", help="measure this one")
    parser.add_argument("--gigabytes", type=float, default=3.0, help="of a synthetic one (default: %(default)s)")
    parser.add_argument("--parts", type=int, default=1, help="of a synthetic one (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="load a synthetic one so (default: %(default)s)")
    parser.add_argument("--dtype", default="bf16", help="to load in (default: %(default)s)")
    parser.add_argument("--quant", type=int, choices=(4, 8), help="quantise while loading")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    args = parser.parse_args(argv)
    check_numbers(args, {"parts": 1, "processes": 1}, above={"gigabytes": 0})
    return args


def measure(args: argparse.Namespace) -> None:
    from sat_models import runtime
    from sat_models.checkpoint.memory import AnonymousPeak
    from sat_models.zoo import load_pretrained

    if args.quant:
        from sat_models.models.common.quantised import bitsandbytes

        bitsandbytes()  # its import is no part of loading
    with AnonymousPeak() as peak:
        vlm = load_pretrained(args.from_pretrained, device=args.device, dtype=args.dtype, quant=args.quant)
    needed = sum(value.nbytes for value in [*vlm.model.parameters(), *vlm.model.buffers()])
    report = {"rank": runtime.rank(), "needed": needed, "peak": peak.bytes, "ratio": round(peak.bytes / needed, 3)}
    sys.stdout.write(json.dumps(report) + "\n")  # in one piece: `print` of another rank may come between line and end
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run it. Returns the exit code."""
    args = parse_args(argv)
    if args.from_pretrained:
        measure(args)
        return 0
    from sat_models.bench.synthetic import write_synthetic

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        write_synthetic(folder, gigabytes=args.gigabytes, parts=args.parts)
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={args.processes}"]
        flags = [f"--dtype={args.dtype}", f"--device={args.device}", *([f"--quant={args.quant}"] if args.quant else [])]
        measuring = ["-m", __name__, "--from_pretrained", folder]
        command = [sys.executable, *(launcher if args.processes > 1 else []), *measuring, *flags]
        places = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
        return subprocess.run(command, env=environment, check=False).returncode


def command() -> None:
    """The console command `sat-measure-loading`, and `scripts/measure_loading.py`."""
    run_script(main)


if __name__ == "__main__":  # each process that loads a synthetic checkpoint
    command()
