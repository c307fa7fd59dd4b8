"""Two processes save together; one of them fails. `torchrun … store_worker.py FOLDER`"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from sat_models import runtime
from sat_models.errors import CheckpointError, run_script
from sat_models.training import store as store_module
from sat_models.training.store import CheckpointStore


def write(staging: Path) -> None:
    """Each rank's own files."""
    for number in range(3):
        (staging / f"{runtime.rank()}_{number}.bin").write_bytes(bytes([runtime.rank()]) * 1000)


def failing_on(rank: int) -> Callable[[Path], None]:
    """A writer for which the disk of one rank is full."""

    def fails(staging: Path) -> None:
        write(staging)
        if runtime.rank() == rank:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(staging / f"{rank}_3.bin"))

    return fails


def error_of(action: Callable[[], object]) -> str:
    """The message of the CheckpointError that `action` ends in."""
    try:
        action()
    except CheckpointError as error:
        return str(error)
    return ""


def main() -> None:
    """folder for checkpoints and reports."""
    out = Path(sys.argv[1])
    runtime.init_distributed()
    rank = runtime.rank()
    store = CheckpointStore(out / "run")
    store.check_writable(1)
    report: dict[str, object] = {"too_much": error_of(lambda: store.check_writable(10**18))}
    store.save(1, write, score=1.0)
    for failing in (0, 1):
        report[f"fails_on_{failing}"] = error_of(lambda failing=failing: store.save(2, failing_on(failing)))
        report[f"left_by_{failing}"] = sorted(os.listdir(store.folder)) if rank == 0 else None
        store.newest_good()  # the ranks are still together
    fingerprint = store_module._fingerprint
    if rank == 1:
        store_module._fingerprint = lambda path: failing_on(1)(path.parent)
    report["seal_fails"] = error_of(lambda: store.save(2, write))
    store_module._fingerprint = fingerprint
    store.save(3, write)
    path, manifest = store.newest_good()
    report["newest"], report["files"] = path.name, sorted(manifest["files"])
    if rank == 0:
        (out / "run" / "3" / "1_2.bin").write_bytes(b"x" * 1000)
    path, manifest = store.newest_good()
    report["after_damage"], report["score"] = path.name, manifest["score"]
    unseen = CheckpointStore(out / f"disk_of_{rank}")  # as if every node had its own disk
    report["not_shared"] = error_of(unseen.check_writable)
    (out / f"{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    run_script(main)
