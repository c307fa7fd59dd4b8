"""Commands that write checkpoints and are killed: `write_worker.py FOLDER KIND PLACE` forks a process per moment.

KIND is "merge" (two parts into one) or "quantise" (to 4 bits), PLACE what lies where it writes: "nothing", an "empty"
folder, or a "former" checkpoint that gives way. Each process dies before the N-th call that changes the disk, for N
from 0 until one survives. One JSON line per moment: the call, what lies there, and what the same command then leaves.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "training"))
from store_worker import die_at  # noqa: E402

from sat_models.checkpoint.convert import convert  # noqa: E402
from sat_models.checkpoint.find import find_checkpoint  # noqa: E402
from sat_models.errors import ZooError  # noqa: E402
from sat_models.models.common.quantisation import Quantisation  # noqa: E402

MODEL = ROOT / "tests" / "golden" / "cogvlm-mini"


def command(kind: str, base: Path) -> Callable[[Path], Path]:
    """What writes to a folder; its source is made first."""
    if kind == "merge":
        convert(MODEL, "sat", base / "parts", size=2)
        return functools.partial(convert, base / "parts", "sat", overwrite=True)
    return functools.partial(convert, MODEL, "sat", quantisation=Quantisation(bits=4), overwrite=True)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def found(folder: Path, whole: dict[str, bytes], former: dict[str, bytes]) -> str:
    """What stands there, as whoever loads it sees it."""
    try:
        find_checkpoint(folder)
    except ZooError:
        return "no checkpoint"
    held = {name: data for name, data in content(folder).items() if not name.startswith(".writing/")}
    return "whole" if held == whole else "former" if held == former else f"half: {sorted(held)}"


def main() -> None:
    """folder, kind, place."""
    base, place = Path(sys.argv[1]), sys.argv[3]
    write = command(sys.argv[2], base)
    write(base / "whole")
    convert(MODEL, "sat", base / "former", step="7")
    whole, former = content(base / "whole"), content(base / "former")
    done, number = False, 0
    while not done:
        home, log = base / str(number), base / f"{number}.log"
        home.mkdir()
        if place == "former":
            shutil.copytree(base / "former", home / "out")
        elif place == "empty":
            (home / "out").mkdir()
        child = os.fork()
        if child == 0:
            die_at(number, log)
            write(home / "out")
            os._exit(0)
        done = os.WIFEXITED(os.waitpid(child, 0)[1])
        report = {"died_in": None if done else log.read_text(), "found": found(home / "out", whole, former)}
        report["beside"] = sorted(path.name for path in home.iterdir() if not path.name.startswith("."))
        write(home / "out")
        report["again"] = found(home / "out", whole, former)
        report["left"] = sorted(path.name for path in [*home.iterdir(), *(home / "out").glob(".*")])
        print(json.dumps(report), flush=True)
        number += 1


if __name__ == "__main__":
    main()
