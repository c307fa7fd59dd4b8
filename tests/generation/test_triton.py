"""Triton's kernels: in Triton's interpreter on a CPU, and on a GPU where there is one (`triton_cases.py`)."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sat_models.bench.triton_tiles import neighbours, walk
from sat_models.errors import InputError
from sat_models.generation.engine import Engine
from sat_models.generation.sampling import SamplingOptions
from sat_models.generation.steps import triton_tuning as tuning
from sat_models.generation.steps.triton_tuning import Tiles
from sat_models.zoo import load_pretrained

with_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed: it comes with the tests on Linux on x86-64, and with torch's builds for GPUs",
)
HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden"


def run_cases(**environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(HERE / "triton_cases.py")]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout


@with_triton
@pytest.mark.parametrize(
    "cases, kernels", [("few", 10), pytest.param("all", 60, marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_the_kernels_compile_for_an_h100(cases: str, kernels: int, tmp_path: Path) -> None:
    """On any machine: Triton brings its compiler along."""
    command = [sys.executable, str(HERE / "triton_compiled.py"), cases]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout.split()[0]) >= kernels, done.stdout


@pytest.mark.slow
@with_triton
def test_in_the_interpreter() -> None:
    run_cases(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu() -> None:
    run_cases()


def test_a_machine_without_a_gpu_is_told_once_and_answers(caplog: pytest.LogCaptureFixture) -> None:
    vlm = load_pretrained(GOLDEN / "cogvlm-mini", device="cpu", dtype="float32")
    prompt, options = vlm.processor(None, "Hello", version="chat"), SamplingOptions(max_new_tokens=4)
    usual = list(Engine(vlm.model, eos_id=-5, max_length=256, device="cpu").tokens(prompt, options))
    engine = Engine(vlm.model, eos_id=-5, max_length=256, device="cpu", kernels="triton")
    with caplog.at_level(logging.WARNING):
        assert [list(engine.tokens(prompt, options)) for _ in range(2)] == [usual, usual]
    said = [entry.getMessage() for entry in caplog.records if "Triton's kernels" in entry.getMessage()]
    assert len(said) == 1 and "cannot launch on cpu" in said[0]


def test_other_kernels_are_refused() -> None:
    with pytest.raises(InputError, match=r"kernels is 'cuda'; allowed: 'triton' or None"):
        Engine(torch.nn.Linear(1, 1), eos_id=0, max_length=8, device="cpu", kernels="cuda")


def test_the_table_of_tiles_is_whole() -> None:
    """Powers of two, large enough for tensor cores where several rows share a weight."""
    assert set(tuning.PRODUCTS) == {(bits, rows) for bits in (16, 8, 4) for rows in (1, 16, 32)}
    for (_, rows), tiles in tuning.PRODUCTS.items():
        assert all(size & (size - 1) == 0 for size in (tiles.outputs, tiles.columns, tiles.warps))
        assert rows == 1 or min(tiles.outputs, tiles.columns) >= 16
    assert tuning.product_tiles(32, 1) == tuning.PRODUCTS[16, 1]
    assert tuning.product_tiles(4, 17) == tuning.PRODUCTS[4, 32]


def test_the_walk_ends_at_the_best_neighbour_of_all() -> None:
    best = Tiles(32, 128, 8, 2)

    def seconds(tiles: Tiles) -> float:
        return sum(abs(math.log2(getattr(tiles, name) / getattr(best, name))) for name in vars(best))

    found = walk(seconds, Tiles(8, 512, 4, 1), 1)
    assert min(found, key=found.__getitem__) == best
    assert len(found) < 60
    assert all(tiles.outputs >= 16 for tiles in neighbours(Tiles(16, 64, 4, 1), 16))
    assert Tiles(8, 64, 4, 1) in neighbours(Tiles(16, 64, 4, 1), 1)


@pytest.mark.parametrize("heads, columns, parts", [(32, 2048, 16), (32, 100, 1), (1, 4096, 32), (512, 4096, 1)])
def test_splits(heads: int, columns: int, parts: int) -> None:
    assert tuning.splits(heads, columns) == parts
