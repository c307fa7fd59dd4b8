"""An engine that counts, and notes in its folder that it was asked. How fast it is and how it fails is in its name."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protocol import Answer, Seen, run

NAME = Path(sys.argv[0]).stem


def make(folder: Path) -> None:
    (folder / f"{NAME}.made").touch()


def serve(folder: Path, form: str, threads: int) -> tuple[str, Answer]:
    print("a library says hello on stdout")
    slow = {"slow": 0.004, "broken": 0.0}.get(NAME, 0.002)

    def answer(ids: Sequence[int], new: int, seen: Seen) -> None:
        with (folder / "asked.txt").open("a", encoding="utf-8") as file:
            file.write(f"{NAME} {form} {len(ids)} {new} {threads}\n")
        if NAME == "broken" and len(ids) > 20:
            raise RuntimeError("no kernel for so many")
        for token in range(new):
            time.sleep(slow)
            seen(token)

    return f"fake {form}", answer


def train(folder: Path, form: str, threads: int) -> dict[str, Any]:
    assert (folder / "train" / "plan.json").is_file()
    return {"tokens_per_s": 100.0 if NAME == "ours" else 50.0, "loss": 1.0}


if __name__ == "__main__":
    wanted = {"a_package_that_nobody_has": "what-brings-it"} if NAME == "absent" else {}
    run(wanted, serve, make=({}, make), train=({}, train))
