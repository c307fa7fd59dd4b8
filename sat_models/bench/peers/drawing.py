"""A painter of ours beside diffusers' on the same weights: the same images, seconds a step, memory. They take turns."""

from __future__ import annotations

import logging
import shutil
import statistics
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy
from PIL import Image

from sat_models.bench.peers.driver import HERE, OURS, Peer, PeerError, Worker, once
from sat_models.errors import ConfigError
from sat_models.processing.text_encoder import T5Words
from sat_models.text import markdown_table

logger = logging.getLogger(__name__)

DIFFUSERS = "diffusers"
FORMS = ("fp32", "bf16")
PROMPT = "A red circle and a blue square beside a green triangle, on a white table in front of a window."
TEXT_LENGTH = 224
_FOLDER, _TOKENIZER = "painter", Path(__file__).parents[2] / "assets" / "cogvlm-tiny" / "tokenizer.model"


def peer(given: str) -> Peer:
    """diffusers, by the interpreter that has it; PYTHON,WORKER.py is a worker of yours."""
    python, _, worker = given.partition(",")
    return Peer(DIFFUSERS, Path(worker) if worker else HERE / "with_diffusers.py", python, forms=FORMS)


@dataclass(frozen=True)
class Asked:
    """What is drawn.

    Attributes:
        size: width and height in pixels.
        steps: of the sampler.
        repeats: images of each engine that count; one more warms it up.
        threads: of each.
    """

    size: tuple[int, int]
    steps: int
    repeats: int
    threads: int


@dataclass
class Drawn:
    """What was seen of an engine.

    Attributes:
        name, form: which.
        step: seconds of every step but the first of an image, whose time is not apart from what comes before.
        whole: seconds of each image, from prompt to pixels.
        peak: bytes that the process has held at most.
        times_ours: the median step of each image over ours of the same turn.
        difference: largest one of a level of its images, 0 … 255, from ours.
        note: why there are none.
    """

    name: str
    form: str
    step: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    peak: int = 0
    times_ours: list[float] = field(default_factory=list)
    difference: int = 0
    note: str = ""


def make(folder: Path, other: Peer) -> None:
    """Write the painter into `folder`, once, by diffusers' own classes, with the bundled tokenizer; a copy for us.

    Raises:
        ConfigError: it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = folder / _FOLDER / "tokenizer" / "spiece.model"
    if tokenizer.is_file():
        return
    try:
        once(other, "make", folder)
    except PeerError as error:
        raise ConfigError(f"diffusers makes the painter in {folder}, but: {error}") from error
    tokenizer.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_TOKENIZER, tokenizer)
    # Pages of a file that two processes have mapped do not leave either when one gives them back.
    shutil.copytree(folder / _FOLDER, folder / f"{_FOLDER}-{OURS}")


def compare(ours: Peer, other: Peer, folder: Path, form: str, asked: Asked) -> list[Drawn]:
    """Both engines, side by side. Raises PeerError if one of them fails."""
    found = {name: Drawn(name, form) for name in (OURS, other.name)}
    ids = T5Words(folder / _FOLDER / "tokenizer" / "spiece.model").ids(PROMPT, TEXT_LENGTH)
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for engine in (ours, other):
            call = engine.call("draw", folder, form, str(asked.threads))
            workers[engine.name] = stack.enter_context(Worker.started(engine, call, asked.threads))
            logger.info("%s: %s", engine.name, workers[engine.name].heard()["ready"])
        for turn in range(asked.repeats + 1):
            for name in list(workers)[:: 1 if turn % 2 else -1]:
                request = {"prompt": PROMPT, "ids": ids, "size": asked.size, "guidance": 5.0, "seed": turn}
                steps = asked.steps if turn else 2  # the first one warms it up
                answer = workers[name].ask(**request, steps=steps, file=str(folder / f"{name}.png"))
                found[name].peak = answer["peak"]
                if turn:
                    found[name].step += answer["steps"]
                    found[name].whole.append(answer["whole"])
            both = [numpy.asarray(Image.open(folder / f"{name}.png")).astype(int) for name in workers]
            theirs = found[other.name]
            theirs.difference = max(theirs.difference, int(abs(both[0] - both[1]).max()))
    ours = _medians(found[OURS], asked)
    for figures in found.values():
        figures.times_ours = [step / own for step, own in zip(_medians(figures, asked), ours, strict=True)]
    return list(found.values())


def _medians(figures: Drawn, asked: Asked) -> list[float]:
    """Of the steps of each image."""
    steps = asked.steps - 1
    return [statistics.median(figures.step[first : first + steps]) for first in range(0, len(figures.step), steps)]


def table(rows: list[Drawn]) -> str:
    """Markdown: a line for each engine and form."""
    head = ("weights", "engine", "a step (least to most)", "times ours", "an image", "peak", "times ours", "differs by")
    lines: list[tuple[str, ...]] = [head, ("---",) * len(head)]
    ours = {row.form: row for row in rows if row.name == OURS}
    for row in rows:
        step = f"{statistics.median(row.step):.3f} s ({min(row.step):.3f} to {max(row.step):.3f})"
        whole, ratio = f"{statistics.median(row.whole):.1f} s", f"{statistics.median(row.times_ours):.2f}"
        memory = f"{row.peak / ours[row.form].peak:.2f}"
        lines.append((row.form, row.name, step, ratio, whole, f"{row.peak / 1e9:.2f} GB", memory, str(row.difference)))
    return markdown_table(lines)
