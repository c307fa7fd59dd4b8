"""What people expect of a Python project: a version, a site, a notebook that runs, packages that may be absent."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

import sat_models
from sat_models.errors import MissingPackageError
from sat_models.figures import new_figure
from sat_models.training.reporting import CURVE_FILE, METRICS_FILE, Reporter

ROOT = Path(__file__).resolve().parents[1]
ABSENT = ("deepspeed", "spacy", "matplotlib", "tensorboardX", "transformers", "triton", "wandb", "gradio", "fastapi")

CHAT = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from sat_models.serving.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of this checkout, from a folder of choice."""
    there = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, cwd=cwd, env=there, capture_output=True, text=True)


def test_a_chat_needs_neither_deepspeed_nor_spacy_nor_an_extra() -> None:
    arguments = ("--image", "examples/3.png", "--query", "Where is the red circle?", "--json", "--device", "cpu")
    done = run(sys.executable, "-c", CHAT, *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["boxes"]


def test_the_version_is_said_in_one_place() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert sat_models.__version__ == cited["version"]
    assert version("cogvlm-sat-zoo") == sat_models.__version__, "installed from another state: pip install -e ."
    release = sat_models.__version__.partition(".dev")[0]
    assert re.search(rf"^## .*\b{re.escape(release)}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)


def test_the_workflow_runs_what_ci_runs() -> None:
    job = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]["tests"]
    assert {"run": "bash .ci/run"} in job["steps"] and (ROOT / ".ci/run").is_file()
    least, below = re.search(r'python_requires=">=3\.(\d+),<3\.(\d+)"', (ROOT / "setup.py").read_text()).groups()
    assert job["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in range(int(least), int(below))]


def test_pre_commit_lints_with_the_pinned_ruff() -> None:
    (hooks,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert f"ruff=={hooks['rev'].removeprefix('v')}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Strict: no broken link or anchor, no page that the menu leaves out."""
    done = run(sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "finetuning" / "index.html").is_file()


@pytest.mark.parametrize(
    ("names", "changed", "cores", "processes"),
    [
        (["tests"], {}, 2, 2),
        (["tests/serving", "tests/parallel"], {}, 16, 4),
        (["tests"], {}, 1, None),
        (["tests/test_files.py"], {}, 2, None),
        (["tests/test_files.py::test_x", "tests"], {}, 2, None),
        (["tests"], {"markexpr": "slow"}, 2, None),
        (["tests"], {"usepdb": True}, 2, None),
        (["tests"], {"numprocesses": 0}, 2, 0),
    ],
)
def test_folders_of_quick_tests_are_shared_out_among_the_cores(
    names: list[str], changed: dict[str, Any], cores: int, processes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    option = {"numprocesses": None, "dist": "no", "markexpr": "not slow", "usepdb": False, "collectonly": False}
    config = types.SimpleNamespace(option=types.SimpleNamespace(**{**option, **changed}), args=names)
    runpy.run_path(str(ROOT / "tests" / "conftest.py"))["pytest_cmdline_main"](config)
    assert config.option.numprocesses == processes
    assert config.option.dist == ("loadfile" if processes else "no"), "a file shares its fixtures"


def test_odd_text_of_a_test_reaches_the_process_that_prints_it(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text(encoding="utf-8"))
    odd = 'import logging\ndef test_odd() -> None:\n    logging.error("half: \\ud800")\n    assert "\\udfff" == "x"\n'
    (tmp_path / "test_odd.py").write_text(odd)
    done = run(sys.executable, "-m", "pytest", "-n", "1", "-p", "no:cacheprovider", str(tmp_path), cwd=tmp_path)
    assert "1 failed" in done.stdout and "INTERNALERROR" not in done.stdout + done.stderr, done.stdout


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    """Its cells one after the other, as a kernel would; the last one prints what fine-tuning would train."""
    cells = json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    done = run(sys.executable, "-c", code.replace("runs/tour", str(tmp_path / "tour")), PYTHONIOENCODING="utf-8")
    assert done.returncode == 0, done.stderr
    assert "A red circle, an orange circle and an orange triangle. | stop" in done.stdout
    assert "LlamaVisionExpertAttnMixin" in done.stdout and "2.86 % of the model" in done.stdout


class StandIn(types.ModuleType):
    """wandb or SwanLab: what a run is started with, told, and ended with."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[Any, ...]] = []

    def init(self, **given: Any) -> StandIn:
        self.calls.append(("init", given["project"], given["config"]))
        return self

    def log(self, numbers: dict[str, float], *, step: int) -> None:
        self.calls.append(("log", numbers, step))

    def finish(self) -> None:
        self.calls.append(("finish",))


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_a_run_reports_to_the_service_that_was_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = StandIn(name)
    monkeypatch.setitem(sys.modules, name, service)
    reporter = Reporter(tmp_path, step=0, tensorboard=False, settings={"lr": 0.1}, **{name: "mine"})
    reporter.report(3, {"loss": 1.5, "note": "not a number"})
    reporter.close()
    assert service.calls == [("init", "mine", {"lr": 0.1}), ("log", {"loss": 1.5}, 3), ("finish",)]


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_a_service_that_is_not_installed_names_its_extra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match=rf"'{name}', which is not installed.*\[track\]"):
        Reporter(tmp_path, step=0, tensorboard=False, **{name: "mine"})


def test_a_run_without_the_packages_for_plots_and_events_keeps_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)
    reporter = Reporter(tmp_path, step=0)
    reporter.report(1, {"loss": 2.0})
    assert reporter.close() is None
    assert json.loads((tmp_path / METRICS_FILE).read_text()) == {"step": 1, "loss": 2.0}
    assert not (tmp_path / CURVE_FILE).exists()
    assert "cogvlm-sat-zoo[track]" in caplog.text and "cogvlm-sat-zoo[plot]" in caplog.text
    with pytest.raises(MissingPackageError, match=r"\[plot\]"):
        new_figure(1, 1)
