"""The door to SAT; mostly in processes of their own, because it works on `sys.modules`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mixins import sat_compat

ROOT = Path(__file__).resolve().parents[2]
NOT_NEEDED = ("triton", "wandb", "requests", "transformers", "deepspeed")


def run(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` from another folder, with the checkout importable."""
    where = os.pathsep.join(map(str, (ROOT, *path)))
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": where}, cwd="/", capture_output=True, text=True
    )


def last_line(code: str, *path: Path) -> str:
    """What `code` prints last."""
    done = run(code, *path)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    """Just enough of Triton and wandb for SAT's own bodies to run on a CPU."""
    for name, body in {
        "triton/__init__.py": "from . import language\ndef jit(f=None, **kw):\n    return f if f else lambda g: g\n",
        "triton/language.py": "class constexpr: pass\n",
        "wandb/__init__.py": "",
        "requests/__init__.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(body)
    return tmp_path


FIND_LOADED = f"[name for name in {NOT_NEEDED} if name in sys.modules]"

GO_THROUGH_THE_DOOR = f"""
import json, os, sys
import mixins.sat_compat as door
facts = {{"loaded": {FIND_LOADED}, "SAT_LOGLEVEL": os.environ.get("SAT_LOGLEVEL")}}

import importlib.machinery, importlib.util, pickle
from torch.utils._triton import has_triton_package
facts["deepspeed"] = importlib.util.find_spec("deepspeed") is not None

import sat, sat.model, sat.mpu
from sat import mpu
from sat.model.base_model import BaseMixin
where = importlib.machinery.PathFinder.find_spec("sat").origin
facts["files"] = [where, sat.__file__, sat.__spec__.origin]
facts["same objects"] = sat.mpu is mpu is door.mpu and sat.model.base_model.BaseModel is door.BaseModel
facts["same objects"] &= BaseMixin is door.BaseMixin
facts["version"] = sat.__version__

facts["odd names"] = [hasattr(sat, "random_name"), hasattr(sat.model, "__wrapped__")]
def lost(): pass
lost.__module__ = None
try:
    pickle.dumps(lost)  # looks for "lost" in every module there is
except pickle.PicklingError:
    pass
facts["loaded by odd names"] = {FIND_LOADED}
facts["triton"] = has_triton_package()  # which imports it

facts["body"] = []
for _ in range(2):
    try:
        facts["body"].append(sat.get_args.__module__)
    except ModuleNotFoundError as error:
        facts["body"].append("lacks " + error.name)
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    """What a process that goes through the door sees."""
    return json.loads(last_line(GO_THROUGH_THE_DOOR))


def test_loads_nothing_that_is_not_needed(facts: dict[str, Any]) -> None:
    assert facts["loaded"] == []


def test_loads_no_deepspeed_where_there_is_a_gpu_either() -> None:
    code = f"import sys, torch\ntorch.cuda.is_available = lambda: True\nimport mixins.sat_compat\nprint({FIND_LOADED})"
    assert last_line(code) == "[]"


def test_deepspeed_can_be_imported_afterwards(facts: dict[str, Any]) -> None:
    assert facts["deepspeed"] == (importlib.util.find_spec("deepspeed") is not None)


def test_torch_sees_the_truth_about_triton(facts: dict[str, Any]) -> None:
    assert facts["triton"] == (importlib.util.find_spec("triton") is not None)


def test_the_log_level_of_the_user_is_left_alone(facts: dict[str, Any]) -> None:
    assert facts["SAT_LOGLEVEL"] == os.environ.get("SAT_LOGLEVEL")


def test_sat_after_the_door_is_the_real_one(facts: dict[str, Any]) -> None:
    real, *seen = facts["files"]
    assert seen == [real, real]
    assert facts["same objects"]
    assert facts["version"] == sat_compat.TESTED_SAT_VERSION


def test_asking_for_odd_names_does_not_run_the_body(facts: dict[str, Any]) -> None:
    assert facts["odd names"] == [False, False]
    assert facts["loaded by odd names"] == []


def test_asking_for_a_name_of_sats_body_runs_it_or_says_what_sat_lacks(facts: dict[str, Any]) -> None:
    first, second = facts["body"]
    assert first == second, "a body that failed must fail again, not leave half of itself"
    if importlib.util.find_spec("triton") and importlib.util.find_spec("wandb"):
        assert first == "sat.arguments"
    else:
        assert first.partition(".")[0] in {f"lacks {name}" for name in NOT_NEEDED}


@pytest.mark.slow
@pytest.mark.parametrize("first", ["sat", "mixins.sat_compat"])
def test_the_whole_of_sat_works_whichever_comes_first(first: str, stubs: Path) -> None:
    # torch and transformers are loaded before the stand-ins are on the path, so that they do not take them for Triton.
    code = f"""
import sys, torch._dynamo, transformers.activations
sys.path.insert(0, {str(stubs)!r})
import {first}
import mixins.sat_compat as door, sat
assert isinstance(sat, door._DeferredPackage) == ({first!r} != "sat")
assert sat.mpu is door.mpu
assert callable(sat.get_args) and sat.AutoModel.__module__ == "sat.model.base_model"
from sat.model import LLaMAModel
from sat.model.official import GLMModel
from sat.model.finetune import LoRAMixin
assert issubclass(LLaMAModel, door.BaseModel) and issubclass(LoRAMixin, door.BaseMixin)
print("whole")
"""
    assert last_line(code) == "whole"


def test_another_version_of_sat_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.5.0")
    with pytest.raises(ImportError) as caught:
        sat_compat._check_version()
    assert str(caught.value) == (
        "SwissArmyTransformer 0.5.0 is installed, but this project was tested with 0.4.12 only. "
        'Install it with: pip install "SwissArmyTransformer==0.4.12"'
    )


def test_absent_sat_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(ImportError) as caught:
        sat_compat._check_version()
    assert str(caught.value) == (
        'SwissArmyTransformer is not installed. Install it with: pip install "SwissArmyTransformer==0.4.12"'
    )


def test_the_version_is_checked_at_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ImportError("refused")

    monkeypatch.setattr(sat_compat, "_check_version", refuse)
    monkeypatch.delitem(sys.modules, "sat")
    with pytest.raises(ImportError, match="refused"):
        sat_compat._open_door()


def test_sat_that_is_there_already_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sat_compat, "_check_version", lambda: pytest.fail("the door was opened twice"))
    sat_compat._open_door()


def test_a_body_that_fails_with_an_attribute_error_is_not_taken_for_a_missing_name(tmp_path: Path) -> None:
    package = tmp_path / "__init__.py"
    package.write_text("wanted = None.nothing\n")
    deferred = sat_compat._DeferredPackage("zoo_test_package")
    deferred.__spec__ = importlib.util.spec_from_file_location("zoo_test_package", package)
    deferred.__file__, deferred.__path__ = str(package), [str(tmp_path)]
    sys.modules["zoo_test_package"] = deferred
    try:
        with pytest.raises(ImportError, match="'NoneType' object has no attribute 'nothing'"):
            _ = deferred.wanted
        assert not hasattr(deferred, "other")
    finally:
        del sys.modules["zoo_test_package"]
