"""Layouts beyond the golden cases: text only, several pictures, multi-turn labels, padding."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from sat_models.config import ImagePlan
from sat_models.errors import InputError
from sat_models.processing import layout
from sat_models.processing.layout import IGNORE, VLMInputs, collate, layout_prompt, layout_training


def image(length: int) -> ImagePlan:
    return ImagePlan(length=length, canvas=(8, 8))


def test_text_only() -> None:
    got = layout_prompt([[7, 8, 9]], bos_id=1)
    assert got.input_ids.tolist() == [1, 7, 8, 9]
    assert got.position_ids.tolist() == [0, 1, 2, 3]
    for mask in (got.image_embed_mask, got.vision_expert_mask, got.image_rope_mask):
        assert mask.tolist() == [0] * 4
    assert layout_prompt([], bos_id=1).input_ids.dtype == torch.long


def test_several_images(caplog: pytest.LogCaptureFixture) -> None:
    layout._warn_several_images.cache_clear()
    with caplog.at_level(logging.WARNING):
        got = layout_prompt([image(2), image(2), [7, 8]], bos_id=1)
        layout_prompt([image(2), image(2), [7, 8]], bos_id=1)
    assert len(caplog.records) == 1 and "trained with one" in caplog.text
    assert got.input_ids.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 7, 8]
    assert got.image_embed_mask.tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    assert got.vision_expert_mask.tolist() == [0, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0]
    assert got.image_rope_mask.tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0]
    assert got.position_ids.tolist() == [0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8]


@pytest.mark.parametrize("image_length", [1, 2, 256])
def test_positions_of_any_image_length(image_length: int) -> None:
    got = layout_prompt([image(image_length), [5, 6]], bos_id=1)
    assert got.position_ids.tolist() == [0, 1, *[2] * image_length, 3, 4, 5]


def test_prompt_too_long_for_training() -> None:
    with pytest.raises(InputError, match=r"takes 16 tokens.*max_length 25 allows 15.*26 or more"):
        layout_training([image(4), [5] * 9], [6], bos_id=1, eos_id=2, max_length=25)
    fits = layout_training([image(4), [5] * 9], [6] * 50, bos_id=1, eos_id=2, max_length=26)
    assert len(fits) == 23 and fits.labels[-1] == 2 and fits.labels[16] == 6 and fits.labels[15] == IGNORE


DIALOGUE = [("What is it?", "The circle is red."), ("Where?", "你好 left"), ("More", "none")]


@pytest.mark.parametrize("version", ["chat", "chat_old"])
def test_every_answer_of_a_dialogue_is_trained(golden: SimpleNamespace, version: str) -> None:
    tokenizer = golden.tokenizer
    (sample,) = golden.processor.training_samples(None, DIALOGUE, version=version)
    *past, (query, answer) = DIALOGUE
    prompt = golden.processor(None, query, history=past, version=version)
    ids, labels = sample.input_ids[0].tolist(), sample.labels[0].tolist()
    assert ids == prompt.input_ids[0].tolist() + tokenizer.encode(answer) + [tokenizer.eos_id]

    runs, current = [], []
    for token, label in zip(ids, labels, strict=True):
        if label == IGNORE:
            assert not current
        elif label == tokenizer.eos_id:
            runs.append(tokenizer.decode(current))
            current = []
        else:
            assert label == token
            current.append(label)
    assert [run.strip() for run in runs] == [answer for _, answer in DIALOGUE]
    # the input goes on with the next turn where the target is EOS; only the last EOS is an input
    assert ids.count(tokenizer.eos_id) == 1 and labels.count(tokenizer.eos_id) == 3


@pytest.mark.parametrize("version", ["base", "vqa"])
def test_styles_without_history_make_one_sample_per_turn(golden: SimpleNamespace, version: str) -> None:
    samples = golden.processor.training_samples(golden.image, DIALOGUE, version=version)
    assert len(samples) == 3
    for sample, turn in zip(samples, DIALOGUE, strict=True):
        (alone,) = golden.processor.training_samples(golden.image, [turn], version=version)
        assert torch.equal(sample.input_ids, alone.input_ids) and torch.equal(sample.labels, alone.labels)


def test_turns_that_do_not_fit_are_left_out(mini: SimpleNamespace) -> None:
    whole = mini.processor.training_samples(None, DIALOGUE[:2], version="chat")[0]
    cut = mini.processor.training_samples(None, DIALOGUE, version="chat", max_length=whole.length + 4)[0]
    assert torch.equal(cut.labels, whole.labels)
    with pytest.raises(InputError, match="max_length 20"):
        mini.processor.training_samples(None, DIALOGUE, version="chat", max_length=20)


def sample(ids: list[int], labels: bool = False) -> VLMInputs:
    row = torch.tensor([ids])
    return VLMInputs(row, torch.arange(len(ids))[None], row * 0, row * 0, labels=row if labels else None)


def test_collate_right() -> None:
    batch = collate([sample([1, 5, 6], labels=True), sample([1, 7], labels=True)], pad_id=9)
    assert batch.input_ids.tolist() == [[1, 5, 6], [1, 7, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert batch.labels.tolist() == [[1, 5, 6], [1, 7, IGNORE]]
    assert batch.attention_mask is None and batch.length == 3 and batch.batch_size == 2
    assert collate([sample([1, 5])], pad_id=9, pad_to=4).input_ids.tolist() == [[1, 5, 9, 9]]


def test_collate_left_hides_the_padding() -> None:
    batch = collate([sample([1, 5, 6]), sample([1, 7])], pad_id=9, side="left")
    assert batch.input_ids.tolist() == [[1, 5, 6], [9, 1, 7]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 0, 1]]
    assert batch.attention_mask.shape == (2, 1, 3, 3)
    assert batch.attention_mask[0, 0].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert batch.attention_mask[1, 0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]


def test_collate_joins_pictures_in_order(mini: SimpleNamespace) -> None:
    with_image, without = mini.processor(mini.image, "x"), mini.processor(None, "x")
    batch = collate([without, with_image, without, with_image], mini.tokenizer.pad_id)
    assert batch.vision_image.shape[0] == 2 and batch.cross_image is None
    assert batch.image_embed_mask.sum(1).tolist() == [0, 18, 0, 18]


def test_collate_errors() -> None:
    with pytest.raises(InputError, match="at least one"):
        collate([], 9)
    with pytest.raises(InputError, match="3 tokens, more than pad_to=2"):
        collate([sample([1, 2, 3])], 9, pad_to=2)
    with pytest.raises(InputError, match="with and without labels"):
        collate([sample([1]), sample([1], labels=True)], 9)
    with pytest.raises(ValueError, match="side"):
        collate([sample([1])], 9, side="middle")


def test_to_and_model_kwargs(golden: SimpleNamespace) -> None:
    inputs = golden.processor(golden.image, "x")
    moved = inputs.to("cpu", torch.bfloat16)
    assert moved.vision_image.dtype == torch.bfloat16 and moved.input_ids.dtype == torch.long
    assert inputs.vision_image.dtype == torch.float32
    expected = {"input_ids", "position_ids", "attention_mask", "vision_expert_mask", "image_embed_mask", "vision_image"}
    expected |= {"cross_image"} if golden.processor.cross_image_size else set()
    assert set(inputs.model_kwargs()) == expected
    assert "vision_image" not in golden.processor(None, "x").model_kwargs()
