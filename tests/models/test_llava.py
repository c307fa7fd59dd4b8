"""LLaVA against transformers: tiny random weights of theirs, read here, and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sat_models.checkpoint.convert import convert, save_hf
from sat_models.checkpoint.find import find_checkpoint
from sat_models.config import ImageProcessing, read_json
from sat_models.errors import CheckpointError, ConfigError
from sat_models.generation.engine import Engine
from sat_models.generation.sampling import SamplingOptions
from sat_models.models.llava.keys import canonical
from sat_models.processing.layout import VLMInputs, layout_prompt
from sat_models.processing.pixels import image_to_tensor, padded
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

transformers = pytest.importorskip("transformers")
TEXT = {
    "vocab_size": 160, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 56,
    "patch_size": 14, "projection_dim": 32,
}  # fmt: skip
IMAGE_LENGTH, SLOT = 16, 150


def shaken(model: nn.Module) -> nn.Module:
    """Initial weights plus noise: biases start at 0 and norms at 1, which would hide a wrong name."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def theirs() -> Any:
    """A tiny LLaVA 1.5 of transformers."""
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION), text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=SLOT, image_seq_length=IMAGE_LENGTH,
    )  # fmt: skip
    return shaken(transformers.LlavaForConditionalGeneration(config))


@pytest.fixture(scope="module")
def hub(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What transformers saves."""
    folder = tmp_path_factory.mktemp("llava") / "hub"
    theirs.save_pretrained(folder)
    return folder


def prompt_of(vlm: VLM, *, image: bool = True) -> VLMInputs:
    """Text, a picture of noise, text."""
    lead = [[3, 4], vlm.config.images.plan()] if image else []
    layout = layout_prompt([*lead, [5, 6, 7, 8, 9]], bos_id=1, form=vlm.config.sequence_form)
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(1)) if image else None
    return VLMInputs.from_layout(layout, vision_image=pixels)


def logits_of(vlm: VLM, inputs: VLMInputs) -> Tensor:
    with torch.inference_mode():
        return vlm.model(**inputs.model_kwargs())[0]


def their_logits(model: Any, inputs: VLMInputs) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=inputs.input_ids, pixel_values=inputs.vision_image).logits


@pytest.mark.parametrize("image", [True, False])
def test_logits_and_answers_are_those_of_transformers(theirs: Any, hub: Path, image: bool) -> None:
    vlm = load_pretrained(hub, device="cpu", dtype="float32")
    inputs = prompt_of(vlm, image=image)
    assert int((inputs.input_ids == SLOT).sum()) == IMAGE_LENGTH * image
    torch.testing.assert_close(logits_of(vlm, inputs), their_logits(theirs, inputs), atol=2e-5, rtol=0)
    given = {"pixel_values": inputs.vision_image} if image else {}
    answer = theirs.generate(
        input_ids=inputs.input_ids, attention_mask=torch.ones_like(inputs.input_ids), do_sample=False,
        max_new_tokens=10, eos_token_id=2, **given,
    )[0, inputs.length :].tolist()  # fmt: skip
    engine = Engine(vlm.model, eos_id=2, max_length=128, device="cpu")
    ours = list(engine.tokens(inputs, SamplingOptions(max_new_tokens=10)))
    assert ours == [token for token in answer if token != 2] and ours


@pytest.mark.parametrize("layout", ["the hub's", "in memory"])
def test_other_layouts_of_the_same_names(theirs: Any, hub: Path, tmp_path: Path, layout: str) -> None:
    """Releases before and after transformers 5 call the weights differently."""
    weights = dict(theirs.state_dict())
    if layout == "the hub's":
        weights = {canonical(name): value for name, value in weights.items()}
        assert "vision_tower.vision_model.pre_layrnorm.weight" in weights
        assert "language_model.model.layers.1.self_attn.q_proj.weight" in weights
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((hub / "config.json").read_bytes())
    vlm = load_pretrained(tmp_path, device="cpu", dtype="float32")
    torch.testing.assert_close(logits_of(vlm, prompt_of(vlm)), their_logits(theirs, prompt_of(vlm)), atol=2e-5, rtol=0)


def test_the_way_back(theirs: Any, hub: Path, tmp_path: Path) -> None:
    two = convert(hub, "sat", tmp_path / "sat", size=2, verify=True).parent
    back = save_hf(two, tmp_path / "back")
    again, report = transformers.LlavaForConditionalGeneration.from_pretrained(back, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for (name, wanted), (_, given) in zip(theirs.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(wanted, given), name
    assert again.config.image_token_index == SLOT
    assert find_checkpoint(back).config == find_checkpoint(hub).config


def original_folder(theirs: Any, hub: Path, folder: Path, *, projector: nn.Module, changes: dict[str, Any]) -> Path:
    """The layout of the original release: LLaMA and projector in torch's file, CLIP apart in a folder of its own."""
    weights = {"lm_head.weight": theirs.lm_head.weight}
    weights |= {f"model.{name}": value for name, value in theirs.model.language_model.state_dict().items()}
    weights |= {f"model.mm_projector.{name}": value for name, value in projector.state_dict().items()}
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    folder.mkdir(parents=True)
    torch.save({name: value.detach().clone() for name, value in weights.items()}, folder / "pytorch_model.bin")
    sizes = {"architectures": ["LlavaLlamaForCausalLM"], **TEXT, "mm_vision_tower": "openai/clip-tiny", **changes}
    (folder / "config.json").write_text(json.dumps(sizes))
    tower = folder.parent / "clip-tiny"
    tower.mkdir(exist_ok=True)
    (tower / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": VISION}))
    clip = {
        name.replace("vision_tower.", "vision_model."): value.detach().clone()
        for name, value in theirs.model.state_dict().items()
        if name.startswith("vision_tower.")
    }
    clip = {name.replace("vision_model.vision_model.", "vision_model."): value for name, value in clip.items()}
    torch.save({**clip, "logit_scale": torch.ones([]), "text_model.x": torch.ones(1)}, tower / "pytorch_model.bin")
    return folder


def test_the_original_layout_of_1_5(theirs: Any, hub: Path, tmp_path: Path) -> None:
    own = theirs.model.multi_modal_projector
    changes = {"mm_projector_type": "mlp2x_gelu", "image_aspect_ratio": "pad"}
    projector = nn.Sequential(own.linear_1, nn.GELU(), own.linear_2)
    folder = original_folder(theirs, hub, tmp_path / "llava-v1.5-tiny", projector=projector, changes=changes)
    vlm = load_pretrained(folder, device="cpu", dtype="float32")
    assert vlm.processor.version == "llava_v1" and vlm.processor.images.processing.fit == "pad"
    inputs = prompt_of(vlm)
    given = {"input_ids": torch.where(inputs.image_embed_mask.bool(), SLOT, inputs.input_ids)}
    with torch.inference_mode():
        expected = theirs(**given, pixel_values=inputs.vision_image).logits
    torch.testing.assert_close(logits_of(vlm, inputs), expected, atol=2e-5, rtol=0)


def test_the_form_of_1_0(theirs: Any, hub: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    linear = shaken(nn.Linear(32, 64))
    changes = {"mm_use_im_start_end": True, "vocab_size": 160}
    folder = original_folder(theirs, hub, tmp_path / "llava-v1.0-tiny", projector=linear, changes=changes)
    with pytest.raises(ConfigError, match="image_start_id = 32001 is outside of the vocabulary of 160 tokens"):
        load_pretrained(folder, device="cpu")
    (folder / "config.json").write_text(
        json.dumps(
            {**read_json(folder / "config.json"), "sat_model_config": {"image_start_id": 158, "image_end_id": 159}}
        )
    )
    vlm = load_pretrained(folder, device="cpu", dtype="float32")
    assert vlm.processor.version == "llava_v0" and vlm.processor.images.processing.fit == "crop"
    inputs = prompt_of(vlm)
    start = int(inputs.image_embed_mask[0].nonzero().min())
    assert inputs.input_ids[0, start - 1] == 158 and inputs.input_ids[0, start + IMAGE_LENGTH] == 159
    with torch.inference_mode():
        tower = theirs.model.vision_tower(inputs.vision_image, output_hidden_states=True).hidden_states[-2][:, 1:]
        embedded = theirs.get_input_embeddings()(inputs.input_ids)
        embedded = embedded.masked_scatter(inputs.image_embed_mask.bool()[..., None], linear(tower))
        expected = theirs.lm_head(theirs.model.language_model(inputs_embeds=embedded).last_hidden_state)
    torch.testing.assert_close(logits_of(vlm, inputs), expected, atol=2e-5, rtol=0)
    with pytest.raises(ConfigError, match=r"only 1\.5 can be written so"):
        save_hf(folder, tmp_path / "back")


@pytest.mark.parametrize("size", [(50, 80), (91, 33), (56, 56)])
def test_pixels_are_those_of_transformers(size: tuple[int, int]) -> None:
    """Its processor crops the middle (LLaVA 1.0); a padded square (1.5) leaves it nothing to crop."""
    image = Image.effect_noise(size, 90).convert("RGB")
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    clip = module.CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    for fit, given in (("crop", image), ("pad", padded(image, max(size)))):
        expected = clip(given, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(image_to_tensor(image, 56, ImageProcessing(fit=fit)), expected, atol=1e-5, rtol=0)


def test_what_is_missing_or_not_supported_is_named(theirs: Any, hub: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = original_folder(theirs, hub, tmp_path / "alone" / "llava", projector=nn.Linear(32, 64), changes={})
    (folder.parent / "clip-tiny" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"vision tower \(mm_vision_tower\), openai/clip-tiny, is not in"):
        find_checkpoint(folder)
    for place, change, message in (
        ("text_config", {"num_key_value_heads": 3}, "num_attention_heads = 4 is not divisible by 3"),
        ("text_config", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear"}}, "rope_type = 'linear'"),
        ("text_config", {"attention_bias": True}, "attention_bias = True is not supported"),
        ("vision_config", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; 'quick_gelu' is"),
        ("", {"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy = 'full'"),
        ("", {"vision_feature_layer": 3}, "feature_layer is 3"),
    ):
        data = read_json(hub / "config.json")
        (data[place] if place else data).update(change)
        (tmp_path / "config.json").write_text(json.dumps(data))
        (tmp_path / "model.safetensors").write_bytes((hub / "model.safetensors").read_bytes())
        with pytest.raises(ConfigError, match=message):
            find_checkpoint(tmp_path)


def test_a_part_of_a_joined_weight_is_missed(hub: Path, tmp_path: Path) -> None:
    weights = load_file(hub / "model.safetensors")
    lost = next(name for name in weights if name.endswith("layers.1.self_attn.k_proj.weight") and "language" in name)
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((hub / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"one of .*layers\.1\.self_attn\.k_proj\.weight.* is missing"):
        find_checkpoint(tmp_path).read()
