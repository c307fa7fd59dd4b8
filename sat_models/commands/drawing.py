"""`evaluate.py --task drawing`: prompts are drawn and the images judged, beside real images of the same prompts."""

from __future__ import annotations

import argparse
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from sat_models import runtime
from sat_models.commands.painting import size_asked
from sat_models.digests import digest_of, digest_of_files
from sat_models.errors import ConfigError, InputError
from sat_models.evaluation import runner
from sat_models.evaluation.drawing import checks_of, drawn_images, judge, summary
from sat_models.evaluation.identity import model_identity
from sat_models.evaluation.wishes import Wish, read_wishes
from sat_models.flags import loading, sampling_options
from sat_models.processing.image import load_image
from sat_models.shapes.drawing import draw
from sat_models.shapes.looking import scores_of
from sat_models.shapes.prompts import sample_scene_of, unseen_wishes

_KEPT = "judged.jsonl"


def grade(args: argparse.Namespace) -> dict[str, Any] | None:
    """The scores, on the first process.

    Raises:
        ConfigError, InputError: before anything is drawn where it can be known.
    """
    from sat_models.zoo import load_pretrained

    output, world = args.output, args.annotations is None
    if world and args.limit is not None:
        raise ConfigError("--limit is for the prompts of a file (--annotations); --count says how many of the world")
    wishes = unseen_wishes(args.count, args.seed) if world else read_wishes(args.annotations)[: args.limit]
    if bad := next((wish for wish in wishes if not checks_of(wish)), None):
        raise InputError(f"nothing can be asked about the prompt '{bad.prompt:.80}'; each needs a thing to look for")
    real = None if args.images is None else _real_files(args.images, len(wishes))
    template = args.prompt or "{question}"
    if "{question}" not in template:
        raise ConfigError(f"--prompt is '{template:.60}'; it must say where the question goes: {{question}}")
    how = {"size": size_asked(args), "steps": args.steps, "guidance": args.guidance}
    how = {name: value for name, value in how.items() if value is not None}
    options = sampling_options(args)
    places = {name: value for name, value in loading(args).items() if name in ("device", "dtype")}

    painter = load_pretrained(args.painter, task="drawing", **places)
    if not hasattr(painter, "draw"):
        raise ConfigError(f"{args.painter} is a part that another model goes on with; it draws no image by itself")
    settings = {
        "task": "drawing", "painter": args.painter, "drawing": {**how, "seed": args.seed},
        "judge": args.from_pretrained, "prompt": template, "version": args.version, "decoding": asdict(options),
        "prompts_sha256": digest_of([wish.record() for wish in wishes]),
        "painter_sha256": digest_of_files(painter.checkpoint.files),
        "real_sha256": digest_of_files(real) if real else None,
    }  # fmt: skip
    runtime.in_step(lambda: runner.open_folder(output, settings) if runtime.rank() == 0 else None)
    files = drawn_images(
        painter, [wish.prompt for wish in wishes], output / "images", seed=args.seed, batch_size=args.batch_size, **how
    )
    del painter
    vlm = load_pretrained(args.from_pretrained, **loading(args))
    asking = {
        "answer": runner.batched_answers(vlm, options=options, version=args.version, batch_size=args.batch_size),
        "rule": scores_of if world else None, "kept": output / _KEPT, "prompt": template,
        "batch_size": args.batch_size,
    }  # fmt: skip
    records = {"drawn": judge(wishes, lambda number: load_image(files[number]), whose="drawn", **asking)}
    if world:
        records["real"] = judge(wishes, lambda number: _real(wishes, args.seed, number), whose="real", **asking)
    elif real:
        records["real"] = judge(wishes, lambda number: load_image(real[number]), whose="real", **asking)
    if runtime.rank():
        return None
    settings |= model_identity(vlm, args.from_pretrained)
    result = {"task": "drawing", "scores": summary(records), "settings": settings}
    runner.write_result(output, result, [record for group in records.values() for record in group])
    (output / _KEPT).unlink(missing_ok=True)
    return result


def _real(wishes: list[Wish], seed: int, number: int) -> Image.Image:
    """A scene of the world that is what the prompt of this number asks for."""
    return draw(sample_scene_of(wishes[number], random.Random(f"real/{seed}/{number}")))


def _real_files(folder: Path, count: int) -> list[Path]:
    files = [folder / f"{number:04d}.png" for number in range(1, count + 1)]
    if missing := next((file for file in files if not file.is_file()), None):
        raise InputError(f"{missing} is not there; --images holds a real image of each prompt, 0001.png, 0002.png, …")
    return files
