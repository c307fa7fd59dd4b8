"""Forms of InternLM-XComposer2: what its files say of a model, tiles of 4KHD and 2.5, tables of other sizes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_golden import SET, folders, weights_of
from PIL import Image
from safetensors.torch import save_file

from sat_models import runtime
from sat_models.config import read_json
from sat_models.errors import CheckpointError, ConfigError, InputError
from sat_models.generation.engine import Engine
from sat_models.generation.sampling import SamplingOptions
from sat_models.models.build import build_model, make_config
from sat_models.models.common.hf_form import WEIGHT_SHAPES
from sat_models.models.xcomposer2.keys import FORM
from sat_models.models.xcomposer2.prompts import STYLES
from sat_models.models.xcomposer2.tokens import open_tokenizer
from sat_models.processing.intake import plans_of
from sat_models.processing.pixels import normalised, planned_pixels
from sat_models.processing.processor import Processor
from sat_models.registry import config_file
from sat_models.zoo import load_config, load_pretrained

FOLDERS = [*folders("xcomposer2"), *folders("xcomposer2-4khd")]
if not FOLDERS:
    pytest.skip("this golden set holds no xcomposer2-*", allow_module_level=True)
RELEASE: dict[str, Any] = json.loads(
    """
{
  "architectures": ["InternLM2ForCausalLM"],
  "auto_map": {"AutoModelForCausalLM": "modeling_internlm_xcomposer2.InternLMXComposer2ForCausalLM"},
  "bias": false,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "hidden_act": "silu",
  "hidden_size": 4096,
  "intermediate_size": 14336,
  "max_length": 16384,
  "max_position_embeddings": 32768,
  "model_type": "internlmxcomposer2",
  "num_attention_heads": 32,
  "num_hidden_layers": 32,
  "num_key_value_heads": 8,
  "pad_token_id": 2,
  "rms_norm_eps": 1e-05,
  "rope_scaling": null,
  "rope_theta": 1000000,
  "tie_word_embeddings": false,
  "vocab_size": 92544
}
    """
)
"""What `config.json` of internlm-xcomposer2-4khd-7b says of the model."""


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_tokenizer_of_another_family_is_refused(folder: Path) -> None:
    other = Path(__file__).resolve().parents[1] / "golden" / "cogvlm-mini" / "tokenizer.model"
    with pytest.raises(InputError, match="belongs to another model"):
        load_pretrained(folder, device="cpu", local_tokenizer=other)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_clips_own_table_of_positions_is_resized_and_another_tiles_is_refused(folder: Path, tmp_path: Path) -> None:
    """The original resizes CLIP's table to its images, but not to tiles."""
    name = "vit.vision_tower.vision_model.embeddings.position_embedding.weight"
    weights = weights_of(folder)
    side = math.isqrt(len(weights[name]) - 1)
    weights[name] = torch.randn(1 + (side + 2) ** 2, weights[name].shape[1])
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(weights, tmp_path / "model.safetensors")
    if "img_size" not in json.loads((folder / "config.json").read_text()):
        with pytest.raises(CheckpointError, match="position_embedding"):
            load_pretrained(tmp_path, device="cpu")
        return
    table = load_pretrained(tmp_path, device="cpu").model.get_mixin("eva").vit_model.transformer.position_embeddings
    grid = weights[name][1:].T.view(1, -1, side + 2, side + 2)
    wanted = torch.nn.functional.interpolate(grid, (side, side), mode="bicubic").flatten(2)[0].T
    assert table.weight[0].equal(weights[name][0]) and table.weight[1:].equal(wanted)


@pytest.mark.skipif(not (SET / "xcomposer2_tiles.json").is_file(), reason="this golden set holds no table of tiles")
@pytest.mark.parametrize(
    ("form", "name"), [("4khd", "internlm-xcomposer2-4khd-7b"), ("2d5", "internlm-xcomposer2d5-7b")]
)
def test_tile_choices(form: str, name: str) -> None:
    images, checked = load_config(name).images, 0
    for row in json.loads((SET / "xcomposer2_tiles.json").read_text())["pictures"]:
        for key, size in row.items():
            if key.startswith(f"{form}_") and size is not None:
                plan = images.plan(tuple(row["size"]), max_tiles=int(key.rpartition("_")[2]))
                assert plan.canvas == tuple(size), (row["size"], key)
                checked += 1
    assert checked


def test_padding_and_default_tiles_of_both_forms() -> None:
    """Facts of the reference page: 4KHD enlarges and centres, 2.5 does not; white around; 25, 24, or 6 each."""
    four, five = (load_config(f"internlm-xcomposer2{form}-7b").images for form in ("-4khd", "d5"))
    wide = Image.new("RGB", (672, 200), "black")
    (plan,) = plans_of([wide], four, 2)
    assert plan.canvas == (672, 336) and plan.box == (0, 68, 672, 200)
    (tall,) = plans_of([wide.transpose(Image.Transpose.TRANSPOSE)], four, 2)
    assert tall.canvas == (336, 672) and tall.box == (68, 0, 200, 672) and tall.transposed
    (plan,) = plans_of([wide], five, 2)
    assert plan.canvas == (1120, 560) and plan.box == (0, 0, 1120, 333)
    large = Image.new("RGB", (4000, 4000), "black")
    assert plans_of([large], four)[0].canvas == (1680, 1680) and plans_of([large], five)[0].canvas == (2240, 2240)
    assert {plan.canvas for plan in plans_of([large, large], five)} == {(1120, 1120)}
    assert {plan.canvas for plan in plans_of([large, large], four)} == {(1680, 1680)}
    pixels = planned_pixels(wide, plans_of([wide], five, 2)[0], five.processing)
    white, black = (normalised(Image.new("RGB", (1, 1), colour))[:, 0, 0] for colour in ("white", "black"))
    assert pixels.shape == (1, 3, 560, 1120)
    assert pixels[0, :, 333, 5].equal(white) and pixels[0, :, 332, 5].equal(black)


def test_a_form_without_golden_data_answers_from_random_weights() -> None:
    """2.5, in small: tiles and several images through the whole way."""
    runtime.init_model_parallel(1)
    torch.manual_seed(0)
    config = make_config(read_json(config_file("models/xcomposer2d5-tiny.json")))
    model = build_model(config, device="cpu").eval()
    tokenizer = open_tokenizer(config, FOLDERS[0] / "tokenizer.model")
    processor = Processor(
        tokenizer, images=config.images, styles=STYLES, version="xcomposer2d5", max_length=512,
        form=config.sequence_form,
    )  # fmt: skip
    inputs = processor([Image.new("RGB", (150, 96), "red"), Image.new("RGB", (60, 170), "blue")], "Compare.")
    assert [tuple(image.shape[1:]) for image in inputs.vision_image] == [(3, 112, 168), (3, 168, 112)]
    engine = Engine(model, eos_id=tokenizer.eos_ids, max_length=512, device="cpu")
    tokens = list(engine.tokens(inputs, SamplingOptions(max_new_tokens=5)))
    given = inputs.model_kwargs()
    with torch.inference_mode():
        assert tokens[0] == int(model(**given)[0][0, -1].argmax()) and len(tokens) <= 5
    assert inputs.input_ids[0, 0] == 1 and inputs.input_ids[0].tolist().count(1) == 1, "2.5 begins once"


def test_the_sizes_of_a_release_come_from_its_weights() -> None:
    """Its `config.json` names neither tower nor ranks nor tiles."""
    shapes = {
        "plora_glb_GN": (1, 1, 4096), "model.layers.0.attention.wo.Plora_A.weight": (256, 4096),
        "model.layers.0.attention.wqkv.Plora_A.weight": (8, 4096),
        "vit.vision_tower.vision_model.embeddings.position_embedding.weight": (577, 1024),
    }  # fmt: skip
    ours = read_json(config_file("models/internlm-xcomposer2-4khd-7b.json"))
    named = {"text_processor_version", "tokenizer_type"}
    found = FORM.config_to_sat({**RELEASE, WEIGHT_SHAPES: shapes})
    assert {k: v for k, v in found.items() if k not in named} == {k: v for k, v in ours.items() if k not in named}
    larger = {**shapes, "model.layers.0.attention.wqkv.Plora_A.weight": (256, 4096)}
    larger["vit.vision_tower.vision_model.embeddings.position_embedding.weight"] = (1601, 1024)
    ours = read_json(config_file("models/internlm-xcomposer2d5-7b.json"))
    found = FORM.config_to_sat({**RELEASE, WEIGHT_SHAPES: larger})
    assert {k: v for k, v in found.items() if k != "tokenizer_type"} == {
        k: v for k, v in ours.items() if k != "tokenizer_type"
    }
    flat = {name: shape for name, shape in larger.items() if name != "plora_glb_GN"}
    for size, name in ((None, "vl-7b"), (224, "7b")):
        given = {**RELEASE, **({} if size is None else {"img_size": size}), WEIGHT_SHAPES: flat}
        ours = read_json(config_file(f"models/internlm-xcomposer2-{name}.json"))
        assert FORM.config_to_sat(given) == {
            k: v if k != "tokenizer_type" else "internlm/internlm-xcomposer2-vl-7b"
            for k, v in ours.items()
            if k != "text_processor_version"
        }
    with pytest.raises(ConfigError, match="GPTQ"):
        FORM.config_to_sat({**RELEASE, "quantization_config": {"bits": 4}})


@pytest.mark.parametrize("theta", [10000, 10000.0, 500000, None])
def test_the_rotary_base_is_that_of_the_file(theta: float | None) -> None:
    """LLaMA's own, too; a file without one has the releases'."""
    data = {**RELEASE, "img_size": 490, "rope_theta": theta}
    if theta is None:
        del data["rope_theta"]
    config = make_config(FORM.config_to_sat(data))
    assert config.heads.rope_theta == (theta or 1e6)
    assert make_config(FORM.config_to_sat(FORM.config_to_hf(config.to_dict()))).heads == config.heads


@pytest.mark.parametrize("name", ["xcomposer2d5-tiny", "internlm-xcomposer2d5-7b", "internlm-xcomposer2-4khd-7b"])
def test_the_tiled_form_comes_back_whatever_the_side_of_its_tiles(name: str) -> None:
    """By the keys of `config.json` that golden data have, too."""
    config = make_config(read_json(config_file(f"models/{name}.json")))
    assert FORM.sizes_to_hf is not None and FORM.sizes_to_sat(FORM.sizes_to_hf(config))["tiling"] == config.tiling


def test_released_sizes_make_the_bytes_of_the_release() -> None:
    """4KHD: what its index says of its bf16 weights; vl-7b: the share of Partial LoRA on the reference page."""
    runtime.init_model_parallel(1)
    tiled, plain = (
        build_model(make_config(read_json(config_file(f"models/internlm-xcomposer2-{name}.json"))))
        for name in ("4khd-7b", "vl-7b")
    )
    assert sum(weight.numel() for weight in tiled.parameters()) * 2 == 17_194_999_808
    assert sum(weight.numel() for weight in plain.get_mixin("plora").parameters()) == 603_979_776
