"""InternVL gives what the original gives: prompts, tiles, logits, answers; its two layouts become each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_golden import SET, TOLERANCE, Reference, folders, in_two_processes, most_processes, same_answers, weights_of
from torch import Tensor

from sat_models.checkpoint.convert import convert
from sat_models.errors import ConfigError
from sat_models.models.families import prompt_style
from sat_models.models.internvl.images import grids, nearest_grid
from sat_models.processing.prompts import Mark, text_of
from sat_models.zoo import load_pretrained
from sat_models.zoo.load import load_config
from sat_models.zoo.vlm import VLM

FIELDS = ("input_ids", "position_ids", "image_embed_mask")
FOLDERS = [folder for family in ("internvl", "internvl2", "internvl3") for folder in folders(family)]
TILES = SET / "internvl_tiles.json"


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda path: path.name)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


def asked(reference: Reference, case: dict[str, Any]) -> dict[str, Any]:
    """What a case asks. A config's own number of tiles cuts an image as "tiles" says; "one" is the same image whole."""
    image, kind = reference.folder / "image.png", case["image"]
    cut = {"tiles": [None], "one": [1], "both": [None, 1], None: []}[kind]
    return {
        "image": [image] * len(cut),
        "query": case["query"],
        "history": [tuple(turn) for turn in case["history"]],
        "max_tiles": cut,
    }


def pixels(reference: Reference, case: dict[str, Any]) -> Tensor | None:
    names = {"tiles": ["tiles"], "one": ["one"], "both": ["tiles", "one"], None: []}[case["image"]]
    return torch.cat([reference.tensors[f"pixels.{name}"] for name in names]) if names else None


def test_prompts_masks_positions_pixels_and_logits(vlm: VLM, reference: Reference) -> None:
    for case in reference.cases:
        given = asked(reference, case)
        inputs = vlm.processor(given.pop("image"), given.pop("query"), **given)
        for field in FIELDS:
            assert getattr(inputs, field)[0].equal(reference.tensors[f"{case['key']}.{field}"]), (case["key"], field)
        wanted = pixels(reference, case)
        assert inputs.vision_image is wanted is None or inputs.vision_image.equal(wanted)
        with torch.inference_mode():
            logits = vlm.model(**inputs.model_kwargs())[0][0]
        assert (logits - reference.tensors[f"{case['key']}.logits"]).abs().max() < TOLERANCE


def test_what_goes_into_the_slots(vlm: VLM, reference: Reference) -> None:
    with torch.inference_mode():
        found = vlm.model.get_mixin("eva").encode_images(reference.tensors["pixels.tiles"])
    torch.testing.assert_close(found, reference.tensors["features.tiles"], atol=TOLERANCE, rtol=0)


def test_answers(vlm: VLM, reference: Reference) -> None:
    for case in reference.cases:
        assert vlm.processor.tokenizer.eos_ids == (case["eos_token_id"],) == vlm.config.eos_token_ids
        same_answers(vlm, case, **asked(reference, case))
        assert "".join(vlm.stream(**asked(reference, case), max_new_tokens=len(case["generated"]))) == case["text"]


def test_two_processes(folder: Path, tmp_path: Path) -> None:
    assert all(worst < TOLERANCE for worst in in_two_processes(folder, tmp_path))


@pytest.mark.skipif(not TILES.is_file(), reason=f"the set {SET} has no {TILES.name}")
def test_tiles_of_every_size() -> None:
    golden = json.loads(TILES.read_text())
    for most, order in golden["order"].items():
        assert [list(grid) for grid in grids(1, int(most))] == order
    for entry in golden["chosen"]:
        size = tuple(entry["size"])
        chosen = {most: list(nearest_grid(size, 448, 1, int(most))) for most in golden["order"]}
        assert {"size": entry["size"], **chosen} == entry


SHANGHAI = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
WANXIANG = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"


@pytest.mark.parametrize(
    ("version", "system", "end"),
    [("Hermes-2", SHANGHAI, ""), ("internlm2-chat", SHANGHAI, ""), ("internvl2_5", WANXIANG, "\n")],
)
def test_prompts_with_the_system_text_of_the_original(version: str, system: str, end: str) -> None:
    parts = prompt_style(version).parts("Where?", [("Who?", "A dog.")], images=1)
    assert "".join("@" if part is Mark.IMAGE else text_of([part]) for part in parts) == (
        f"<|im_start|>system\n{system}<|im_end|>{end}<|im_start|>user\n<img>@</img>\nWho?<|im_end|>{end}"
        f"<|im_start|>assistant\nA dog.<|im_end|>{end}<|im_start|>user\nWhere?<|im_end|>{end}<|im_start|>assistant\n"
    )


def test_there_and_back_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    """Through SAT's layout, cut in two, and transformers' own where that has the model."""
    convert(folder, "sat", tmp_path / "sat", size=most_processes(folder, 2))
    config = load_config(folder)
    if config.pixel_shuffle == "v1":
        with pytest.raises(ConfigError, match="column by column, and transformers' InternVL has row by row only"):
            convert(folder, "hf", tmp_path / "transformers")
        between = tmp_path / "sat"
    else:
        between = convert(tmp_path / "sat", "hf", tmp_path / "transformers")
    back = convert(between, "hf", tmp_path / "original", layout="original", verify=True)
    before, after = weights_of(folder), weights_of(back)
    assert before.keys() == after.keys() and all(value.equal(after[name]) for name, value in before.items())
    assert load_config(back) == load_config(between) == config
    given, written = (json.loads((place / "config.json").read_text()) for place in (folder, back))
    for section in ("llm_config", "vision_config"):
        same(given[section], written[section], KEPT[section])
    same(given, written, KEPT["config"])
    assert load_pretrained(back, device="cpu").processor.tokenizer.eos_ids == config.eos_token_ids


def same(given: dict[str, Any], written: dict[str, Any], names: tuple[str, ...]) -> None:
    """What a config says of these is written again."""
    for name in names:
        assert name not in given or written.get(name) == given[name], name


KEPT = {
    "config": (
        "architectures", "downsample_ratio", "dynamic_image_size", "force_image_size", "max_dynamic_patch",
        "min_dynamic_patch", "pad2square", "ps_version", "select_layer", "system_message", "template", "use_thumbnail",
    ),
    "llm_config": (
        "architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "rms_norm_eps", "rope_theta", "max_position_embeddings", "vocab_size", "bos_token_id",
    ),
    "vision_config": (
        "qk_normalization", "qkv_bias", "norm_type", "layer_norm_eps", "patch_size", "hidden_size", "image_size",
        "intermediate_size", "num_hidden_layers", "num_attention_heads",
    ),
}  # fmt: skip


def test_transformers_class_gives_our_logits(folder: Path, reference: Reference, tmp_path: Path) -> None:
    """Pixel shuffle "v1", which it does not have, is exchanged for "v2" first: both classes see the same then."""
    transformers = pytest.importorskip("transformers")
    sat = convert(folder, "sat", tmp_path / "sat").parent
    file = sat / "model_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pixel_shuffle": "v2"}))
    ours = load_pretrained(sat, device="cpu", dtype="float32")
    written = convert(sat, "hf", tmp_path / "transformers", layout="transformers", verify=True)
    theirs = transformers.InternVLForConditionalGeneration.from_pretrained(written, attn_implementation="eager").eval()
    for case in reference.cases:
        given = asked(reference, case)
        inputs = ours.processor(given.pop("image"), given.pop("query"), **given)
        with torch.inference_mode():
            expected = theirs(input_ids=inputs.input_ids, pixel_values=inputs.vision_image).logits
            found = ours.model(**inputs.model_kwargs())[0]
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    again = tmp_path / "again"
    theirs.save_pretrained(again)
    assert all(value.equal(weights_of(again)[name]) for name, value in weights_of(written).items())


@pytest.mark.parametrize("epsilon", [1e-6, 1e-3])
@pytest.mark.parametrize("kind", ["rms_norm", "layer_norm"])
def test_norms_of_queries_in_transformers_have_an_epsilon_of_their_own(
    kind: str, epsilon: float, tmp_path: Path
) -> None:
    """Of sizes that no golden folder has: six heads on three, patches of 7 px, the last layer but one."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    vision = transformers.InternVLVisionConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=3, intermediate_size=80, attention_bias=False,
        use_qk_norm=True, norm_type=kind, layer_norm_eps=epsilon, image_size=[42, 42], patch_size=[7, 7],
    )  # fmt: skip
    text = transformers.Qwen2Config(
        vocab_size=100, hidden_size=60, intermediate_size=100, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=3, tie_word_embeddings=False,
    )  # fmt: skip
    config = transformers.InternVLConfig(
        vision_config=vision, text_config=text, image_token_id=7, vision_feature_layer=-2, tie_word_embeddings=False
    )
    theirs = transformers.InternVLForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    for weight in theirs.parameters():
        weight.data.add_(torch.randn_like(weight), alpha=0.05)
    theirs.save_pretrained(tmp_path / "theirs")
    ids = torch.tensor([[3, *[7] * 18, 9, 11]])
    given = {"input_ids": ids, "position_ids": torch.arange(21)[None], "image_embed_mask": (ids == 7).long()}
    pixels = torch.randn(2, 3, 42, 42)
    with torch.inference_mode():
        wanted = theirs(input_ids=ids, pixel_values=pixels).logits
    for place in (tmp_path / "theirs", convert(tmp_path / "theirs", "sat", tmp_path / "sat").parent):
        ours = load_pretrained(place, device="cpu", dtype="float32")
        with torch.inference_mode():
            torch.testing.assert_close(ours.model(**given, vision_image=pixels)[0], wanted, atol=TOLERANCE, rtol=0)
    convert(tmp_path / "sat", "hf", tmp_path / "again", layout="transformers", verify=True)
    if epsilon != 1e-6:
        with pytest.raises(ConfigError, match="write the layout 'transformers'"):
            convert(tmp_path / "sat", "hf", tmp_path / "original", layout="original")
