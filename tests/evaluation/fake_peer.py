"""An engine that counts, and notes in its folder that it was asked. How fast it is and how it fails is in its name."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from protocol import Answer, Draw, Seen, run

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


def draw(folder: Path, form: str, threads: int) -> tuple[str, Draw]:
    def drawn(request: Mapping[str, Any], stepped: Callable[[], None]) -> None:
        with (folder / "asked.txt").open("a", encoding="utf-8") as file:
            file.write(f"{NAME} {form} {request['steps']} {len(request['ids'])} {threads}\n")
        for _ in range(request["steps"]):
            time.sleep(0.02 if NAME == "slow" else 0.01)
            stepped()
        Image.new("L", request["size"], 90 + (NAME == "slow") * request["seed"]).save(request["file"])

    return f"fake {form}", drawn


def train(folder: Path, form: str, threads: int) -> dict[str, Any]:
    assert (folder / "train" / "plan.json").is_file()
    return {"tokens_per_s": 100.0 if NAME == "ours" else 50.0, "loss": 1.0}


if __name__ == "__main__":
    wanted = {"a_package_that_nobody_has": "what-brings-it"} if NAME == "absent" else {}
    run(wanted, serve, draw=draw, make=({}, make), train=({}, train))
