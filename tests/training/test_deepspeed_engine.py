"""What is kept in hand while DeepSpeed loads and saves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sat_models.training.engine import late_failures, options_kept


def test_options_are_those_of_this_run_after_loading() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([{"params": [weight], "weight_decay": 0.1, "rate_scale": 0.5}], betas=(0.8, 0.9))
    optimizer.clip_grad = 1.0
    with options_kept(SimpleNamespace(optimizer=optimizer)):
        optimizer.param_groups[0].update(weight_decay=0.7, betas=(0.1, 0.2), rate_scale=9.0)
        optimizer.clip_grad = 5.0
    (group,) = optimizer.param_groups
    assert (group["weight_decay"], group["betas"], group["rate_scale"]) == (0.1, (0.8, 0.9), 0.5)
    assert optimizer.clip_grad == 1.0 and group["params"] == [weight]


class Writer:
    """A checkpoint engine whose disk is full after the first file."""

    def __init__(self) -> None:
        self.written: list[Any] = []

    def save(self, state: Any, path: str) -> None:
        if self.written:
            raise OSError(28, "No space left on device")
        self.written.append(state)


def test_a_file_that_cannot_be_written_is_an_error_after_all_barriers() -> None:
    engine, passed = SimpleNamespace(checkpoint_engine=Writer()), []
    with pytest.raises(OSError, match="No space left"), late_failures(engine):
        for number in range(3):
            engine.checkpoint_engine.save(number, "a file")
            passed.append(number)
    assert passed == [0, 1, 2]
    with pytest.raises(OSError, match="No space left"):
        engine.checkpoint_engine.save(3, "a file")  # outside the block it is what it was
