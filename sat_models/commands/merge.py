"""The commands that merge: model-parallel parts into another number of them, LoRA into its base model's weights."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence

from sat_models.commands.convert import add_output_flags, chosen_dtype
from sat_models.errors import CheckpointError, run_script
from sat_models.flags import check_numbers, refuse_unused

MODEL = """Make one checkpoint of any model-parallel size from another: several parts into one, or one into several.
LoRA that lies beside the weights is merged, and an adapter into its base model.

Runs on the CPU in one process, file to file. `--from_pretrained OUTPUT` takes the result.
"""
LORA = """Merge LoRA into its base model's weights.

PATH is what training wrote: an adapter (adapter.safetensors, or its folder), or weights with the matrices beside them,
also those of the original scripts. Runs on the CPU in one process, file to file; any number of model-parallel parts.
"""


def make_parser(description: str = MODEL) -> argparse.ArgumentParser:
    """Their flags."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--from_pretrained", "--from-pretrained", required=True, metavar="NAME_OR_PATH",
        help="adapter, SAT or Hugging Face folder, step folder, .pt or .zip file, or a name of the zoo",
    )  # fmt: skip
    parser.add_argument(
        "--base", metavar="NAME_OR_PATH", help="base model of an adapter (default: the one that its header names)"
    )
    parser.add_argument("--alpha", type=float, help="of matrices beside weights (default: their config's, else 1)")
    add_output_flags(parser, "SAT folder to write")
    return parser


def main(argv: Sequence[str] | None = None, *, needs_lora: bool = False) -> int:
    """Merge once.

    Args:
        needs_lora: weights without LoRA are refused.

    Returns:
        The exit code.
    """
    parser = make_parser(LORA if needs_lora else MODEL)
    args = parser.parse_args(argv)
    from sat_models import runtime
    from sat_models.checkpoint.adapter import find_adapter, read_adapter
    from sat_models.checkpoint.convert import convert
    from sat_models.checkpoint.find import find_checkpoint
    from sat_models.checkpoint.merged import is_unmerged_lora
    from sat_models.zoo.locate import locate

    runtime.setup_logging()
    file = find_adapter(args.from_pretrained)
    what = "an adapter, which says its alpha itself," if file else "weights (no adapter is there)"
    refuse_unused(
        parser, args, {*vars(args)} - {"alpha" if file else "base"}, f"merging {args.from_pretrained}: {what}"
    )
    check_numbers(args, {"mp": 1}, above={"alpha": 0})
    adapter = read_adapter(file) if file else None
    source = find_checkpoint(locate(args.base or (adapter.base_model if adapter else args.from_pretrained)))
    if needs_lora and adapter is None and not is_unmerged_lora(source.read()[0]):
        raise CheckpointError(f"{source.step_folder} has no LoRA matrices: there is nothing to merge")
    written = convert(
        source, "sat", args.output, size=args.mp, dtype=chosen_dtype(args), adapter=adapter, alpha=args.alpha,
        overwrite=args.overwrite,
    )  # fmt: skip
    print(f"wrote {written} ({args.mp} part(s)). Try it: --from_pretrained {args.output}")
    return 0


def command() -> None:
    """The console command `sat-merge`, and `scripts/merge_model.py`."""
    run_script(main)


def lora_command() -> None:
    """`scripts/merge_lora.py`."""
    run_script(functools.partial(main, needs_lora=True))
