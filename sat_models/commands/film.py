"""Make a film from a prompt, or from an image and a prompt.

`--json` prints one line for programs: {"files", "prompt", "size": [width, height], "frames", "fps", "steps",
"guidance", "sampler", "seed", "images"}; what the model does not have is left out, and "images" are the numbers of the
frames that were given.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sat_models.commands.painting import add_painting_flags, size_asked
from sat_models.errors import ConfigError, run_script
from sat_models.flags import check_numbers, flag

if TYPE_CHECKING:
    from sat_models.zoo.film_maker import FilmMaker, FilmState

_OF_FRAME = re.compile(r"(\d+)=(.+)")
_CHOSEN = ("frames", "fps", "steps", "guidance", "seed", "sampler", "motion")


def make_parser() -> argparse.ArgumentParser:
    """Its flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag(parser, "from_pretrained", required=True, metavar="NAME_OR_PATH", help="model")
    flag(parser, "prompt", required=True, metavar="TEXT", help="what is to be seen")
    flag(
        parser, "image", nargs="+", default=(), metavar="IMAGE",
        help="what the film begins with; FRAME=IMAGE (counted from 0) for chosen frames, where the model takes them",
    )  # fmt: skip
    flag(parser, "frames", type=int, help="of the film (default: the model's usual number)")
    flag(parser, "fps", type=float, help="frames a second (default: as the model was trained)")
    flag(parser, "motion", nargs="+", metavar="FILE", help="motion LoRA, where the model takes it (AnimateDiff)")
    flag(parser, "sampler", help="by name (default: the original's)")
    flag(
        parser, "output", type=Path, default=Path("film.mp4"), metavar="PLACE",
        help="an .mp4 or .gif file, or a folder for the frames (default: %(default)s)",
    )  # fmt: skip
    add_painting_flags(parser, what="film")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Make one film. Returns the exit code."""
    args = make_parser().parse_args(argv)
    check_numbers(args, {"frames": 1, "steps": 1, "guidance": 0, "seed": 0})
    options = {"size": size_asked(args), "image": _images(args.image)}
    options |= {name: getattr(args, name) for name in _CHOSEN}
    from sat_models import runtime
    from sat_models.processing.film import film_place
    from sat_models.zoo import load_pretrained
    from sat_models.zoo.film_maker import FilmMaker

    place = film_place(args.output)
    runtime.setup_logging("WARNING")
    maker = load_pretrained(
        args.from_pretrained, device=args.device, dtype=args.dtype, quant=args.quant, keep=args.keep,
        quant_text=args.quant_text, task="film",
    )  # fmt: skip
    if not isinstance(maker, FilmMaker):
        raise ConfigError(f"{args.from_pretrained} is a part of a model that makes films; name the folder of them all")
    last = _made(maker, args.prompt, options)
    if runtime.rank() == 0:
        last.film().save(place)
        _say(args, last, place)
    return 0


def _made(maker: FilmMaker, prompt: str, options: dict[str, Any]) -> FilmState:
    from tqdm import tqdm

    from sat_models import runtime

    with tqdm(unit="step", desc="making the film", disable=None if runtime.rank() == 0 else True) as bar:
        for state in maker.film_steps(prompt, **{name: value for name, value in options.items() if value is not None}):
            last = state
            bar.total = state.of
            bar.update()
    return last


def _say(args: argparse.Namespace, last: FilmState, place: Path) -> None:
    options = last.options
    if args.json:
        print(json.dumps({"files": [str(place)], "prompt": args.prompt, **options.to_dict()}, ensure_ascii=False))
        return
    width, height = options.size
    how = [f"{width}x{height}", f"{options.frames} frames", f"{options.fps:g} a second"]
    how += [f"{options.steps} steps"] if options.steps is not None else []
    how += [f"guidance {options.guidance:g}"] if options.guidance is not None else []
    print(f"{place}  ({', '.join(how)}, seed {options.seed})")


def _images(given: Sequence[str]) -> str | dict[int, str] | None:
    """The image of the beginning, or those of chosen frames. Raises ConfigError for a mixture."""
    chosen = [_OF_FRAME.fullmatch(text) for text in given]
    if not given:
        return None
    if len(given) == 1 and chosen[0] is None:
        return given[0]
    if not all(chosen):
        raise ConfigError(f"--image is {' '.join(given):.80}; name one image, or FRAME=IMAGE for each of several")
    if len(frames := {int(found[1]): found[2] for found in chosen}) < len(given):
        raise ConfigError(f"--image names a frame twice: {' '.join(given):.80}")
    return frames


def command() -> None:
    """The console command `sat-film`."""
    run_script(main)
