"""MiniGPT-4 against transformers' BLIP-2 parts and LLaMA, through made files of the released names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sat_models.checkpoint.convert import convert
from sat_models.checkpoint.find import find_checkpoint
from sat_models.config import read_json
from sat_models.errors import CheckpointError, ConfigError
from sat_models.models.minigpt4.keys import renamed
from sat_models.processing.layout import VLMInputs, layout_prompt
from sat_models.zoo import load_pretrained

transformers = pytest.importorskip("transformers")
CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "models"
WITH_QUERIES, JOINED = "minigpt4-tiny", "minigpt4-llama2-tiny"
FILES = {WITH_QUERIES: "prerained_minigpt4_7b.pth", JOINED: "pretrained_minigpt4_llama2_7b.pth"}


@pytest.fixture(scope="module")
def parts() -> SimpleNamespace:
    """Tiny random parts of transformers, and the two projectors."""
    torch.manual_seed(0)
    data = read_json(CONFIGS / f"{WITH_QUERIES}.json")
    eva, queries = data["eva_args"], data["qformer_args"]
    vision = transformers.Blip2VisionModel(
        transformers.Blip2VisionConfig(
            hidden_size=eva["hidden_size"], intermediate_size=eva["inner_hidden_size"], image_size=56, patch_size=14,
            num_hidden_layers=eva["num_layers"], num_attention_heads=eva["num_attention_heads"], layer_norm_eps=1e-6,
        )
    )  # fmt: skip
    vision.post_layernorm.eps = 1e-5  # LAVIS makes this norm with torch's default
    qformer = transformers.Blip2QFormerModel(
        transformers.Blip2QFormerConfig(
            hidden_size=queries["hidden_size"], num_hidden_layers=queries["num_layers"], cross_attention_frequency=2,
            num_attention_heads=queries["num_attention_heads"], intermediate_size=4 * queries["hidden_size"],
            encoder_hidden_size=eva["hidden_size"], vocab_size=30,
        )
    )  # fmt: skip
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=160, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=128, rms_norm_eps=1e-5,
        )
    )  # fmt: skip
    made = SimpleNamespace(
        vision=vision, qformer=qformer, llama=llama, queries=nn.Parameter(torch.randn(1, queries["vocab_size"], 32)),
        proj={WITH_QUERIES: nn.Linear(32, 64), JOINED: nn.Linear(4 * 48, 64)},
    )  # fmt: skip
    with torch.no_grad():
        for module in (vision, qformer, llama, *made.proj.values()):
            for parameter in module.eval().parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for layer in vision.encoder.layers:  # EVA's keys have no bias
            layer.self_attn.qkv.bias[48:96] = 0
    return made


_EVA_NAMES = (
    ("embeddings.class_embedding", "cls_token"), ("embeddings.position_embedding", "pos_embed"),
    ("embeddings.patch_embedding.", "patch_embed.proj."), ("encoder.layers.", "blocks."), ("layer_norm", "norm"),
    ("self_attn.projection", "attn.proj"), ("self_attn.qkv", "attn.qkv"),
)  # fmt: skip


def eva_file(parts: SimpleNamespace) -> dict[str, Tensor]:
    """`eva_vit_g.pth`: EVA's names, one block more than is used, a head, q and v biases apart."""
    weights = {}
    for name, value in parts.vision.state_dict().items():
        for theirs, own in _EVA_NAMES:
            name = name.replace(theirs, own)
        if name.endswith("qkv.bias"):
            weights[name.replace("qkv.bias", "q_bias")], _, weights[name.replace("qkv.bias", "v_bias")] = value.chunk(3)
        elif not name.startswith("post_layernorm"):
            weights[name] = value
    extra = {name.replace("blocks.0", "blocks.2"): value for name, value in weights.items() if "blocks.0" in name}
    return weights | extra | {"head.weight": torch.ones(3, 48), "norm.weight": torch.ones(48)}


def qformer_file(parts: SimpleNamespace) -> dict[str, Any]:
    """`blip2_pretrained_flant5xxl.pth`: BERT's names, with a text side and a projection that are not needed."""
    weights = {"query_tokens": parts.queries.detach(), "t5_proj.weight": torch.ones(2, 2)}
    weights |= {f"ln_vision.{name}": value for name, value in parts.vision.post_layernorm.state_dict().items()}
    for name, value in parts.qformer.state_dict().items():
        name = re.sub(r"attention\.attention\.", "attention.self.", name)
        name = name.replace("layernorm.", "embeddings.LayerNorm.") if name.startswith("layernorm.") else name
        weights[f"Qformer.bert.{name}"] = value
    weights["Qformer.bert.embeddings.word_embeddings.weight"] = torch.ones(30, 32)
    weights["Qformer.bert.encoder.layer.0.output.dense.weight"] = torch.ones(32, 128)
    weights["Qformer.cls.predictions.bias"] = torch.ones(30)
    return {"model": weights}


def release(parts: SimpleNamespace, folder: Path, name: str) -> Path:
    """A folder with files of the released names."""
    folder.mkdir()
    projector = {f"llama_proj.{key}": value for key, value in parts.proj[name].state_dict().items()}
    torch.save({"model": projector, "epoch": 3}, folder / FILES[name])
    torch.save(eva_file(parts), folder / "eva_vit_g.pth")
    if name == WITH_QUERIES:
        torch.save(qformer_file(parts), folder / "blip2_pretrained_flant5xxl.pth")
    parts.llama.save_pretrained(folder / "vicuna-7b")
    (folder / "model_config.json").write_bytes((CONFIGS / f"{name}.json").read_bytes())
    return folder


def encode(parts: SimpleNamespace, name: str, pixels: Tensor) -> Tensor:
    """Pixels -> what the language model reads."""
    if name == WITH_QUERIES:
        features = parts.vision(pixels).last_hidden_state
        queries = parts.qformer(query_embeds=parts.queries, encoder_hidden_states=features).last_hidden_state
        return parts.proj[name](queries)
    before = parts.vision.encoder(parts.vision.embeddings(pixels)).last_hidden_state
    features = nn.functional.layer_norm(before, before.shape[-1:])[:, 1:]  # nothing is loaded into ln_vision there
    return parts.proj[name](features.reshape(1, -1, 4 * 48))


@pytest.mark.parametrize("name", [WITH_QUERIES, JOINED])
def test_logits_are_those_of_transformers_parts(parts: SimpleNamespace, tmp_path: Path, name: str) -> None:
    folder = release(parts, tmp_path / "minigpt4", name)
    pixels = torch.randn(1, 3, 56, 56)
    divided = convert(folder, "sat", tmp_path / "sat", size=2, verify=True).parent
    for place in (folder, divided):
        vlm = load_pretrained(place, device="cpu", dtype="float32")
        assert vlm.processor.version == "minigpt4"
        pieces = [[3, 4], vlm.config.images.plan(), [5, 6, 7]]
        layout = layout_prompt(pieces, bos_id=1, form=vlm.config.sequence_form)
        inputs = VLMInputs.from_layout(layout, vision_image=pixels)
        with torch.inference_mode():
            embedded = parts.llama.get_input_embeddings()(inputs.input_ids)
            image = encode(parts, name, pixels)
            embedded = embedded.masked_scatter(inputs.image_embed_mask.bool()[..., None], image)
            expected = parts.llama(inputs_embeds=embedded).logits
            torch.testing.assert_close(vlm.model(**inputs.model_kwargs())[0], expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("take_away", "message"),
    [
        (lambda folder: (folder / "eva_vit_g.pth").unlink(), r"eva_vit_g\.pth \(from https://\S+eva_vit_g\.pth\)"),
        (lambda folder: (folder / "blip2_pretrained_flant5xxl.pth").unlink(), "also needs there: blip2_pretrained"),
        (lambda folder: (folder / "vicuna-7b" / "config.json").unlink(), "a folder with Vicuna v0 of width 64"),
        (lambda folder: (folder / "vicuna-7b" / "model.safetensors").unlink(), r"model\.safetensors missing"),
        (lambda folder: torch.save({"model": {}}, folder / FILES[WITH_QUERIES]), "holds no llama_proj.weight"),
        (lambda folder: torch.save({}, folder / "minigpt4_other.pth"), "must hold one MiniGPT-4 checkpoint"),
    ],
)
def test_each_missing_file_is_named(
    parts: SimpleNamespace, tmp_path: Path, take_away: Callable[[Path], None], message: str
) -> None:
    folder = release(parts, tmp_path / "minigpt4", WITH_QUERIES)
    take_away(folder)
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(folder)


def test_released_sizes_need_no_config(parts: SimpleNamespace, tmp_path: Path) -> None:
    """Without model_config.json the sizes are the released ones, the LLaMA's those of its own config."""
    folder = release(parts, tmp_path / "minigpt4", WITH_QUERIES)
    (folder / "model_config.json").unlink()
    own = folder / FILES[WITH_QUERIES]
    torch.save({"model": {"llama_proj.weight": torch.zeros(64, 768), "llama_proj.bias": torch.zeros(64)}}, own)
    config = find_checkpoint(folder).config
    assert (config["hidden_size"], config["num_layers"], config["vocab_size"]) == (64, 2, 160)
    assert (config["eva_args"]["num_layers"], config["qformer_args"]["num_layers"]) == (39, 12)
    torch.save({"model": {"llama_proj.weight": torch.zeros(64, 5632)}}, own)
    joined = find_checkpoint(folder).config
    assert joined.get("qformer_args") is None and joined["image_length"] == 64
    own.rename(folder / "minigptv2_checkpoint.pth")
    assert find_checkpoint(folder).config["eva_args"]["image_size"] == [448, 448]
    torch.save({"model": {"llama_proj.weight": torch.zeros(80, 768)}}, folder / "minigptv2_checkpoint.pth")
    with pytest.raises(ConfigError, match="projects pictures to width 80, but the LLaMA beside it is 64 wide"):
        find_checkpoint(folder)


def test_lora_of_v2_is_merged_and_positions_are_interpolated() -> None:
    config = load_config(JOINED)
    weight, a, b = torch.randn(64, 64), torch.randn(4, 64), torch.randn(64, 4)
    name = "model.layers.1.self_attn.q_proj"
    lora = f"llama_model.base_model.model.{name}.lora_"
    grid = torch.arange(4.0)[:, None].expand(4, 48)
    found = {
        f"{name}.weight": weight, f"{lora}A.default.weight": a, f"{lora}B.weight": b,
        "visual_encoder.pos_embed": torch.cat((torch.full((1, 48), 9.0), grid))[None],
    }  # fmt: skip
    result = renamed(found, config)
    assert result.keys() == {f"{name}.weight", "visual_encoder.positions"}
    torch.testing.assert_close(result[f"{name}.weight"], weight + 0.25 * b @ a)
    positions = result["visual_encoder.positions"]
    assert positions.shape == (17, 48) and positions[0].eq(9).all()
    assert positions[1].max() < positions[16].min(), "a ramp stays a ramp"


def load_config(name: str) -> Any:
    """Typed config of configs/models."""
    from sat_models.models.build import make_config

    return make_config(json.loads((CONFIGS / f"{name}.json").read_text()))
