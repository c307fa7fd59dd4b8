"""Schedules beside those of the originals, and their arithmetic."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from golden_set import each_folder, tensors

from sat_models.errors import ConfigError
from sat_models.sampling.schedule import diffusers_steps, sat_steps, shares, steps_of, stretched

SHIFT = 4.0
EXACT = 2e-7
"""Two roundings of fp32."""


@each_folder("cogview3-plus")
def test_tables_are_the_originals(folder: Path) -> None:
    golden, table = tensors(folder), stretched(shares(SHIFT))
    torch.testing.assert_close(table.float(), golden["schedule.sat_1000"], atol=EXACT, rtol=0)
    torch.testing.assert_close(table, golden["schedule.diffusers_1000"], atol=1e-15, rtol=0)


@each_folder("cogview3-plus")
def test_steps_are_the_originals(folder: Path) -> None:
    golden = tensors(folder)
    counts = sorted(int(name.split("_")[1].split(".")[0]) for name in golden if name.endswith(".alpha_sqrt"))
    assert counts
    for count in counts:
        ours = sat_steps(count, SHIFT)
        wanted = golden[f"schedule.sat_{count}.alpha_sqrt"][:-1]
        torch.testing.assert_close(torch.tensor([step.share for step in ours]), wanted, atol=EXACT, rtol=0)
        assert [step.time for step in ours] == golden[f"schedule.sat_{count}.index"].tolist()
        theirs = [step.time for step in diffusers_steps(count, SHIFT)]
        assert theirs == golden[f"schedule.diffusers_{count}.timesteps"].tolist()


def test_every_number_of_steps_has_the_originals_times() -> None:
    for count in (1, 2, 3, 48, 333, 999, 1000):
        wanted = numpy.linspace(999, 0, count, endpoint=False).astype(int).tolist()
        assert [step.time for step in sat_steps(count, SHIFT)] == wanted
        theirs = (numpy.round(numpy.arange(1000, 0, -1000 / count)) - 1).tolist()
        assert [step.time for step in diffusers_steps(count, SHIFT)] == theirs


@pytest.mark.parametrize("sampler", ["sat", "diffusers"])
def test_it_begins_with_noise_alone_and_ends_with_the_image(sampler: str) -> None:
    for count in (1, 4, 50):
        steps = steps_of(sampler, count, SHIFT)
        assert (len(steps), steps[0].time, steps[0].share, steps[-1].after) == (count, 999, 0, 1)
        assert all(step.share < step.after for step in steps)
    assert steps_of("diffusers", 28, SHIFT)[-1].after < 1, "its last step does not end where 28 does not divide 1000"


@pytest.mark.parametrize("count", [0, -1, 1001, 2.5, True, "5"])
def test_a_number_of_steps_that_cannot_be(count: object) -> None:
    for sampler in ("sat", "diffusers"):
        with pytest.raises(ConfigError, match="whole number from 1 to 1000"):
            steps_of(sampler, count, SHIFT)


def test_an_unknown_sampler() -> None:
    with pytest.raises(ConfigError, match="sampler is 'euler'; allowed: sat, diffusers"):
        steps_of("euler", 5, SHIFT)
