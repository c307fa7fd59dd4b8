"""Saves that are killed: `store_worker.py FOLDER STEP` forks a process per moment, and SIGKILLs it there.

Each process first copies a folder with steps 1 and 2, saves STEP in the copy, and dies after N calls that change the
disk, for N = 0, 1, … until a save survives. One JSON line per moment: the call it died in, what verifies after it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from sat_models.checkpoint.layout import LATEST_FILE
from sat_models.training.store import CheckpointStore

WATCHED = [(os, name) for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")] + [(torch, "save")]


def writer(step: int) -> Callable[[Path], None]:
    """Writes a weights file and a file in a subfolder, both full of `step`."""

    def write(staging: Path) -> None:
        torch.save({"module": {"x": torch.full((1000,), float(step))}}, staging / "mp_rank_00_model_states.pt")
        (staging / "optimizer").mkdir()
        (staging / "optimizer" / "state.bin").write_bytes(bytes([step]) * 5000)

    return write


def die_at(number: int, log: Path) -> None:
    """Kill this process before the watched call of that number."""
    calls = 0

    def wrapped(call: Callable, name: str) -> Callable:
        def watched(*args: object, **kwargs: object) -> object:
            nonlocal calls
            if calls == number:
                log.write_text(name)
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1
            return call(*args, **kwargs)

        return watched

    for module, name in WATCHED:
        setattr(module, name, wrapped(getattr(module, name), name))


def survives(number: int, step: int, folder: Path, log: Path) -> bool:
    """True if a save of `step` in `folder`, killed at that call, came to its end."""
    child = os.fork()
    if child == 0:
        die_at(number, log)
        CheckpointStore(folder).save(step, writer(step), score=0.5)
        os._exit(0)
    return os.WIFEXITED(os.waitpid(child, 0)[1])


def main() -> None:
    """folder, step."""
    base, step = Path(sys.argv[1]), int(sys.argv[2])
    store = CheckpointStore(base / "start")
    for earlier in (1, 2):
        store.save(earlier, writer(earlier), score=float(earlier))
    done, number = False, 0
    while not done:
        folder, log = base / str(number), base / f"{number}.log"
        shutil.copytree(base / "start", folder)
        done = survives(number, step, folder, log)
        latest = (folder / LATEST_FILE).read_text()
        path, manifest = CheckpointStore(folder).newest_good()
        again = CheckpointStore(folder)
        again.save(9, writer(9))
        again.verify(9)
        report = {
            "died_in": None if done else log.read_text(),
            "latest": latest,
            "newest": int(path.name),
            "content": torch.load(path / "mp_rank_00_model_states.pt")["module"]["x"][0].item(),
            "step": manifest["step"],
            "after": sorted(os.listdir(folder)),
        }
        print(json.dumps(report), flush=True)
        number += 1


if __name__ == "__main__":
    main()
