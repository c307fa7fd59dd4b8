"""The learning rate over the steps of a run: warm-up, then a fall."""

from __future__ import annotations

import math

from sat_models.training.settings import FinetuneSettings


def learning_rate(settings: FinetuneSettings, step: int) -> float:
    """The rate of a step, counted from 0: a linear rise over the warm-up, then `settings.schedule`.

    `cosine` and `linear` end at `min_learning_rate`, one step after the last; `constant` stays.
    """
    highest, lowest = settings.learning_rate, settings.min_learning_rate
    rising = math.ceil(settings.warmup * settings.train_iters)
    if step < rising:
        return highest * (step + 1) / rising
    if settings.schedule == "constant":
        return highest
    done = min(1.0, (step - rising) / (settings.train_iters - rising))
    share = 1 - done if settings.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return lowest + (highest - lowest) * share
