"""Images that take what they take: plans per image from the processor to the model's embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mixins.image_embedding import ImageEmbedding
from sat_models.config import PLAIN_FORM, ImagePlan, ImageProcessing, SequenceForm, read_json
from sat_models.errors import InputError
from sat_models.models.build import make_config
from sat_models.models.cogvlm.prompts import STYLES
from sat_models.processing.example import example_inputs, room_for_text
from sat_models.processing.layout import collate, layout_prompt
from sat_models.processing.processor import Processor
from sat_models.registry import config_path


@dataclass(frozen=True)
class RowOfTiles:
    """As many tiles of 8 px side by side as an image is wider than high; 3 tokens each, one more for the overview."""

    processing: ImageProcessing = field(default_factory=ImageProcessing)
    most_tiles: int = 4
    constant: bool = False

    def plan(self, size: tuple[int, int] | None = None, *, max_tiles: int | None = None) -> ImagePlan:
        columns = 1 if size is None else min(max_tiles or self.most_tiles, max(1, size[0] // size[1]))
        several = columns > 1
        return ImagePlan(
            length=3 * columns + several, canvas=(8 * columns, 8), grid=(columns, 1), overview=several,
            before=(7,), after=(8, 9),
        )  # fmt: skip


@pytest.fixture
def cutting(mini: SimpleNamespace) -> Processor:
    return Processor(mini.tokenizer, images=RowOfTiles(), styles=STYLES, version="base", form=PLAIN_FORM, max_length=64)


WIDE, SQUARE = Image.new("RGB", (30, 10), "red"), Image.new("RGB", (10, 10), "blue")


def test_each_image_takes_its_own_tokens_and_tiles(cutting: Processor) -> None:
    inputs = cutting([WIDE, SQUARE], "x")
    assert inputs.vision_image.shape == (4 + 1, 3, 8, 8)
    text = len(cutting.tokenizer.encode("x"))
    ids = inputs.input_ids[0].tolist()
    assert ids[:-text] == [1, 7, *[0] * 10, 8, 9, 7, *[0] * 3, 8, 9]
    assert int(inputs.image_embed_mask.sum()) == 13 and inputs.vision_expert_mask is None
    (sample,) = cutting.training_samples([WIDE, SQUARE], [("x", "y")])
    assert sample.input_ids[0, : len(ids)].tolist() == ids
    assert torch.equal(cutting(WIDE, "x").vision_image[0, :, 0, 0], cutting(WIDE, "x").vision_image[-1, :, 0, 0])


def test_lengths_are_checked_by_the_plan_of_the_image(mini: SimpleNamespace) -> None:
    tight = Processor(
        mini.tokenizer, images=RowOfTiles(), styles=STYLES, version="base", form=PLAIN_FORM, max_length=16
    )
    assert tight(SQUARE, "x").length < 16
    with pytest.raises(InputError, match=r"The prompt takes 1\d tokens \(1 picture\(s\) of 13, "):
        tight(WIDE, "x")
    with pytest.raises(InputError, match="The prompt takes"):
        tight.training_samples(WIDE, [("x", "y")])


@pytest.mark.parametrize("most", [1, [2, 1], 3, np.int64(2), [np.int32(2), 1]])
def test_max_tiles(cutting: Processor, most: int | list[int]) -> None:
    plans = cutting.plans([WIDE, SQUARE], most)
    first = most[0] if isinstance(most, list) else most
    assert [plan.grid[0] for plan in plans] == [first, 1]
    assert len(cutting([WIDE, SQUARE], "x", max_tiles=most).vision_image) == sum(plan.num_tiles for plan in plans)


@pytest.mark.parametrize("most", [0, -1, True, 1.5, "4", [1, 0]])
def test_bad_max_tiles(cutting: Processor, most: object) -> None:
    with pytest.raises(InputError, match=r"max_tiles is .*a number from 1, or one for each image"):
        cutting([WIDE, SQUARE], "x", max_tiles=most)


def test_max_tiles_of_the_wrong_number_or_model(cutting: Processor, mini: SimpleNamespace) -> None:
    with pytest.raises(InputError, match="max_tiles has 3 numbers for 1 image"):
        cutting(WIDE, "x", max_tiles=[1, 2, 3])
    for most in (2, [2]):
        with pytest.raises(InputError, match=r"does not cut images into tiles\. Leave it out or give 1"):
            mini.processor(mini.image, "x", max_tiles=most)
    assert torch.equal(
        mini.processor(mini.image, "x", max_tiles=1).input_ids, mini.processor(mini.image, "x").input_ids
    )
    with pytest.raises(InputError, match="does not cut"):
        mini.processor(None, "x", max_tiles=9)


def test_markers_have_ids_and_one_position_between_them() -> None:
    """GLM-4V's form: begin and end of image are ids of the vocabulary, whose embeddings are overwritten."""
    form = SequenceForm(begin=False, experts=False, slot_id=5, marker_ids=(6, 7))
    got = layout_prompt([[1, 2], ImagePlan(length=3, canvas=(8, 8)), [3]], bos_id=None, form=form)
    assert got.input_ids.tolist() == [1, 2, 6, 5, 5, 5, 7, 3]
    assert got.image_embed_mask.tolist() == [0, 0, 1, 1, 1, 1, 1, 0]
    assert got.position_ids.tolist() == [0, 1, 2, 3, 3, 3, 4, 5]
    assert got.vision_expert_mask is None, "which tokens are image is told by image_embed_mask alone"


def test_no_begin_token() -> None:
    assert layout_prompt([[4, 5]], bos_id=None).input_ids.tolist() == [4, 5]


def test_pixels_of_several_sizes_stay_apart() -> None:
    sizes = [(8, 8), (16, 8)]
    layout = layout_prompt([ImagePlan(length=2, canvas=(8, 8)), [4]], bos_id=1, form=PLAIN_FORM)
    from_layout = type(example_inputs(make_config(read_json(config_path("cogvlm-tiny"))), 1)).from_layout
    samples = [from_layout(layout, vision_image=torch.zeros(1, 3, *size)) for size in sizes]
    batch = collate(samples, pad_id=0)
    assert [tuple(t.shape[2:]) for t in batch.vision_image] == sizes
    half = collate([batch, *samples], pad_id=0).to("cpu", torch.bfloat16)
    assert [t.dtype for t in half.vision_image] == [torch.bfloat16] * 4 and half.input_ids.dtype == torch.long
    assert collate(samples[:1] * 2, pad_id=0).vision_image.shape == (2, 3, 8, 8)


class Unequal(ImageEmbedding):
    """An image as many embeddings as it is high, each its mean."""

    def encode_images(self, vision_image: list[Tensor]) -> list[Tensor]:
        return [image.mean().expand(image.shape[-2], 4) for image in vision_image]


def test_images_of_unequal_length_fill_the_slots_in_order() -> None:
    mixin = Unequal()
    mixin.transformer = SimpleNamespace(word_embeddings=nn.Embedding(10, 4))
    images = [torch.full((1, 3, 2, 5), 1.0), torch.full((1, 3, 3, 5), 2.0)]
    mask = torch.tensor([[0, 1, 1, 0, 1, 1], [1, 0, 0, 0, 0, 0]])
    ids = torch.zeros(2, 6, dtype=torch.long)
    got = mixin.word_embedding_forward(ids, vision_image=images, image_embed_mask=mask)
    assert got[mask.bool()].tolist() == [[1.0] * 4] * 2 + [[2.0] * 4] * 3
    word = mixin.transformer.word_embeddings.weight[0]
    assert all(torch.equal(row, word) for row in got[~mask.bool()])
    mask[1, 1] = 1
    with pytest.raises(ValueError, match=r"marks 6 positions, but 2 image\(s\) of \[2, 3\] embeddings"):
        mixin.word_embedding_forward(ids, vision_image=images, image_embed_mask=mask)


@pytest.mark.parametrize("name", ["cogvlm-tiny", "cogagent-chat", "llava-v1.5-7b", "visualglm-6b", "minigpt4-7b"])
def test_an_example_fits_any_config(name: str) -> None:
    config = make_config(read_json(config_path(name)))
    for images in (0, 1, 2):
        text = room_for_text(config, 2000, images=images)
        made = example_inputs(config, text, images=images, device="meta")
        assert made.length == 2000 and made.batch_size == 1
        pixels = [made.vision_image] + [made.cross_image] * (name == "cogagent-chat")
        assert all((t is None) if images == 0 else len(t) == images for t in pixels)
    assert room_for_text(config, 3) == 1
