"""Folders that transformers takes as they are: processor, tokenizer, chat template, generation config."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from sat_models import runtime
from sat_models.checkpoint.convert import convert, save_hf
from sat_models.config import read_json
from sat_models.errors import InputError
from sat_models.models.build import build_model, make_config
from sat_models.processing.sentencepiece_json import sentencepiece_json
from sat_models.processing.tokens import SentencePieceTokenizer
from sat_models.zoo import load_pretrained, load_processor
from sat_models.zoo.vlm import VLM

ROOT = Path(__file__).resolve().parents[2]
PIECES = ROOT / "sat_models" / "assets" / "cogvlm-tiny" / "tokenizer.model"
QUESTION, LATER = "What is  here?\nSay <it>", "And behind it?"
TOKENS = 12


@pytest.fixture(scope="module", params=["llava", "llava cropped", "internvl2-mini", "internvl3-mini"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[VLM, Path]:
    """A model of ours, and what `--to hf` makes of it. LLaVA's has a row for each piece and none for images."""
    folder = tmp_path_factory.mktemp("hf")
    if request.param.startswith("llava"):
        source = llava(folder / "sat", square_padding="cropped" not in request.param)
    else:
        source = ROOT / "tests" / "golden" / request.param
        if not source.is_dir():
            pytest.skip(f"this golden set holds no {request.param}")
    return load_pretrained(source, device="cpu", dtype="float32"), convert(source, "hf", folder / "hub", verify=True)


def llava(folder: Path, **changes: Any) -> Path:
    """A tiny LLaVA with random weights, as the original release has its vocabulary: one row a piece."""
    runtime.init_model_parallel(1)
    pieces = SentencePieceTokenizer.from_file(PIECES).vocab_size
    sizes = {"vocab_size": pieces, "image_token_id": 0, "max_sequence_length": 512}
    config = make_config({**read_json(ROOT / "configs" / "models" / "llava-tiny.json"), **sizes, **changes})
    torch.manual_seed(0)
    model = build_model(config, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return save_hf(model, folder, config=config, tokenizer_file=PIECES)


@pytest.fixture
def processor(pair: tuple[VLM, Path], monkeypatch: pytest.MonkeyPatch) -> Any:
    """By `AutoProcessor`. InternVL's has a part for films that needs torchvision, which has no build for a torch
    without CUDA: here it is left out, and nothing else."""
    from transformers.models.internvl.processing_internvl import InternVLProcessor
    from transformers.utils import is_torchvision_available

    if not is_torchvision_available():
        parts = classmethod(lambda cls: ["image_processor", "tokenizer"])
        monkeypatch.setattr(InternVLProcessor, "get_attributes", parts)
    return transformers.AutoProcessor.from_pretrained(pair[1])


@pytest.fixture(scope="module")
def theirs(pair: tuple[VLM, Path]) -> Any:
    return transformers.AutoModelForImageTextToText.from_pretrained(pair[1], dtype=torch.float32).eval()


def messages(image: Image.Image | None, *texts: str) -> list[dict[str, Any]]:
    """A dialogue, question and answer in turn, an image in its first question."""
    told = [
        {"role": ("user", "assistant")[number % 2], "content": [{"type": "text", "text": text}]}
        for number, text in enumerate(texts)
    ]
    if image is not None:
        told[0]["content"].insert(0, {"type": "image", "image": image})
    return told


@pytest.mark.parametrize("size", [(90, 60), (40, 130), None])
def test_ids_pixels_and_answers_are_ours(
    pair: tuple[VLM, Path], processor: Any, theirs: Any, size: tuple[int, int] | None
) -> None:
    ours = pair[0]
    image = Image.effect_noise(size, 80).convert("RGB") if size else None
    given = processor.apply_chat_template(
        messages(image, QUESTION), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    wanted = ours.processor(image, QUESTION)
    slots = wanted.image_embed_mask.bool()
    assert given["input_ids"].shape == wanted.input_ids.shape
    assert given["input_ids"][~slots].equal(wanted.input_ids[~slots])
    if image:
        torch.testing.assert_close(given["pixel_values"], wanted.vision_image, atol=1e-6, rtol=0)
    answer = theirs.generate(**given, max_new_tokens=TOKENS)[0, wanted.length :].tolist()
    ends = ours.processor.tokenizer.eos_ids
    assert [token for token in answer if token not in ends] == ours.generate(
        image, QUESTION, max_new_tokens=TOKENS
    ).token_ids


def test_dialogues_and_system_texts(pair: tuple[VLM, Path], processor: Any) -> None:
    ours, image = pair[0], Image.effect_noise((64, 64), 80).convert("RGB")
    for system in (None, "Answer in a word."):
        told = messages(image, QUESTION, "A hen.", LATER)
        if system:
            told.insert(0, {"role": "system", "content": system})
        given = processor.apply_chat_template(
            told, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        wanted = ours.processor(image, LATER, history=[(QUESTION, "A hen.")], system=system)
        text = ~wanted.image_embed_mask.bool()
        assert given["input_ids"][text].equal(wanted.input_ids[text])


def test_the_tokenizer_alone_and_the_way_back(pair: tuple[VLM, Path]) -> None:
    ours, hub = pair
    theirs = transformers.AutoTokenizer.from_pretrained(hub)
    own = ours.processor.tokenizer
    for text in ("two  words\n", " 你好 🙂", "[[001,002]]"):
        assert theirs.encode(text, add_special_tokens=False) == own.encode(text)
        assert theirs.decode(own.encode(text)) == own.decode(own.encode(text))
    config = transformers.GenerationConfig.from_pretrained(hub)
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    assert tuple(ends) == own.eos_ids and not config.do_sample
    again = load_pretrained(hub, device="cpu", dtype="float32")
    assert again.processor.tokenizer.eos_ids == own.eos_ids and again.processor.tokenizer.bos_id == own.bos_id
    asked = {"image": Image.effect_noise((64, 64), 80).convert("RGB"), "query": QUESTION, "max_new_tokens": TOKENS}
    assert again.generate(**asked).token_ids == ours.generate(**asked).token_ids


def test_a_row_for_images_where_the_vocabulary_has_none(tmp_path: Path) -> None:
    """The new rows are copies of the first, so that they never win; a token that is there is kept."""
    pieces = SentencePieceTokenizer.from_file(PIECES).vocab_size
    hub = llava(tmp_path / "hub")
    config = read_json(hub / "config.json")
    rows = config["text_config"]["vocab_size"]
    assert (config["image_token_index"], rows) == (pieces, (pieces // 64 + 1) * 64)
    weights = load_pretrained(hub, device="cpu", dtype="float32").model.state_dict()
    for name in ("transformer.word_embeddings.weight", "mixins.lm.lm_head.weight"):
        assert len(weights[name]) == rows and (weights[name][pieces:] == weights[name][0]).all()
    index = read_json(hub / "model.safetensors.index.json")
    assert index["metadata"]["total_size"] == sum(
        value.numel() * 4 for name, value in weights.items() if "inv_freq" not in name
    )
    kept = llava(tmp_path / "kept", vocab_size=pieces + 8, image_token_id=pieces + 3)
    assert read_json(kept / "config.json")["image_token_index"] == pieces + 3
    assert transformers.AutoTokenizer.from_pretrained(kept).convert_tokens_to_ids("<image>") == pieces + 3


def test_no_processor_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a tokenizer, or where transformers would see other images. The weights are written all the same."""
    hub = llava(tmp_path / "hub")
    for name in ("tokenizer.model", "tokenizer.json"):
        (hub / name).unlink()
    with caplog.at_level(logging.WARNING):
        convert(hub, "hf", tmp_path / "again")
    assert "no tokenizer lies beside the weights" in caplog.text
    assert not (tmp_path / "again" / "processor_config.json").exists()
    source = ROOT / "tests" / "golden" / "internvl3-mini"
    sat = convert(source, "sat", tmp_path / "sat").parent
    file = sat / "model_config.json"
    file.write_text(json.dumps({**read_json(file), "overview": False}))
    with caplog.at_level(logging.WARNING):
        convert(sat, "hf", tmp_path / "internvl")
    assert "cuts images without an overview" in caplog.text
    assert (tmp_path / "internvl" / "tokenizer.json").is_file() and (tmp_path / "internvl" / "config.json").is_file()


def test_a_sentencepiece_model_with_other_ids_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SentencePieceTokenizer, "encode", lambda self, text: [len(text)])
    with pytest.raises(InputError, match=r"cannot be written as a tokenizer\.json: 'What is in the image\?' would"):
        sentencepiece_json(PIECES, {})


def test_a_style_without_a_place_for_a_system_text_says_none(tmp_path: Path) -> None:
    """InternVL 1.1's template writes no system text (its `system_template` is empty), whatever its config names."""
    source = ROOT / "tests" / "golden" / "internvl3-mini"
    if not source.is_dir():
        pytest.skip("this golden set holds no internvl3-mini")
    shutil.copytree(source, tmp_path / "own", ignore=shutil.ignore_patterns("reference.*", "image.png"))
    config = {**read_json(source / "config.json"), "template": "internvl_zh", "system_message": "Be kind."}
    (tmp_path / "own" / "config.json").write_text(json.dumps(config))
    processor = load_processor(tmp_path / "own")
    asked = processor(None, "Hi")
    assert "Be kind." not in processor.tokenizer.decode(asked.input_ids[0].tolist())
    with pytest.raises(InputError, match="has no place for one"):
        processor(None, "Hi", system="Be kind.")
    written = convert(tmp_path / "own", "hf", tmp_path / "hub")
    tokenizer = transformers.AutoTokenizer.from_pretrained(written)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == " <human>: Hi"
    told = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert told["input_ids"] == asked.input_ids[0].tolist()
