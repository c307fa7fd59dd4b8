"""The golden set that parity is tested against: the folder `$ZOO_GOLDEN`, or tests/golden.

Anyone may hold another set of the same form against the code. A family's folders are those named `<family>-<one word>`;
the same weights in another form lie in twins of a folder (`…-hf`, `…-mp2`). What a set lacks is skipped and said so.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

SET = Path(os.environ.get("ZOO_GOLDEN") or Path(__file__).parent / "golden").expanduser().resolve()


def folders(family: str) -> list[Path]:
    """A family's folders in the set that hold reference outputs."""
    found = (path for path in sorted(SET.glob(f"{family}-*")) if "-" not in path.name.removeprefix(f"{family}-"))
    return [path for path in found if (path / "reference.json").is_file()]


def each_folder(*families: str) -> Callable[[Any], Any]:
    """Runs a test with `folder` as each folder of these families; a family without any is skipped by name."""
    given = []
    for family in families:
        reason = f"the set {SET} has no {family}-*"
        given += [pytest.param(folder, id=folder.name) for folder in folders(family)] or [
            pytest.param(None, id=family, marks=pytest.mark.skip(reason=reason))
        ]
    return pytest.mark.parametrize("folder", given)


def each_case(
    *families: str, kind: str = "cases", wanted: Callable[[dict[str, Any]], bool] = lambda case: True
) -> Callable[[Any], Any]:
    """Runs a test with `folder` and `case`, an entry of its reference.json; of those that are `wanted`."""
    given = []
    for family in families:
        found = [(folder, case) for folder in folders(family) for case in reference(folder).get(kind, ())]
        found = [(folder, case) for folder, case in found if wanted(case)]
        reason = f"the set {SET} has no such {kind} of {family}-*"
        given += [pytest.param(folder, case, id=f"{folder.name}-{case['key']}") for folder, case in found] or [
            pytest.param(None, None, id=family, marks=pytest.mark.skip(reason=reason))
        ]
    return pytest.mark.parametrize(("folder", "case"), given)


def reference(folder: Path) -> dict[str, Any]:
    """What stands in a folder's reference.json."""
    return json.loads((folder / "reference.json").read_text(encoding="utf-8"))


def tensors(folder: Path) -> dict[str, Tensor]:
    """A folder's reference tensors."""
    return load_file(folder / "reference.safetensors")


def twin(folder: Path, form: str, place: Path) -> Path:
    """The same weights in another form ("hf", "mp2"), in a copy beside its config where the form has none."""
    found = folder.with_name(f"{folder.name}-{form}")
    if not found.is_dir():
        pytest.skip(f"the set {SET} has no {found.name}")
    if any(found.glob("*config.json")):
        return found
    copy = Path(shutil.copytree(found, place / found.name))
    shutil.copy(folder / "model_config.json", copy)
    return copy
