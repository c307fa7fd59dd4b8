"""Prompts, layouts, tokens and pictures of the models that are not CogVLM's form."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from sat_models.config import (
    CLIP_MEAN,
    CLIP_STD,
    PLAIN_FORM,
    ImagePlan,
    ImageProcessing,
    SequenceForm,
    SquareImages,
    read_json,
)
from sat_models.errors import ConfigError, InputError
from sat_models.models.families import family_of, prompt_style, prompt_styles
from sat_models.models.llava.config import LLaVAConfig
from sat_models.models.visualglm.config import ChatGLMConfig
from sat_models.models.visualglm.tokens import GLMTokenizer
from sat_models.processing.layout import collate, layout_prompt
from sat_models.processing.pixels import image_to_tensor, padded
from sat_models.processing.processor import Processor
from sat_models.processing.prompts import Answer, Mark, text_of
from sat_models.processing.tokenizer_files import find_tokenizer

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "models"
CURIOUS = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions."
)
IMAGE = ImagePlan(length=3, canvas=(8, 8))
HISTORY = [("Who?", "A dog.")]
GIVEN = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
    "Please answer my questions."
)


def joined(version: str, *, images: int = 1) -> str:
    """A two-turn prompt with `@` where a picture is."""
    parts = prompt_style(version).parts("Where?", HISTORY, images=images)
    assert parts.count(Mark.IMAGE) == images and parts.count(Answer("A dog.")) == 1
    return "".join("@" if part is Mark.IMAGE else text_of([part]) for part in parts)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("glm_zh", "<img>@</img>问：Who?\n答：A dog.\n问：Where?\n答："),
        ("glm_en", "<img>@</img>Q:Who?\nA:A dog.\nQ:Where?\nA:"),
        ("llava_v0", f"{CURIOUS}###Human: @\nWho?###Assistant: A dog.###Human: Where?###Assistant:"),
        ("llava_v1", f"{CURIOUS} USER: @\nWho? ASSISTANT: A dog.USER: Where? ASSISTANT:"),
        ("minigpt4", f"{GIVEN}###Human: <Img>@</Img> Who?###Assistant: A dog.###Human: Where?###Assistant:"),
        ("minigpt4_llama2", "[INST] <Img>@</Img> Who? [/INST] A dog.[INST] Where? [/INST]"),
        ("internvl_zh", " <human>: <img>@</img>\nWho? <bot>: A dog.<human>: Where? <bot>:"),
        ("chat_old", "@Question: Who? Answer: A dog.\nQuestion: Where? Answer:"),
    ],
)
def test_prompts_letter_by_letter(version: str, expected: str) -> None:
    assert joined(version) == expected
    without = joined(version, images=0)
    for mark in ("@", "<img>", "</img>", "\nWho", "<Img></Img>"):
        assert mark not in without
    assert without.endswith(expected[expected.index("Who?") :])
    assert joined(version, images=2).count("@") == 2


def test_every_style_can_be_built() -> None:
    for style in prompt_styles().values():
        parts = style.parts("q", HISTORY, images=1)
        after = [style.after] if isinstance(style.after, str) else list(style.after)
        assert parts[-len(after) :] == after and (Answer("A dog.", style.lead) in parts) == style.keeps_history
        assert parts.count(Mark.IMAGE) == 1


def test_a_plain_form_counts_through_and_has_no_marks() -> None:
    got = layout_prompt([[4, 5], IMAGE, [6], IMAGE, [7, 8]], bos_id=1, form=PLAIN_FORM)
    assert got.input_ids.tolist() == [1, 4, 5, 0, 0, 0, 6, 0, 0, 0, 7, 8]
    assert got.image_embed_mask.tolist() == [0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 0, 0]
    assert got.position_ids.tolist() == list(range(12))
    assert got.vision_expert_mask is None and got.attention_mask is None


def test_ids_around_a_picture() -> None:
    config = LLaVAConfig.from_dict(read_json(CONFIGS / "llava-v1.0-tiny.json"))
    plan = dataclasses.replace(config.images.plan(), length=2)
    got = layout_prompt([[4], plan, [7]], bos_id=1, form=config.sequence_form)
    assert got.input_ids.tolist() == [1, 4, 158, 0, 0, 159, 7]
    assert got.image_embed_mask.tolist() == [0, 0, 0, 1, 1, 0, 0]
    assert config.sequence_form.fixed_tokens([plan]) + 2 == len(got)


@pytest.fixture
def plain(mini: SimpleNamespace) -> Processor:
    """A processor of a plain form with CogVLM's miniature tokenizer."""
    return processor_of(mini, PLAIN_FORM, "llava_v1")


def processor_of(mini: SimpleNamespace, form: SequenceForm, version: str) -> Processor:
    images = SquareImages(side=56, length=4)
    return Processor(mini.tokenizer, images=images, styles=prompt_styles(), version=version, max_length=1024, form=form)


def test_the_end_token_stands_behind_earlier_answers(plain: Processor, mini: SimpleNamespace) -> None:
    inputs = plain(mini.image, "Where?", history=HISTORY)
    ids, eos = inputs.input_ids[0].tolist(), mini.tokenizer.eos_id
    assert ids.count(eos) == 1
    end = ids.index(eos)
    slots = inputs.image_embed_mask[0].nonzero().flatten().tolist()
    assert mini.tokenizer.decode(ids[1 : slots[0]]) == f"{CURIOUS} USER: "
    assert mini.tokenizer.decode(ids[slots[-1] + 1 : end]) == "\nWho? ASSISTANT: A dog."
    assert mini.tokenizer.decode(ids[end + 1 :]) == "USER: Where? ASSISTANT:"
    (sample,) = plain.training_samples(mini.image, [*HISTORY, ("Where?", "Here.")])
    assert sample.input_ids[0, : len(ids)].tolist() == ids
    trained = (sample.labels[0] != -100).nonzero().flatten().tolist()
    assert sample.labels[0, trained].tolist().count(eos) == 2 and sample.labels[0, end] == eos
    text = mini.tokenizer.decode([token for token in sample.labels[0].tolist() if token not in (-100, eos)])
    assert text.split() == ["A", "dog.", "Here."]


def test_a_glm_trains_each_answer_in_a_sample_of_its_own(mini: SimpleNamespace) -> None:
    config = ChatGLMConfig(
        num_layers=1, hidden_size=8, num_attention_heads=1, inner_hidden_size=8, vocab_size=512,
        max_sequence_length=512, bos_token_id=504, eos_token_id=505, mask_token_id=500, gmask_token_id=501,
    )  # fmt: skip
    processor = processor_of(mini, config.sequence_form, "glm_en")
    turns = [*HISTORY, ("Where?", "Here.")]
    first, second = processor.training_samples(mini.image, turns)
    assert first.length < second.length
    for sample, answer in ((first, "A dog."), (second, "Here.")):
        start = sample.input_ids[0].tolist().index(504) + 1
        assert (sample.labels[0, :start] == -100).all()
        assert mini.tokenizer.decode(sample.labels[0, start:-1].tolist()) == answer
        assert sample.attention_mask[0, 0, 0, : start - 1].all() and not sample.attention_mask[0, 0, 0, start:].any()
    assert torch.equal(processor.training_sample(mini.image, turns).input_ids, second.input_ids)
    batch = collate([first, second], pad_id=3)
    assert batch.position_ids.shape == (2, 2, second.length) and batch.attention_mask.shape[0] == 2
    prompt = processor(mini.image, "Where?", history=HISTORY)
    assert torch.equal(second.input_ids[:, : prompt.length], prompt.input_ids)
    with pytest.raises(InputError, match="with and without an attention mask"):
        collate([first, mini.processor.training_samples(None, [("a", "b")])[0]], pad_id=3)


def test_a_picture_is_padded_to_a_square() -> None:
    wide = Image.new("RGB", (40, 20), (255, 0, 0))
    square = padded(wide, 40)
    assert square.size == (40, 40)
    assert square.getpixel((20, 5)) == square.getpixel((20, 35)) == (122, 116, 104)
    assert square.getpixel((0, 20)) == (255, 0, 0)
    assert padded(wide.resize((9, 9)), 9).size == (9, 9)
    bars = image_to_tensor(wide, 28, ImageProcessing(fit="pad"))[:, 2, 2]
    assert torch.allclose(bars, torch.zeros(3), atol=0.02), "the mean colour is about 0 after normalisation"
    red = (torch.tensor([1.0, 0, 0]) - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    assert torch.allclose(image_to_tensor(wide, 28)[:, 2, 2], red)


def test_the_middle_of_a_picture_is_cropped() -> None:
    wide = Image.new("RGB", (80, 20), (255, 0, 0))
    wide.paste((0, 0, 255), (30, 0, 50, 20))
    pixels = image_to_tensor(wide, 20, ImageProcessing(fit="crop"))
    assert torch.equal(pixels, image_to_tensor(Image.new("RGB", (20, 20), (0, 0, 255)), 20))
    assert image_to_tensor(wide.rotate(90, expand=True), 28, ImageProcessing(fit="crop")).shape == (3, 28, 28)
    with pytest.raises(ConfigError, match="fit of images is 'croop'; allowed: stretch, pad, crop"):
        ImageProcessing(fit="croop")


@pytest.fixture(scope="module")
def glm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sentencepiece file with the pieces that ChatGLM's has for white space."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("glm")
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["What is in the picture? 问：图里有什么？ 答：一只狗。 a b c"] * 3),
        model_prefix=str(folder / "ice_text"), vocab_size=340, byte_fallback=True, minloglevel=2,
        hard_vocab_limit=False, remove_extra_whitespaces=False, normalization_rule_name="identity",
        user_defined_symbols=["<pad>", "<n>", "<|tab|>", *(f"<|blank_{n}|>" for n in range(2, 12))],
    )  # fmt: skip
    return folder / "ice_text.model"


def test_chatglms_tokenizer_file(glm_file: Path) -> None:
    config = ChatGLMConfig.from_dict(read_json(CONFIGS / "visualglm-6b.json"))
    assert find_tokenizer(glm_file.parent, names=config.TOKENIZER_FILES) == glm_file
    tokenizer = family_of(config.model_class).tokenizer(config, glm_file)
    assert isinstance(tokenizer, GLMTokenizer)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (130004, 130005, 3)
    text = "问：图\n\ta     b\n答："
    ids = tokenizer.encode(text)
    pieces = [tokenizer.pieces.IdToPiece(i) for i in ids]
    assert pieces.count("<n>") == 2 and "<|tab|>" in pieces and "<|blank_5|>" in pieces
    assert tokenizer.decode([*ids, 130001, 130004, 130005]) == text
    stream = tokenizer.stream()
    assert "".join([*map(stream.push, [*ids, 130005]), stream.flush()]) == text
