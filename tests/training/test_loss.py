"""The loss of training computes logits where there are labels, and is that of all logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat_models.processing.layout import VLMInputs, collate
from sat_models.training.losses import token_loss
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

ROOT = Path(__file__).resolve().parents[2]
TURNS = [("What color is the circle?", "red"), ("How many shapes are there?", "There are three of them.")]


@pytest.fixture(scope="module")
def vlm() -> VLM:
    loaded = load_pretrained("cogvlm-tiny", device="cpu", dtype="float32")
    loaded.model.requires_grad_(True)
    return loaded


@pytest.fixture(scope="module")
def batch(vlm: VLM) -> VLMInputs:
    """Two samples of different lengths, padded."""
    samples = [
        vlm.processor.training_sample(ROOT / "examples" / f"{number}.png", TURNS[:count], version="chat")
        for number, count in ((1, 2), (2, 1))
    ]
    return collate(samples, pad_id=vlm.processor.tokenizer.pad_id)


def whole_loss(model: nn.Module, inputs: VLMInputs) -> Tensor:
    logits, target = model(**inputs.model_kwargs())[0][:, :-1], inputs.labels[:, 1:]
    return F.cross_entropy(logits[target >= 0].float(), target[target >= 0], reduction="sum")


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_loss_and_gradients_are_those_of_all_logits(vlm: VLM, batch: VLMInputs) -> None:
    loss, count = token_loss(vlm.model, batch)
    wanted = whole_loss(vlm.model, batch)
    assert count == int((batch.labels[:, 1:] >= 0).sum()) > 0
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    own, others = gradients(vlm.model, loss), gradients(vlm.model, wanted)
    assert own.keys() == others.keys()
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-4, atol=1e-6, msg=name)


def test_the_output_projection_sees_labelled_positions_alone(vlm: VLM, batch: VLMInputs) -> None:
    seen: list[int] = []
    head = vlm.model.get_mixin("lm").lm_head
    handle = head.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[:-1].numel()))
    try:
        _, count = token_loss(vlm.model, batch)
    finally:
        handle.remove()
    assert seen == [count] and count < batch.input_ids.numel() / 5


def test_without_labels_the_loss_is_zero_and_can_be_backpropagated(vlm: VLM, batch: VLMInputs) -> None:
    empty = replace(batch, labels=torch.full_like(batch.labels, -100))
    loss, count = token_loss(vlm.model, empty)
    assert count == 0 and loss.item() == 0
    assert all(not gradient.any() for gradient in gradients(vlm.model, loss).values())
