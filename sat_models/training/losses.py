"""What a run makes smaller: the cross-entropy of the trained tokens, or how far a model is from preferring the better
of two answers (direct preference optimisation, DPO).

Legend: B rows, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mixins.lora import without_lora
from sat_models.processing.inputs import VLMInputs
from sat_models.processing.layout import IGNORE


@dataclass(frozen=True)
class Losses:
    """Of one batch.

    Attributes:
        total: the sum of the losses, with its graph.
        count: how many they are: tokens, or pairs.
        sums: further sums over the same, by name, to be reported as means.
    """

    total: Tensor
    count: int
    sums: dict[str, float] = field(default_factory=dict)


class Objective(Protocol):
    """A loss that a run can have.

    Attributes:
        names: of the sums that it reports.
    """

    names: tuple[str, ...]

    def __call__(self, model: Any, inputs: VLMInputs) -> Losses:
        """The losses of a batch with labels; `model` is one of the zoo, or an engine around one."""

    def scores(self, means: Mapping[str, float]) -> dict[str, float]:
        """What an evaluation says, from the mean "loss" and the means of `names`."""


def token_loss(model: Any, inputs: VLMInputs) -> tuple[Tensor, int]:
    """Sum of the cross-entropies of a batch's targets, in fp32, and their number. No other logits are computed.

    Args:
        model: of the zoo, or an engine around one.
        inputs: with `labels`, unshifted.
    """
    logits, targets, _ = _at_targets(model, inputs)
    return F.cross_entropy(logits, targets, reduction="sum"), targets.numel()


def answer_log_probs(model: Any, inputs: VLMInputs) -> Tensor:
    """The log-probability of each row's targets together, [B] fp32; 0 for a row without."""
    logits, targets, places = _at_targets(model, inputs)
    each = -F.cross_entropy(logits, targets, reduction="none")
    return each.new_zeros(inputs.batch_size).index_add(0, places // inputs.length, each)


def _at_targets(model: Any, inputs: VLMInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in fp32 where a target follows, those targets, and the places (row by row) of the logits."""
    following = F.pad(inputs.labels[:, 1:], (0, 1), value=IGNORE).flatten()  # of each position, the label of the next
    wanted = (following >= 0).nonzero().flatten()
    logits = model(**inputs.model_kwargs(), wanted_positions=wanted)[0]
    return logits.float(), following[wanted], wanted


class NextTokens:
    """Cross-entropy of each trained token."""

    names = ()

    def __call__(self, model: Any, inputs: VLMInputs) -> Losses:
        """Over all rows together."""
        return Losses(*token_loss(model, inputs))

    def scores(self, means: Mapping[str, float]) -> dict[str, float]:
        """Loss and perplexity."""
        return {"loss": means["loss"], "perplexity": math.exp(min(means["loss"], 700.0))}


class Preference:
    """DPO: the better answer's log-probability shall have grown more than the other's, since the reference.

    With r = beta · (log p - log p_reference) of an answer and m = r(chosen) - r(rejected), the loss of a pair is
    `-(1 - s) log sigmoid(m) - s log sigmoid(-m)`. The reference is the model itself without its LoRA.

    Source: arXiv 2305.18290, equation 7; with label smoothing s, the chance that a pair is the wrong way round,
    "conservative DPO" (E. Mitchell, "A note on DPO with noisy preferences"). Both as the loss "sigmoid" of TRL.

    Args:
        beta: how dearly the model pays for leaving the reference.
        label_smoothing: s, from 0 to below 0.5.
    """

    names = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen",
             "logps/rejected")  # fmt: skip

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.0) -> None:
        self.beta, self.label_smoothing = beta, label_smoothing

    def __call__(self, model: Any, inputs: VLMInputs) -> Losses:
        """Over pairs of rows, the chosen answer first; pairs without targets do not count."""
        bare = getattr(model, "module", model)
        with torch.no_grad(), without_lora(bare):
            reference = answer_log_probs(bare, inputs)
        policy = answer_log_probs(model, inputs)
        counted = (inputs.labels >= 0).any(dim=1).view(-1, 2).all(dim=1)
        losses, rewards = self.of(policy, reference)
        total = (losses * counted).sum()
        chosen, rejected = rewards.detach().double()[counted].unbind(1)
        logps = policy.detach().double().view(-1, 2)[counted].unbind(1)
        values = (chosen, rejected, chosen > rejected, chosen - rejected, *logps)
        sums = {name: float(value.sum()) for name, value in zip(self.names, values, strict=True)}
        return Losses(total, int(counted.sum()), sums)

    def of(self, policy: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Losses [P] and rewards [P, 2] of log-probabilities [2P]."""
        rewards = self.beta * (policy - reference).view(-1, 2)
        margin = rewards[:, 0] - rewards[:, 1]
        smoothing = self.label_smoothing
        return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin), rewards

    def scores(self, means: Mapping[str, float]) -> dict[str, float]:
        """All of them."""
        return dict(means)
