"""Lanes against one dense mask: the same logits and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mixins.base import ZooModel
from mixins.packed_attention import PackedLanesMixin
from sat_models.shapes.packing import LaneShape, pack_lanes
from sat_models.shapes.samples import Segment
from sat_models.zoo import load_pretrained

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "cogvlm-mini"
SHAPE = LaneShape(lanes=3, length=12)
QUESTION_LENGTHS = [[5, 7, 12, 3], [4, 4]]  # the second row leaves a lane empty
CLOSE = {"atol": 2e-6, "rtol": 1e-5}


@pytest.fixture(scope="module")
def model() -> ZooModel:
    model = load_pretrained(GOLDEN, device="cpu", dtype="float32").model.requires_grad_(True)
    model.add_mixin("packed", PackedLanesMixin())
    return model


@pytest.fixture(scope="module")
def batch(model: ZooModel) -> dict[str, Tensor]:
    """Two rows with the questions above; ids and labels are arbitrary."""
    rows = [
        [
            Segment([10 * n + i for i in range(size)], [20 + i for i in range(size)], 0, [1.0] * size)
            for n, size in enumerate(sizes, start=1)
        ]
        for sizes in QUESTION_LENGTHS
    ]
    packed = pack_lanes(rows, bos_id=1, image_length=model.config.image_length, shape=SHAPE)
    pixels = load_file(GOLDEN / "reference.safetensors")["pixels.vision"]
    packed["vision_image"] = torch.cat((pixels, pixels.flip(-1)))
    return packed


def model_inputs(batch: dict[str, Tensor], *without: str) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name not in ("labels", "task_ids", "weights", *without)}


def dense_mask(lane_mask: Tensor) -> Tensor:
    """[B, R, L, P + L] -> [B, 1, S, S], written out token by token."""
    batch, lanes, length, seen = lane_mask.shape
    prefix = seen - length
    dense = torch.zeros(batch, 1, prefix + lanes * length, prefix + lanes * length, dtype=torch.bool)
    dense[:, :, :prefix, :prefix] = torch.ones(prefix, prefix, dtype=torch.bool).tril()
    for lane in range(lanes):
        here = slice(prefix + lane * length, prefix + (lane + 1) * length)
        dense[:, 0, here, :prefix] = lane_mask[:, lane, :, :prefix]
        dense[:, 0, here, here] = lane_mask[:, lane, :, prefix:]
    return dense


def test_logits_and_gradients_equal_those_of_the_dense_mask(model: ZooModel, batch: dict[str, Tensor]) -> None:
    def run(**given: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        logits = model(**given)[0]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten()).backward()
        return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}

    logits, gradients = run(**model_inputs(batch))
    expected = run(**model_inputs(batch, "lane_mask"), attention_mask=dense_mask(batch["lane_mask"]))
    torch.testing.assert_close(logits, expected[0], atol=2e-5, rtol=0)
    assert gradients.keys() == expected[1].keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[1][name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@torch.inference_mode()
def test_every_question_sees_what_it_sees_alone(model: ZooModel, batch: dict[str, Tensor]) -> None:
    """Logits over a question in a lane are those of the picture with this question only."""
    prefix = model.config.image_length + 3
    packed = model(**model_inputs(batch))[0]
    found = 0
    for row, sizes in enumerate(QUESTION_LENGTHS):
        for number, size in enumerate(sizes, start=1):
            ids = torch.arange(10 * number, 10 * number + size)
            windows = batch["input_ids"][row].unfold(0, size, 1)
            start = int((windows == ids).all(dim=1).nonzero()[0])
            alone = {
                "input_ids": torch.cat((batch["input_ids"][row, :prefix], ids))[None],
                "position_ids": torch.cat((batch["position_ids"][row, :prefix], torch.arange(4, 4 + size)))[None],
                "vision_image": batch["vision_image"][row : row + 1],
            }
            for name in ("vision_expert_mask", "image_embed_mask"):
                alone[name] = batch[name][row : row + 1, : prefix + size]
            logits = model(**alone)[0][0, prefix:]
            torch.testing.assert_close(packed[row, start : start + size], logits, atol=2e-5, rtol=0)
            found += 1
    assert found == 6


@torch.inference_mode()
def test_without_lanes_the_models_own_attention_runs(model: ZooModel) -> None:
    reference = load_file(GOLDEN / "reference.safetensors")
    names = ("input_ids", "position_ids", "vision_expert_mask", "image_embed_mask")
    given = {name: reference[f"case0.{name}"][None] for name in names}
    logits = model(**given, vision_image=reference["pixels.vision"])[0]
    torch.testing.assert_close(logits[0], reference["case0.logits"], atol=2e-5, rtol=0)
