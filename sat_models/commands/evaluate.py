"""Score a checkpoint on a task, from annotation files in the public formats (docs/evaluation.md), on `data` in any
training format, as fine-tuning does while it runs (loss, and exact match, VQA accuracy and boxes of answers), or on
`shapes`: pictures of the synthetic world that `cogvlm-tiny` is taught, never trained on. `drawing` scores a painter: it
draws prompts of that world, or those of a file, and the model is asked about its images (docs/evaluation.md)."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sat_models.errors import ConfigError, run_script
from sat_models.evaluation.calibration import calibrations, check_accuracy
from sat_models.flags import (
    MODEL_FLAGS,
    SAMPLING_FLAGS,
    add_box_flags,
    add_model_flags,
    add_sampling_flags,
    add_scores_flag,
    check_numbers,
    flag,
    loading,
    refuse_unused,
    sampling_options,
)

if TYPE_CHECKING:
    from sat_models.checkpoint.lock import FolderLock
_ALWAYS = (MODEL_FLAGS - {"version"}) | {
    "task",
    "max_new_tokens",
    "batch_size",
    "output",
    "threads",
    "scores",
    "accuracy",
}
_SAMPLING = SAMPLING_FLAGS
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
    "data": _ALWAYS | _ASKING | {"data", "data_format", "image_root", "box_tasks", "box_templates"},
    "drawing": (_ALWAYS - {"scores", "accuracy"})
    | _SAMPLING
    | _ASKING
    | {"painter", "count", "annotations", "images", "size", "steps", "guidance"},
    **TASKS,
}


def make_parser() -> argparse.ArgumentParser:
    """Its flags."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = functools.partial(flag, parser)
    add_model_flags(parser)
    add("task", choices=["shapes", "data", "drawing", *TASKS], default="shapes", help="default: %(default)s")
    add("limit", type=int, help="take the first samples only; data: answer so many, spread over all")
    add("prompt", help="what is asked, with {question}, {expression} or {box} (default: the task's)")
    add("batch_size", type=int, default=8, help="questions at a time (default: %(default)s)")
    add_sampling_flags(parser, max_new_tokens=96, seed=0)
    add_scores_flag(parser)
    add("accuracy", type=float, help="with --scores: the accuracy that the coverage is told of (default: 0.95)")
    add("output", type=Path, help="folder for predictions and scores; run again to go on where it stopped")
    add("threads", type=int, help="CPU threads")
    add = functools.partial(flag, parser.add_argument_group("--task shapes (--seed is that of the images, too)"))
    add("versions", nargs="+", default=["chat"], metavar="VERSION", help="prompt styles (default: chat)")
    add("count", type=int, default=500, help="images (default: %(default)s)")
    add("other_eyes", action="store_true", help="drawn and worded by code not taught with")
    add("digit_share", type=float, default=0.0, help="of large shapes, 0 to 1 (default: 0)")
    add = functools.partial(flag, data := parser.add_argument_group("--task data"))
    add("data", nargs="+", metavar="PATH", help="files or folders in a training format")
    add("data_format", metavar="FORMAT", help="force a data format, as in fine-tuning")
    add("image_root", metavar="PATH", help="folder that image names are tried in first")
    add_box_flags(data)
    add = functools.partial(flag, parser.add_argument_group(
        "--task drawing (--count prompts of the world, or --annotations FILE with prompts in GenEval's form; --images "
        "DIR holds real images of these, 0001.png, 0002.png, …)"
    ))  # fmt: skip
    add("painter", metavar="NAME_OR_PATH", help="the model that draws; --from_pretrained is the judge")
    add("size", metavar="WIDTHxHEIGHT", help="of its images (default: as usual for it)")
    add("steps", type=int, help="of its sampler (default: as usual for it)")
    add("guidance", type=float, help="how closely it follows the prompt (default: as usual for it)")
    add = functools.partial(flag, parser.add_argument_group("the other tasks: annotations in a public format"))
    add("annotations", type=Path, help="annotation file; a folder for grounded-caption")
    add("images", type=Path, help="folder of the images")
    add("on_missing", choices=["error", "skip"], default="error", help="samples whose image is missing or damaged")
    add("questions", type=Path, help="vqa: the …_questions.json that belongs to the annotations")
    add("instances", type=Path, help="rec: instances.json (default: beside the annotations)")
    add("split", help="of the annotations: val, testA, test, …; vqa: val2014, …")
    add("prompts", type=Path, help="a JSON file with a prompt for each sample, by its id, instead of one for all")
    add(
        "model_parallel_size", type=int, default=1,
        help="under torchrun: processes that share one model; the others take their share of the questions",
    )  # fmt: skip
    return parser


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read and check the flags. Raises ConfigError."""
    parser = make_parser()
    args = parser.parse_args(argv)
    refuse_unused(parser, args, USED[args.task], f"--task {args.task}")
    check_numbers(
        args,
        dict.fromkeys(("batch_size", "count", "limit", "max_new_tokens", "model_parallel_size", "steps", "threads"), 1)
        | {"guidance": 0},
    )
    if args.accuracy is not None and not args.scores:
        raise ConfigError("--accuracy is what --scores tells the coverage of; add --scores, or leave it out")
    args.accuracy = 0.95 if args.accuracy is None else args.accuracy
    check_accuracy(args.accuracy)
    if not 0 <= args.digit_share <= 1:
        raise ConfigError(f"--digit_share is {args.digit_share}; it must be from 0 (no digits) to 1 (all large shapes)")
    if args.other_eyes and args.digit_share:
        raise ConfigError("--other_eyes draws no digits; leave out --digit_share")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run it. Returns the exit code."""
    args = parse_args(argv)
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    own = {"shapes": evaluate_shapes, "data": evaluate_data, "drawing": evaluate_drawing}
    result = own.get(args.task, evaluate_task)(args)
    if result is not None:
        print(json.dumps(result, indent=2))
    return 0


def evaluate_shapes(args: argparse.Namespace) -> dict | None:
    """The scores, on the first process; under torchrun all processes share the model and ask the same."""
    from sat_models import runtime
    from sat_models.evaluation.runner import batched_by_version
    from sat_models.shapes import scoring as shapes
    from sat_models.zoo import load_pretrained

    options, lock = sampling_options(args), _hold(args.output)
    vlm = load_pretrained(args.from_pretrained, **loading(args))
    answer = batched_by_version(vlm, options=options, batch_size=args.batch_size, scores=args.scores)
    result = shapes.evaluate_shapes(
        answer, count=args.count, seed=args.seed, versions=args.versions, batch_size=args.batch_size,
        digit_share=args.digit_share, other_eyes=args.other_eyes, progress=runtime.rank() == 0,
        accuracy=args.accuracy,
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
    from sat_models.training.grounding.asking import asking_from
    from sat_models.zoo import load_pretrained

    lock = _hold(args.output)
    vlm = load_pretrained(args.from_pretrained, **loading(args))
    scores, predictions = evaluate(
        vlm, args.data, prompt=args.prompt, version=args.version, batch_size=args.batch_size,
        samples=args.limit or 10**9, max_new_tokens=args.max_new_tokens, format=args.data_format,
        image_root=args.image_root, scores=args.scores,
        asking=asking_from(args.box_tasks, args.box_templates, prompt=args.prompt),
    )  # fmt: skip
    if runtime.rank():
        return None
    result = {"scores": scores, "decoding": {"temperature": 0.0, "max_new_tokens": args.max_new_tokens}}
    if args.scores:
        kinds = {kind: [each for each in predictions if each["task"] == kind] for kind in ("text", "boxes")}
        result["calibration"] = calibrations(kinds, accuracy=args.accuracy)
    _keep(lock, args.output, result, predictions)
    return result


def evaluate_drawing(args: argparse.Namespace) -> dict | None:
    """The scores, on the first process; under torchrun all processes share painter and judge."""
    missing = [name for name in ("painter", "output") if getattr(args, name) is None]
    if missing:
        raise ConfigError(f"--task drawing needs --{', --'.join(missing)}: what draws, and where the images are kept")
    from sat_models.commands.drawing import grade

    lock = _hold(args.output)
    result = grade(args)
    if lock is not None:
        lock.release()
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
    from sat_models.evaluation.samples import with_images, with_prompts
    from sat_models.evaluation.tasks import default_prompt, question_of

    options = sampling_options(args)
    extra = {"questions": args.questions, "instances": args.instances, "split": args.split}
    wanted = read_samples(args.task, args.annotations, args.images, **extra)[: args.limit]
    samples = with_images(wanted, args.on_missing)
    prompt = args.prompt or default_prompt(args.task, samples)
    if args.prompts:
        samples, prompt = with_prompts(samples, args.prompts), "each sample's own"
    for sample in samples:  # before any weight is read; a size fills in a box
        question_of(prompt, sample, (1000, 1000))
    settings = runner.settings_of(
        args.task, samples, model=args.from_pretrained, prompt=prompt, version=args.version, options=options,
        scores=args.scores,
    )  # fmt: skip
    settings["missing_pictures"] = len(wanted) - len(samples)
    return runner.run(
        args.task, samples, args.output, settings=settings, prompt=prompt, options=options, version=args.version,
        model_parallel_size=args.model_parallel_size, batch_size=args.batch_size,
        loading=loading(args), accuracy=args.accuracy,
    )  # fmt: skip


def command() -> None:
    """The console command `sat-evaluate`."""
    run_script(main)
