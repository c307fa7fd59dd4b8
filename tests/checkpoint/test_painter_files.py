"""Painters between SAT's folders and diffusers': nothing is lost on the way, and each side opens what the other has."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from golden_set import each_folder, reference, tensors
from painter_golden import pipeline, sat_folder

from sat_models.checkpoint.convert import convert
from sat_models.checkpoint.hf_writer import save_hf
from sat_models.checkpoint.io import read_weights
from sat_models.commands.convert import main
from sat_models.errors import CheckpointError
from sat_models.models.common.kl_keys import kl_config, kl_to_diffusers, kl_to_sat
from sat_models.zoo import load_pretrained

TRANSFORMER = "transformer/diffusion_pytorch_model-00001-of-00001.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(value.equal(second[name]) for name, value in first.items())


def raw(file: Path, key: str) -> dict[str, torch.Tensor]:
    return torch.load(file, weights_only=True)[key]


@each_folder("cogview3-plus")
def test_from_sat_and_back_every_bit_is_there(folder: Path, tmp_path: Path) -> None:
    source = sat_folder(folder, tmp_path)
    convert(source, "hf", tmp_path / "hub", verify=True)
    convert(tmp_path / "hub", "sat", tmp_path / "back", verify=True)
    stored = folder / "sat" / "transformer" / "1" / "mp_rank_00_model_states.pt"
    assert equal(raw(tmp_path / "back" / "1" / stored.name, "module"), raw(stored, "module"))
    own, theirs = tmp_path / "back" / "vae" / "imagekl_ch16.pt", folder / "sat" / "vae" / "imagekl_ch16.pt"
    assert equal(raw(own, "state_dict"), raw(theirs, "state_dict"))
    first, again = (load_pretrained(place, device="cpu").config for place in (source, tmp_path / "back"))
    assert first == again
    config = json.loads((tmp_path / "back" / "model_config.json").read_text())
    assert config["num_attention_heads"] == reference(folder)["sizes"]["num_attention_heads"]
    images = [
        load_pretrained(at, device="cpu").draw("A red circle", steps=2, seed=1) for at in (source, tmp_path / "back")
    ]
    assert images[0].tobytes() == images[1].tobytes()


@each_folder("cogview3-plus")
def test_from_diffusers_and_back_every_bit_is_there(folder: Path, tmp_path: Path) -> None:
    source = pipeline(folder, tmp_path)
    assert main(["--from", str(source), "--to", "sat", "--output", str(tmp_path / "sat"), "--verify"]) == 0
    assert main(["--from", str(tmp_path / "sat"), "--to", "hf", "--output", str(tmp_path / "hub"), "--verify"]) == 0
    original = load_file(source / "transformer" / "diffusion_pytorch_model.safetensors")
    assert equal(load_file(tmp_path / "hub" / TRANSFORMER), original)
    assert equal(load_file(tmp_path / "hub" / VAE), load_file(source / VAE))
    stored = folder / "sat" / "transformer" / "1" / "mp_rank_00_model_states.pt"
    assert equal(raw(tmp_path / "sat" / "1" / stored.name, "module"), raw(stored, "module"))
    own, theirs = tmp_path / "sat" / "vae" / "imagekl_ch16.pt", folder / "sat" / "vae" / "imagekl_ch16.pt"
    assert equal(raw(own, "state_dict"), raw(theirs, "state_dict"))


@each_folder("cogview3-plus")
def test_diffusers_opens_what_is_written_and_draws_the_same(folder: Path, tmp_path: Path) -> None:
    from diffusers import CogView3PlusPipeline

    convert(sat_folder(folder, tmp_path), "hf", tmp_path / "hub")
    theirs = CogView3PlusPipeline.from_pretrained(tmp_path / "hub", torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    ours = load_pretrained(tmp_path / "hub", device="cpu", dtype="float32")
    golden, case, meta = tensors(folder), reference(folder)["denoise"][0], reference(folder)
    start, length = golden["denoise0.start"], meta["sizes"]["text_length"]
    height, width = case["target_size"]
    image = theirs(
        meta["prompts"][case["prompt"]], height=height, width=width, num_inference_steps=case["steps"],
        guidance_scale=case["scale"], latents=start.clone(), max_sequence_length=length, output_type="np",
    ).images[0]  # fmt: skip
    options = {"steps": case["steps"], "guidance": case["scale"], "sampler": "diffusers"}
    *_, last = ours.denoise(start, ours.encode([meta["prompts"][case["prompt"]]]), **options)
    own = (ours._codec.get().pixels(last)[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()
    assert abs(own - image).max() <= 1e-4
    numpy.testing.assert_allclose(image, golden["pipeline.image_diffusers"][0].numpy(), atol=1e-4)
    theirs.save_pretrained(tmp_path / "saved")
    saved = load_pretrained(tmp_path / "saved", device="cpu", dtype="float32")
    assert equal(dict(saved.model.state_dict()), dict(ours.model.state_dict()))
    prompts = meta["prompts"]
    assert saved.draw(prompts[0], size=(width, height), steps=2, seed=1).size == (width, height)
    assert [saved._text_encoder.get().words.ids(text, length) for text in prompts] == golden["text.ids"].tolist()


@each_folder("cogview3-plus")
def test_two_parts_in_bf16_and_eight_bits(folder: Path, tmp_path: Path) -> None:
    source, golden = sat_folder(folder, tmp_path), tensors(folder)
    convert(source, "sat", tmp_path / "two", size=2, dtype=torch.bfloat16)
    weights = read_weights(tmp_path / "two" / "1" / "mp_rank_01_model_states.pt")
    hidden = reference(folder)["sizes"]["hidden_size"]
    assert weights["transformer.layers.0.attention.query_key_value.weight"].shape == (3 * hidden // 2, hidden)
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    given = {name: golden[f"case0.{name}"] for name in ("latents", "timestep", "text")}
    with torch.inference_mode():
        v = load_pretrained(tmp_path / "two", device="cpu", dtype="float32").model(**given)
        assert (v - golden["case0.out_sat"]).abs().max() < 0.1
        assert main(["--from", str(source), "--to", "sat", "--output", str(tmp_path / "int8"), "--quant", "8"]) == 0
        eight = load_pretrained(tmp_path / "int8", device="cpu", dtype="float32")
        assert (eight.model(**given) - golden["case0.out_sat"]).abs().max() < 0.1
        again = load_pretrained(source, device="cpu", dtype="float32", quant=8).model(**given)
        assert again.equal(eight.model(**given))


@each_folder("cogview3-plus")
def test_a_transformer_alone_becomes_a_folder_that_lacks_the_rest(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = Path(shutil.copytree(sat_folder(folder, tmp_path) / "transformer", tmp_path / "alone"))
    save_hf(alone, tmp_path / "hub")
    assert "without: text_encoder, tokenizer, vae" in caplog.text
    index = json.loads((tmp_path / "hub" / "model_index.json").read_text())
    assert index["vae"] == [None, None] and index["transformer"][1] == "CogView3PlusTransformer2DModel"
    with pytest.raises(CheckpointError, match="text encoder is missing"):
        load_pretrained(tmp_path / "hub", device="cpu").draw("A red circle")


def test_an_autoencoder_with_attention_in_its_middle() -> None:
    """SDXL's, which CogView3-Base has; diffusers' own conversion is the other opinion."""
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    torch.manual_seed(0)
    sizes = {"block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2, "latent_channels": 4}
    model = AutoencoderKL(**sizes, up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, scaling_factor=0.5)
    theirs = model.state_dict()
    own = kl_to_sat(theirs, model.config)
    assert own["decoder.mid.attn_1.q.weight"].shape == (64, 64, 1, 1)
    config = kl_config({name: value.shape for name, value in own.items()}, 0.5)
    assert {name: config[name] for name in ("latent_channels", "mid_block_add_attention", "scaling_factor")} == {
        "latent_channels": 4, "mid_block_add_attention": True, "scaling_factor": 0.5,
    }  # fmt: skip
    assert equal(kl_to_diffusers(own, config), theirs)
    assert equal(convert_ldm_vae_checkpoint(own, {**config}), theirs)
    latents = torch.randn(1, 4, 4, 6)
    again = AutoencoderKL.from_config(config)
    again.load_state_dict(kl_to_diffusers(own, config))
    with torch.inference_mode():
        assert again.decode(latents).sample.equal(model.decode(latents).sample)
    with pytest.raises(CheckpointError, match=r"attention outside its middle \(encoder.down.0.attn.0.q.weight\)"):
        kl_config({**{name: value.shape for name, value in own.items()}, "encoder.down.0.attn.0.q.weight": (4, 4)}, 1.0)
