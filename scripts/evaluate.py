"""Score a checkpoint on a task, from annotation files in the public formats (docs/evaluation.md), on `data` in any
training format, as fine-tuning does while it runs (loss, and exact match, VQA accuracy and boxes of answers), or on
`shapes`: pictures of the synthetic world that `cogvlm-tiny` is taught, never trained on."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sat_models.errors import ConfigError, run_script
from sat_models.flags import check_numbers, refuse_unused
from sat_models.models.families import version_help

if TYPE_CHECKING:
    from sat_models.checkpoint.lock import FolderLock
    from sat_models.generation.sampling import SamplingOptions

_ALWAYS = {
    "from_pretrained", "task", "max_new_tokens", "batch_size", "output", "local_tokenizer", "dtype", "device",
    "threads",
}  # fmt: skip
_SAMPLING = {"temperature", "top_p", "top_k", "seed"}
_ASKING = {"version", "limit", "prompt"}
_FILES = _ALWAYS | _SAMPLING | _ASKING | {"annotations", "images", "on_missing", "prompts", "model_parallel_size"}
TASKS = {
    "caption": _FILES | {"split"},
    "vqa": _FILES | {"split", "questions"},
    "rec": _FILES | {"split", "instances"},
    "reg": _FILES,
    "grounded-caption": _FILES | {"split"},
    "visual7w": _FILES | {"split"},
}
USED = {
    "shapes": _ALWAYS | _SAMPLING | {"versions", "count", "digit_share", "other_eyes"},
    "data": _ALWAYS | _ASKING | {"data", "data_format", "image_root"},
    **TASKS,
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    flag = parser.add_argument
    flag("--from_pretrained", "--from-pretrained", default="cogvlm-tiny", metavar="NAME_OR_PATH")
    flag("--task", choices=["shapes", "data", *TASKS], default="shapes")
    flag("--data", nargs="+", metavar="PATH", help="data: files or folders in a training format")
    flag("--data_format", "--data-format", metavar="FORMAT", help="data: force a data format, as in fine-tuning")
    flag("--image_root", "--image-root", metavar="PATH", help="data: folder that picture names are tried in first")
    flag("--annotations", type=Path, help="annotation file; a folder for grounded-caption")
    flag("--images", type=Path, help="folder of the pictures")
    flag("--on_missing", "--on-missing", choices=["error", "skip"], default="error", help="samples without a picture")
    flag("--questions", type=Path, help="vqa: the …_questions.json that belongs to the annotations")
    flag("--instances", type=Path, help="rec: instances.json (default: beside the annotations)")
    flag("--split", help="of the annotations: val, testA, test, …; vqa: val2014, …")
    flag("--limit", type=int, help="take the first samples only; data: answer so many, spread over all")
    flag("--prompt", help="what is asked, with {question}, {expression} or {box} (default: the task's)")
    flag("--prompts", type=Path, help="a JSON file with a prompt for each sample, by its id, instead of one for all")
    flag("--version", metavar="STYLE", help=version_help())
    flag("--versions", nargs="+", default=["chat"], metavar="VERSION", help="shapes: prompt styles (default: chat)")
    flag("--count", type=int, default=500, help="shapes: pictures (default: %(default)s)")
    flag("--other_eyes", "--other-eyes", action="store_true", help="shapes: drawn and worded by code not taught with")
    flag("--digit_share", "--digit-share", type=float, default=0.0, help="shapes: of large shapes, 0 to 1 (default: 0)")
    flag("--seed", type=int, default=0, help="shapes: of the test pictures; else of the sampling")
    flag("--max_new_tokens", "--max-new-tokens", type=int, default=96)
    flag("--temperature", type=float, default=0.0, help="0 is greedy (default: %(default)s)")
    flag("--top_p", "--top-p", type=float, default=1.0)
    flag("--top_k", "--top-k", type=int, default=0)
    flag("--batch_size", "--batch-size", type=int, default=8, help="questions at a time (default: %(default)s)")
    flag(
        "--model_parallel_size", "--model-parallel-size", type=int, default=1,
        help="under torchrun: processes that share one model; the others take their share of the questions",
    )  # fmt: skip
    flag("--output", type=Path, help="folder for predictions and scores; run again to go on where it stopped")
    flag("--local_tokenizer", "--local-tokenizer", metavar="PATH")
    flag("--dtype", default="auto", help="auto, fp32, bf16 or fp16 (default: %(default)s)")
    flag("--device", default="auto")
    flag("--threads", type=int, help="CPU threads")
    args = parser.parse_args()
    refuse_unused(parser, args, USED[args.task], f"--task {args.task}")
    check_numbers(
        args,
        dict.fromkeys(("batch_size", "count", "limit", "max_new_tokens", "model_parallel_size", "threads"), 1),
    )
    if not 0 <= args.digit_share <= 1:
        raise ConfigError(f"--digit_share is {args.digit_share}; it must be from 0 (no digits) to 1 (all large shapes)")
    if args.other_eyes and args.digit_share:
        raise ConfigError("--other_eyes draws no digits; leave out --digit_share")
    return args


def main() -> int:
    args = parse_args()
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    result = {"shapes": evaluate_shapes, "data": evaluate_data}.get(args.task, evaluate_task)(args)
    if result is not None:
        print(json.dumps(result, indent=2))
    return 0


def evaluate_shapes(args: argparse.Namespace) -> dict | None:
    """The scores, on the first process; under torchrun all processes share the model and ask the same."""
    from sat_models import runtime
    from sat_models.evaluation.runner import batched_by_version
    from sat_models.shapes import scoring as shapes
    from sat_models.zoo import load_pretrained

    options, lock = _options(args), _hold(args.output)
    vlm = load_pretrained(
        args.from_pretrained, device=args.device, dtype=args.dtype, local_tokenizer=args.local_tokenizer
    )
    answer = batched_by_version(vlm, options=options, batch_size=args.batch_size)
    result = shapes.evaluate_shapes(
        answer, count=args.count, seed=args.seed, versions=args.versions, batch_size=args.batch_size,
        digit_share=args.digit_share, other_eyes=args.other_eyes, progress=runtime.rank() == 0,
    )  # fmt: skip
    if runtime.rank():
        return None
    predictions = result.pop("predictions")
    result["decoding"] = {"temperature": args.temperature, "max_new_tokens": args.max_new_tokens}
    _keep(lock, args.output, result, predictions)
    return result


def evaluate_data(args: argparse.Namespace) -> dict | None:
    """The scores, on the first process; under torchrun all processes share the model."""
    if not args.data:
        raise ConfigError("--task data needs --data: files or folders in a training format (docs/finetuning.md)")
    from sat_models import runtime
    from sat_models.training.evaluating import evaluate_data as evaluate
    from sat_models.zoo import load_pretrained

    lock = _hold(args.output)
    vlm = load_pretrained(
        args.from_pretrained, device=args.device, dtype=args.dtype, local_tokenizer=args.local_tokenizer,
        version=args.version,
    )  # fmt: skip
    scores, predictions = evaluate(
        vlm, args.data, prompt=args.prompt, version=args.version, batch_size=args.batch_size,
        samples=args.limit or 10**9, max_new_tokens=args.max_new_tokens, format=args.data_format,
        image_root=args.image_root,
    )  # fmt: skip
    if runtime.rank():
        return None
    result = {"scores": scores, "decoding": {"temperature": 0.0, "max_new_tokens": args.max_new_tokens}}
    _keep(lock, args.output, result, predictions)
    return result


def _hold(output: Path | None) -> FolderLock | None:
    """The folder of the results for this run alone: whether it can be written is known before any question is asked."""
    from sat_models import runtime
    from sat_models.checkpoint.lock import FolderLock

    if output is None or runtime.rank():
        return None
    return FolderLock(output, "another evaluation")


def _keep(lock: FolderLock | None, output: Path | None, result: dict, predictions: list[dict]) -> None:
    from sat_models.evaluation.runner import write_result

    if lock is not None:
        write_result(output, result, predictions)
        lock.release()


def evaluate_task(args: argparse.Namespace) -> dict | None:
    """The scores, on the first process."""
    missing = [name for name in ("annotations", "images", "output") if getattr(args, name) is None]
    if missing:
        raise ConfigError(f"--task {args.task} needs --{', --'.join(missing)}; docs/evaluation.md has examples.")
    if args.prompt and args.prompts:
        raise ConfigError("--prompt is for all samples and --prompts for each; give one of them.")
    from sat_models.evaluation import runner
    from sat_models.evaluation.readers import read_samples
    from sat_models.evaluation.samples import with_pictures, with_prompts
    from sat_models.evaluation.tasks import default_prompt

    options = _options(args)
    extra = {"questions": args.questions, "instances": args.instances, "split": args.split}
    wanted = read_samples(args.task, args.annotations, args.images, **extra)[: args.limit]
    samples = with_pictures(wanted, args.on_missing)
    prompt = args.prompt or default_prompt(args.task, samples)
    if args.prompts:
        samples, prompt = with_prompts(samples, args.prompts), "each sample's own"
    settings = runner.settings_of(
        args.task, samples, model=args.from_pretrained, prompt=prompt, version=args.version, options=options
    )
    settings["missing_pictures"] = len(wanted) - len(samples)
    return runner.run(
        args.task, samples, args.output, settings=settings, prompt=prompt, options=options, version=args.version,
        model_parallel_size=args.model_parallel_size, batch_size=args.batch_size,
        loading={"device": args.device, "dtype": args.dtype, "local_tokenizer": args.local_tokenizer},
    )  # fmt: skip


def _options(args: argparse.Namespace) -> SamplingOptions:
    from sat_models.generation.sampling import SamplingOptions

    return SamplingOptions(
        max_new_tokens=args.max_new_tokens, temperature=args.temperature, top_p=args.top_p, top_k=args.top_k,
        seed=args.seed,
    )  # fmt: skip


if __name__ == "__main__":
    run_script(main)
