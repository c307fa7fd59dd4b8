"""Draw images from prompts.

`--json` prints one line for programs: {"files", "prompt", "size": [width, height], "steps", "guidance", "seed"}, where
"prompt" is a list if there are several. An image is made from its prompt and its seed: the first has the seed that is
given (or drawn, and said), each further one the next.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sat_models.commands.painting import add_painting_flags, size_asked
from sat_models.errors import ConfigError, InputError, run_script
from sat_models.flags import check_numbers, flag, positive

if TYPE_CHECKING:
    from sat_models.sampling.options import DrawingOptions
    from sat_models.sampling.planned_options import PlannedOptions
    from sat_models.sampling.writing_options import WritingOptions
    from sat_models.zoo.open_painter import ImagePainter

MODEL = "cogview3-plus-3b"
_CHOSEN = ("steps", "guidance", "seed", "sampler", "style")


def make_parser() -> argparse.ArgumentParser:
    """Its flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag(parser, "from_pretrained", default=MODEL, metavar="NAME_OR_PATH", help="model (default: %(default)s)")
    what = parser.add_mutually_exclusive_group(required=True)
    flag(what, "prompt", nargs="+", metavar="TEXT", help="what is to be seen; several texts for several images")
    flag(what, "prompts", type=Path, metavar="FILE", help="a text file with a prompt on each line")
    flag(parser, "count", type=positive, default=1, help="images of each prompt (default: %(default)s)")
    flag(parser, "sampler", choices=("sat", "diffusers"), help="(default: the model's usual one)")
    flag(parser, "style", help="CogView2's: words behind the prompt, such as photo, comics or oil (docs/painters.md)")
    flag(
        parser, "output", type=Path, metavar="PLACE",
        help="file to write, or a folder for several images (default: image.png, or the folder images)",
    )  # fmt: skip
    flag(parser, "relay", metavar="NAME_OR_PATH", help="a model that enlarges twofold what --from_pretrained drew")
    flag(parser, "image", type=Path, metavar="FILE", help="an image to enlarge, for models that do that")
    flag(parser, "batch", type=positive, default=1, help="images made at a time; memory grows with it")
    add_painting_flags(parser, what="image")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Draw once. Returns the exit code."""
    args = make_parser().parse_args(argv)
    check_numbers(args, {"steps": 1, "guidance": 0, "seed": 0})
    size = size_asked(args)
    prompts = _prompts(args.prompt, args.prompts)
    places = _places(args.output, len(prompts) * args.count)
    from sat_models import runtime
    from sat_models.zoo import load_pretrained
    from sat_models.zoo.open_painter import ImagePainter
    from sat_models.zoo.unet_painter import UNetPainter

    runtime.setup_logging("WARNING")
    painter = load_pretrained(
        args.from_pretrained, device=args.device, dtype=args.dtype, quant=args.quant, keep=args.keep,
        quant_text=args.quant_text, relay=args.relay, task="drawing",
    )  # fmt: skip
    if not isinstance(painter, ImagePainter):
        raise ConfigError(f"{args.from_pretrained} is a part that another model goes on with; name that one, coglm")
    if args.image is not None and not isinstance(painter, UNetPainter):
        raise ConfigError(f"--image is for models that enlarge images; {args.from_pretrained} draws: leave it out")
    options = {"size": size, **{name: getattr(args, name) for name in _CHOSEN}}
    options = {name: value for name, value in options.items() if value is not None}
    wanted = [prompt for prompt in prompts for _ in range(args.count)]
    if args.image is None:
        chosen = painter.check(wanted, **options)
    else:
        chosen = painter.check_enlarging(wanted, [args.image] * len(wanted), **options)
    _draw(painter, wanted, places, {**options, "seed": chosen.seed}, batch=args.batch, small=args.image)
    if runtime.rank() == 0:
        _say(args, chosen, prompts, places)
    return 0


def _draw(
    painter: ImagePainter, prompts: Sequence[str], places: Sequence[Path], options: dict[str, Any], *,
    batch: int, small: Path | None = None,
) -> None:  # fmt: skip
    """Each image is written as soon as it is there.

    Args:
        small: what is to be enlarged; None: prompts are drawn.
    """
    from tqdm import tqdm

    from sat_models import runtime
    from sat_models.files import whole_file
    from sat_models.zoo import Painter

    rounds = -(-len(prompts) // batch)
    with tqdm(unit="step", desc="drawing", disable=None if runtime.rank() == 0 else True) as bar:
        for first in range(0, len(prompts), batch):
            if isinstance(painter, Painter):
                painter.read_ahead(prompts, first)
            chosen, some = {**options, "seed": options["seed"] + first}, prompts[first : first + batch]
            if small is None:
                states = painter.steps(some, **chosen)
            else:
                states = painter.enlarge_steps(some, [small] * len(some), **chosen)
            for state in states:
                last = state
                bar.total = bar.total or rounds * state.of
                bar.update()
            if runtime.rank():
                continue
            for place, image in zip(places[first : first + batch], last.images(), strict=True):
                place.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(place) as draft, draft.open("wb") as file:
                    image.save(file, format=_FORMATS[place.suffix.lower()])


def _say(
    args: argparse.Namespace, chosen: DrawingOptions | WritingOptions | PlannedOptions, prompts: list[str],
    places: Sequence[Path],
) -> None:  # fmt: skip
    if args.json:
        said = {
            "files": list(map(str, places)), "prompt": prompts[0] if len(prompts) == 1 else prompts,
            "size": list(chosen.size), "steps": chosen.steps, "guidance": chosen.guidance, "seed": chosen.seed,
        }  # fmt: skip
        print(json.dumps(said, ensure_ascii=False))
        return
    width, height = chosen.size
    how = [f"{width}x{height}", *([f"{chosen.steps} steps"] if chosen.steps is not None else [])]
    how += [f"guidance {chosen.guidance:g}"] if chosen.guidance is not None else []
    print(f"{', '.join(map(str, places))}  ({', '.join(how)}, seed {chosen.seed})")


_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def _prompts(given: Sequence[str] | None, file: Path | None) -> list[str]:
    """Raises InputError for an empty one, or a file that cannot be read."""
    from sat_models.files import numbered_lines

    prompts = list(given) if given is not None else [line.strip() for _, line in numbered_lines(file)]
    if not prompts or not all(prompt.strip() for prompt in prompts):
        where = "--prompt" if file is None else f"'{file}'"
        raise InputError(f"{where} holds no prompt; say what is to be seen, in words")
    return prompts


def _places(asked: Path | None, count: int) -> list[Path]:
    """Where each image goes. Raises ConfigError, before any work, where one cannot be written."""
    output = (asked or Path("image.png" if count == 1 else "images")).expanduser()
    folder = count > 1 or output.is_dir()
    if folder and (output.is_file() or output.suffix.lower() in _FORMATS):
        raise ConfigError(f"--output is {output}, one file, but {count} images are to be drawn; name a folder")
    if not folder and output.suffix.lower() not in _FORMATS:
        raise ConfigError(f"--output is {output}; an image ends in {', '.join(_FORMATS)}")
    places = [output / f"{number:04d}.png" for number in range(1, count + 1)] if folder else [output]
    if taken := [place for place in places if folder and place.exists()]:
        raise ConfigError(f"{taken[0]} is there already; name another folder with --output")
    parent = next(parent for parent in places[0].absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        reason = "you may not write there" if parent.is_dir() else "it is a file"
        raise ConfigError(f"{places[0]} cannot be written: {parent}: {reason}; name another place with --output")
    return places


def command() -> None:
    """The console command `sat-draw`."""
    run_script(main)
