"""The command that converts weights between SAT's layout and Hugging Face's, in any model-parallel size, dtype and
number of bits, and adapters to PEFT's form.

Runs on the CPU in one process, file to file. `--from_pretrained OUTPUT` takes the result.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sat_models.errors import CheckpointError, ConfigError, run_script
from sat_models.flags import add_hub_flag, check_numbers, refuse_unused

if TYPE_CHECKING:
    import torch

_OF_HUBS = ("push_to_hub", "private", "hub")


def make_parser() -> argparse.ArgumentParser:
    """Its flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--from", dest="source", required=True, metavar="NAME_OR_PATH",
        help="SAT or Hugging Face folder, step folder, .pt or .zip file, or a name of the zoo; --to peft: an adapter",
    )  # fmt: skip
    parser.add_argument(
        "--to", required=True, choices=("sat", "hf", "peft", "gguf", "diffusers-lora"), help="form of the result"
    )
    parser.add_argument(
        "--layout", choices=("transformers", "original"),
        help="of --to hf: as transformers' own class reads it, or as the release has it (default: transformers' own, "
        "where it has the model)",
    )  # fmt: skip
    add_output_flags(parser, "folder to write")
    parser.add_argument(
        "--base", metavar="FOLDER_OR_ID",
        help="of --to peft: Hugging Face folder or id of the adapter's base (default: what the adapter was trained on)",
    )  # fmt: skip
    parser.add_argument("--merge-lora", metavar="ADAPTER", help="adapter file or folder to merge on the way")
    parser.add_argument("--quant", type=int, choices=(4, 8), help="quantise the linears of a SAT folder")
    parser.add_argument(
        "--quant-skip", nargs="+", default=(), metavar="PATTERN", help="linears that --quant leaves alone"
    )
    parser.add_argument(
        "--push_to_hub", "--push-to-hub", metavar="NAME/MODEL", help="upload what was written to Hugging Face's hub"
    )
    parser.add_argument("--private", action="store_true", help="with --push_to_hub: a new repository is private")
    add_hub_flag(parser)
    parser.add_argument(
        "--verify", action="store_true",
        help="compare the logits of both for a small made-up input; what differs is not kept",
    )  # fmt: skip
    return parser


def add_output_flags(parser: argparse.ArgumentParser, what: str) -> None:
    """Where a command writes a checkpoint, and how it is divided; `what` names the place."""
    parser.add_argument("--output", type=Path, required=True, help=f"{what}; it must not be there yet, or be empty")
    parser.add_argument(
        "--overwrite", action="store_true",
        help="replace what is in --output, as a whole, if this command or one like it wrote it",
    )  # fmt: skip
    parser.add_argument("--mp", type=int, default=1, help="parts of a SAT folder (default: %(default)s)")
    parser.add_argument("--dtype", help="of the weights: fp32, bf16, fp16 (default: as they are)")


def chosen_dtype(args: argparse.Namespace) -> torch.dtype | None:
    """The dtype that --dtype names. Raises ConfigError."""
    import torch

    from sat_models import runtime

    return runtime.choose_dtype(args.dtype, torch.device("cpu")) if args.dtype else None


def main(argv: Sequence[str] | None = None) -> int:
    """Convert once. Returns the exit code."""
    parser = make_parser()
    args = parser.parse_args(argv)
    check_numbers(args, {"mp": 1})
    from sat_models import runtime

    runtime.setup_logging()
    of_adapters = {"source", "to", "layout", "output", "overwrite", "base", *_OF_HUBS}
    of_gguf = {"source", "to", "output", "overwrite", "dtype", "merge_lora", *_OF_HUBS}
    of_lora = {"source", "to", "output", "overwrite", *_OF_HUBS}
    used = {"peft": of_adapters, "gguf": of_gguf, "diffusers-lora": of_lora}.get(args.to, {*vars(args)} - {"base"})
    refuse_unused(parser, args, used, f"--to {args.to}")
    if args.private and not args.push_to_hub:
        raise ConfigError("--private is about the repository of --push_to_hub; name one, or leave it out")
    writers = {"peft": _write_adapter, "gguf": _write_gguf, "diffusers-lora": _write_diffusers_lora}
    written = writers.get(args.to, _write_model)(args)
    checked = " Its logits equal those of the source." if args.verify else ""
    tried = f"--from_pretrained {args.output}"
    if args.to == "gguf":
        tried = f"llama-server -m {written}/model.gguf --mmproj {written}/mmproj.gguf"
    if args.to == "diffusers-lora":
        tried = f"pipeline.load_lora_weights('{written}')"
    print(f"wrote {written}.{checked} Try it: {tried}")
    if args.push_to_hub:
        from sat_models.checkpoint.hub import push

        print(f"pushed to {push(args.output.expanduser().resolve(), args.push_to_hub, private=args.private)}")
    return 0


def _write_model(args: argparse.Namespace) -> Path:
    from sat_models.checkpoint.adapter import read_adapter
    from sat_models.checkpoint.convert import convert
    from sat_models.models.common.quantisation import Quantisation
    from sat_models.zoo.locate import locate

    return convert(
        locate(args.source),
        args.to,
        args.output,
        size=args.mp,
        dtype=chosen_dtype(args),
        adapter=read_adapter(args.merge_lora) if args.merge_lora else None,
        quantisation=Quantisation.asked(args.quant, args.quant_skip),
        layout=args.layout,
        verify=args.verify,
        overwrite=args.overwrite,
    )


def _write_gguf(args: argparse.Namespace) -> Path:
    from sat_models import runtime
    from sat_models.checkpoint.adapter import read_adapter
    from sat_models.checkpoint.gguf_writer import save_gguf
    from sat_models.checkpoint.source import open_source
    from sat_models.zoo.locate import locate

    runtime.init_model_parallel(1)
    source = open_source(locate(args.source), adapter=read_adapter(args.merge_lora) if args.merge_lora else None)
    return save_gguf(source, args.output.expanduser().resolve(), dtype=chosen_dtype(args), overwrite=args.overwrite)


def _write_adapter(args: argparse.Namespace) -> Path:
    from sat_models import runtime
    from sat_models.checkpoint.adapter import find_adapter, read_adapter
    from sat_models.checkpoint.find import find_checkpoint
    from sat_models.checkpoint.huggingface import HFCheckpoint
    from sat_models.checkpoint.peft_writer import save_peft
    from sat_models.checkpoint.source import open_source
    from sat_models.zoo.locate import locate

    file = find_adapter(args.source)
    if file is None:
        raise CheckpointError(f"{args.source} holds no adapter; --to peft writes one anew, a model goes --to sat or hf")
    adapter = read_adapter(file)
    by_id = bool(args.base) and not Path(args.base).expanduser().exists()
    base = args.base or adapter.base_model
    checkpoint = find_checkpoint(locate(adapter.base_model if by_id else base))
    if not by_id and not isinstance(checkpoint, HFCheckpoint):
        raise CheckpointError(
            f"{base} is no Hugging Face folder, and PEFT puts an adapter onto such a model: name its folder or the "
            f"hub's id with --base (convert_checkpoint.py --from {base} --to hf --output FOLDER makes one)"
        )
    runtime.init_model_parallel(1)
    source = open_source(checkpoint, adapter=adapter)
    place = Path(base).expanduser()
    name = str(place.resolve()) if place.exists() else base
    return save_peft(
        source, args.output.expanduser().resolve(), base=name, layout=args.layout, overwrite=args.overwrite
    )


def _write_diffusers_lora(args: argparse.Namespace) -> Path:
    from sat_models import runtime
    from sat_models.checkpoint.adapter import find_adapter, read_adapter
    from sat_models.checkpoint.diffusers_lora import save_diffusers_lora
    from sat_models.checkpoint.source import open_source
    from sat_models.zoo.locate import locate

    runtime.init_model_parallel(1)
    file = find_adapter(args.source)
    adapter = read_adapter(file) if file is not None else None
    source = open_source(locate(adapter.base_model if adapter else args.source), adapter=adapter)
    return save_diffusers_lora(source, args.output.expanduser().resolve(), overwrite=args.overwrite)


def command() -> None:
    """The console command `sat-convert`."""
    run_script(main)
