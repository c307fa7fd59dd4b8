"""What the workers of all engines share. Python's own library only: a worker runs in the interpreter of its engine.

`WORKER serve FOLDER FORM THREADS` loads a model of FOLDER and prints `{"ready": what it is}`; each line
`{"ids": […], "new": n}` on stdin is answered with `{"first": seconds, "rest": seconds, "new": n, "peak": bytes}`.
`WORKER draw FOLDER FORM THREADS` does so with a painter: a request is `{"prompt": text, "ids": what T5 reads of it,
"size": [width, height], "steps": n, "guidance": …, "seed": …, "file": where the image goes}`, its answer `{"steps":
[seconds of each but the first], "whole": seconds, "peak": bytes}`.
`WORKER train FOLDER FORM THREADS` trains and prints `{"tokens_per_s": …, "loss": …, "peak": bytes}`. `WORKER make
FOLDER` writes the files that the engine reads there. Without its packages a worker prints `{"missing": what to
install}`.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Seen = Callable[[int], None]
"""Is told each token as soon as it is known."""

Answer = Callable[[Sequence[int], int, Seen], "dict[str, Any] | None"]
"""Reads a prompt and generates so many tokens, greedily, whatever they are. An engine that cannot say when each of them
is known says itself what the answer to a request is, its peak aside."""


Draw = Callable[[Mapping[str, Any], Callable[[], None]], None]
"""Does what a request asks for, and says after each step that it is done."""


def peak_bytes() -> int:
    """Most memory that this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def timed(answer: Answer, ids: Sequence[int], new: int) -> dict[str, Any]:
    """An answer with its times."""
    marks, found = [time.perf_counter()], []

    def seen(token: int) -> None:
        found.append(token)
        marks.append(time.perf_counter())

    own = answer(ids, new, seen)
    if own is not None:
        return own | {"peak": peak_bytes()}
    if len(found) != new:
        raise RuntimeError(f"{new} tokens were asked for, {len(found)} came")
    return {"first": marks[1] - marks[0], "rest": marks[-1] - marks[1], "new": new, "ids": found, "peak": peak_bytes()}


def timed_drawing(draw: Draw, request: Mapping[str, Any]) -> dict[str, Any]:
    """An image with its times; what comes before the first step counts to the whole alone."""
    began, marks = time.perf_counter(), []
    draw(request, lambda: marks.append(time.perf_counter()))
    whole = time.perf_counter() - began
    return {"steps": [b - a for a, b in itertools.pairwise(marks)], "whole": whole, "peak": peak_bytes()}


def run(
    needs: Mapping[str, str],
    serve: Callable[[Path, str, int], tuple[str, Answer]] | None = None,
    *,
    draw: Callable[[Path, str, int], tuple[str, Draw]] | None = None,
    make: tuple[Mapping[str, str], Callable[[Path], None]] | None = None,
    train: tuple[Mapping[str, str], Callable[[Path, str, int], dict[str, Any]]] | None = None,
) -> None:
    """Do what the command line says.

    Args:
        needs: what `serve` and `draw` import: a module, and the package that brings it.
        serve: folder, form and threads -> what it is, and what answers.
        draw: the same of a painter.
        make: what making the files needs and how it is done; None: they are made by others.
        train: the same for training.
    """
    task, folder, *rest = sys.argv[1:]
    if task == "make":
        needs = make[0]
    elif task == "train":
        needs = train[0]
    out = _apart()
    if missing := [package for module, package in needs.items() if not _is_there(module)]:
        _say(out, {"missing": " ".join(missing)})
    elif task == "make":
        make[1](Path(folder))
        _say(out, {"made": folder})
    elif task == "train":
        _say(out, train[1](Path(folder), rest[0], int(rest[1])) | {"peak": peak_bytes()})
    else:
        what, answer = {"serve": serve, "draw": draw}[task](Path(folder), rest[0], int(rest[1]))
        _say(out, {"ready": what})
        for line in sys.stdin:
            request = json.loads(line)
            drawing = task == "draw"
            _say(out, timed_drawing(answer, request) if drawing else timed(answer, request["ids"], request["new"]))


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False


def _apart() -> Any:
    """Where results go; what libraries print goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def _say(out: Any, result: dict[str, Any]) -> None:
    out.write(json.dumps(result) + "\n")
    out.flush()
