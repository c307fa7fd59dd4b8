"""The same samples in rows of their own and packed: losses and gradients, alone and (as a program) over processes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixins.base import ZooModel
from mixins.packed_attention import PackedLanesMixin
from sat_models import runtime
from sat_models.errors import run_script
from sat_models.processing.example import example_inputs
from sat_models.processing.inputs import TokenLayout, VLMInputs
from sat_models.processing.layout import collate, layout_training
from sat_models.processing.packing import pack
from sat_models.training.losses import token_loss
from sat_models.zoo import load_pretrained

TAILS = (([7, 8, 9], [10, 11, 12]), ([13], [14, 15, 16, 17, 18]), ([19, 20, 21, 22, 23], [24]))
"""Ids of questions and answers about the first image, and (the last) of one about another."""
Result = tuple[float, dict[str, Tensor]]


def layouts_of(config: Any) -> list[TokenLayout]:
    """A sample for each of `TAILS`, with text before the image as well."""
    return [
        layout_training(
            [[4, 5], config.images.plan(), question], answer, bos_id=config.bos_token_id,
            eos_id=config.eos_token_ids[0], max_length=config.max_sequence_length, form=config.sequence_form,
        )
        for question, answer in TAILS
    ]  # fmt: skip


def both_ways(config: Any) -> tuple[VLMInputs, VLMInputs]:
    """Batches of three questions about an image and one about another: in four rows, and in two."""
    layouts = layouts_of(config)
    one, other = (example_inputs(config, 1, seed=seed) for seed in (1, 2))

    def row(layout: TokenLayout, image: VLMInputs) -> VLMInputs:
        return VLMInputs.from_layout(layout, vision_image=image.vision_image, cross_image=image.cross_image)

    apart = [*(row(layout, one) for layout in layouts), row(layouts[1], other)]
    return collate(apart, 0), collate([row(pack(layouts), one), row(layouts[1], other)], 0)


def result(model: ZooModel, inputs: VLMInputs) -> Result:
    """Loss per target, and the gradient of every parameter that has one."""
    model.zero_grad()
    total, count = token_loss(model, inputs)
    (total / count).backward()
    return total.item() / count, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_equal(model: ZooModel, config: Any) -> None:
    """Raises AssertionError where packed rows do not give what separate ones give."""
    apart, packed = both_ways(config)
    model.train().requires_grad_(True)
    expected_loss, expected = result(model, apart)
    model.add_mixin("packed", PackedLanesMixin())
    loss, gradients = result(model, packed)
    assert abs(loss - expected_loss) < 1e-5, (loss, expected_loss)
    assert gradients.keys() == expected.keys() and gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, expected[name], atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def main() -> None:
    """Folders of models: each is compared on all processes."""
    torch.set_num_threads(1)
    for folder in map(Path, sys.argv[1:]):
        vlm = load_pretrained(folder, device="cpu", dtype="float32")
        assert runtime.world_size() == 2
        check_equal(vlm.model, vlm.config)


if __name__ == "__main__":
    run_script(main)
