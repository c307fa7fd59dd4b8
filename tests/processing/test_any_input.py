"""Any question, history and number of images: the layout holds them all, and images of any shape make full squares."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

hypothesis = pytest.importorskip("hypothesis")

import numpy as np  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as some  # noqa: E402
from PIL import Image  # noqa: E402

from sat_models.config import ImageProcessing  # noqa: E402
from sat_models.errors import InputError  # noqa: E402
from sat_models.processing.image import load_image  # noqa: E402
from sat_models.processing.layout import IGNORE, collate  # noqa: E402
from sat_models.processing.pixels import FITS, image_to_tensor  # noqa: E402
from sat_models.processing.prompts import build_prompt  # noqa: E402

words = some.text(some.characters(exclude_categories=["Cs"]), max_size=30)
turns = some.lists(some.tuples(words, words.filter(str.strip)), max_size=4)
quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(query=words, history=turns, images=some.integers(0, 2), version=some.sampled_from(["base", "chat", "chat_old"]))
def test_a_prompt_holds_what_was_asked(
    mini: SimpleNamespace, query: str, history: list, images: int, version: str
) -> None:
    image = Image.new("RGB", (5, 4))
    try:
        inputs = mini.processor([image] * images, query, history=history, version=version)
    except InputError as error:
        assert not query.strip() or "The prompt takes" in str(error)
        return
    length, slots = inputs.length, images * (mini.image_length + 2)
    assert inputs.input_ids.shape == inputs.position_ids.shape == inputs.image_embed_mask.shape == (1, length)
    assert int(inputs.image_embed_mask.sum()) == slots and length < mini.processor.max_length
    assert int((inputs.vision_expert_mask & ~inputs.image_embed_mask & 1).sum()) == 0
    steps = inputs.position_ids[0].diff()
    assert ((steps == 0) | (steps == 1)).all() and int(inputs.position_ids[0, 0]) == 0
    assert int((steps == 0).sum()) == images * (mini.image_length - 1), "the tokens of an image share a position"
    text = inputs.input_ids[0][inputs.image_embed_mask[0] == 0][1:]
    expected = mini.tokenizer.encode(build_prompt(mini.processor.style(version), query, history))
    assert mini.tokenizer.decode(text.tolist()) == mini.tokenizer.decode(expected)


@quick
@given(dialogue=turns.filter(len), other=turns.filter(len), side=some.sampled_from(["right", "left"]))
def test_padding_changes_no_sample(mini: SimpleNamespace, dialogue: list, other: list, side: str) -> None:
    """Cutting a row's padding off gives the sample that went in."""
    try:
        samples = [mini.processor.training_sample(None, part, version="chat") for part in (dialogue, other)]
    except InputError as error:
        assert "max_length" in str(error)
        return
    batch = collate(samples, pad_id=mini.tokenizer.pad_id, side=side)
    for row, sample in enumerate(samples):
        kept = slice(0, sample.length) if side == "right" else slice(batch.length - sample.length, None)
        for name in ("input_ids", "position_ids", "labels", "image_embed_mask"):
            assert torch.equal(getattr(batch, name)[row, kept], getattr(sample, name)[0]), name
        padding = torch.ones(batch.length, dtype=torch.bool)
        padding[kept] = False
        assert (batch.labels[row, padding] == IGNORE).all() and not batch.image_embed_mask[row, padding].any()
        assert int((sample.labels != IGNORE).sum()) > 0


@quick
@given(width=some.integers(1, 3000), height=some.integers(1, 3000), fit=some.sampled_from(sorted(FITS)))
def test_an_image_of_any_shape_fills_its_square(width: int, height: int, fit: str) -> None:
    if width * height > 300_000:
        width = max(1, 300_000 // height)
    tensor = image_to_tensor(Image.new("RGB", (width, height), (200, 30, 40)), 14, ImageProcessing(fit=fit))
    assert tensor.shape == (3, 14, 14) and torch.isfinite(tensor).all()
    if fit != "pad":
        assert (tensor == tensor[:, :1, :1]).all(), "one colour stays one colour"


@quick
@given(
    shape=some.lists(some.integers(0, 4), max_size=4), dtype=some.sampled_from(["uint8", "float32", "int64", "bool"])
)
def test_any_array_is_an_image_or_refused(shape: list[int], dtype: str) -> None:
    array = np.zeros(shape, dtype)
    try:
        image = load_image(array)
    except InputError as error:
        assert "array" in str(error)
    else:
        assert image.size == (array.shape[1], array.shape[0]) and image.mode == "RGB"


@quick
@given(
    data=some.binary(max_size=200),
    head=some.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF"]),
)
def test_any_bytes_are_an_image_or_refused(data: bytes, head: bytes) -> None:
    for source in (head + data, "data:image/png;base64," + data.decode("latin-1"), "data:," + data.decode("latin-1")):
        try:
            assert load_image(source).mode == "RGB"
        except InputError as error:
            str(error).encode()
