"""CogVideoX between SAT's folders and diffusers': nothing is lost on the way, and each opens what the other has."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from film_golden import each_kind, given, lora_folder, sat_folder, tiny_folder
from golden_set import reference, tensors
from torch import Tensor

from sat_models.checkpoint.convert import convert
from sat_models.checkpoint.diffusers_lora import LORA_FILE
from sat_models.commands.convert import main
from sat_models.errors import CheckpointError
from sat_models.models.common.film_vae_keys import film_vae_config, film_vae_to_diffusers, film_vae_to_sat
from sat_models.zoo import load_pretrained

_STEP = "1/mp_rank_00_model_states.pt"


def raw(file: Path, key: str = "module") -> dict[str, Tensor]:
    return torch.load(file, weights_only=True)[key]


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(value.equal(second[name]) for name, value in first.items())


def theirs_of(folder: Path) -> torch.nn.Module:
    """diffusers' own class, with SAT's epsilon in its last norm."""
    from diffusers import CogVideoXTransformer3DModel

    model = CogVideoXTransformer3DModel.from_pretrained(folder).eval()
    model.norm_out.norm.eps = 1e-6
    return model


def rotary_of(config: object, shape: torch.Size) -> tuple[Tensor, Tensor] | None:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    if config.positions == "sincos":
        return None
    times, side = shape[1] // config.patch_frames, config.patch_size
    grid = (shape[-2] // side, shape[-1] // side)
    return get_3d_rotary_pos_embed(
        config.hidden_size // config.num_attention_heads, None, grid, times, grid_type="slice", max_size=grid
    )


@each_kind()
def test_from_sat_and_back_every_bit_is_there_and_diffusers_computes_the_same(folder: Path, tmp_path: Path) -> None:
    source, golden = sat_folder(folder, tmp_path), tensors(folder)
    convert(source, "hf", tmp_path / "hub", verify=True)
    convert(tmp_path / "hub", "sat", tmp_path / "back", verify=True)
    assert equal(raw(tmp_path / "back" / _STEP), raw(folder / "sat/transformer" / _STEP))
    assert load_pretrained(source, device="cpu").config == load_pretrained(tmp_path / "back", device="cpu").config
    theirs, config = theirs_of(tmp_path / "hub" / "transformer"), load_pretrained(source, device="cpu").config
    case = given(golden, "case0")
    latents = torch.cat([case[name] for name in ("latents", "image_latents") if name in case], dim=2)
    with torch.no_grad():
        v = theirs(
            latents, case["text"], case["timestep"], ofs=case.get("ofs"),
            image_rotary_emb=rotary_of(config, latents.shape), return_dict=False,
        )[0]  # fmt: skip
    torch.testing.assert_close(v, golden["case0.out_sat"], atol=2e-5, rtol=0)
    theirs.save_pretrained(tmp_path / "saved")  # without what only SAT has
    again = load_pretrained(tmp_path / "saved", device="cpu", dtype="float32")
    torch.testing.assert_close(again.model(**case).detach(), golden["case0.out_sat"], atol=2e-5, rtol=0)
    if (stored := folder / "diffusers/transformer").is_dir():
        ours = load_file(next((tmp_path / "hub/transformer").glob("diffusion*.safetensors")))
        assert equal(ours, load_file(stored / "diffusion_pytorch_model.safetensors"))
        opened = load_pretrained(stored, device="cpu", dtype="float32")
        torch.testing.assert_close(opened.model(**case).detach(), golden["case0.out_sat"], atol=2e-5, rtol=0)


@each_kind("2b")
def test_a_table_that_was_rounded_or_tuned_comes_back(folder: Path, tmp_path: Path) -> None:
    source = sat_folder(folder, tmp_path)
    file = source / "transformer" / _STEP
    weights = raw(file)
    table = next(name for name in weights if name.endswith("pos_embedding"))
    weights[table] = weights[table] + 0.01
    torch.save({"module": weights}, file)
    convert(source, "hf", tmp_path / "hub")
    assert (tmp_path / "hub/transformer/sat_only.safetensors").is_file()
    convert(tmp_path / "hub", "sat", tmp_path / "back")
    assert equal(raw(tmp_path / "back" / _STEP), weights)


@each_kind("5b")
def test_lora_of_sat_goes_to_diffusers(folder: Path, tmp_path: Path) -> None:
    source = lora_folder(folder, tmp_path)
    golden = tensors(folder / "sat-lora")
    case = {name: golden[name] for name in ("latents", "timestep", "text")}
    ours = load_pretrained(source, device="cpu", dtype="float32")
    torch.testing.assert_close(ours.model(**case).detach(), golden["out_sat"], atol=2e-5, rtol=0)
    convert(source, "hf", tmp_path / "merged")
    theirs = theirs_of(tmp_path / "merged" / "transformer")
    with torch.no_grad():
        rotary = rotary_of(ours.config, case["latents"].shape)
        v = theirs(case["latents"], case["text"], case["timestep"], image_rotary_emb=rotary, return_dict=False)[0]
    torch.testing.assert_close(v, golden["out_sat"], atol=2e-5, rtol=0)


@each_kind("5b")
def test_lora_of_sat_becomes_a_file_for_diffusers(folder: Path, tmp_path: Path) -> None:
    source, golden = lora_folder(folder, tmp_path), tensors(folder / "sat-lora")
    assert main(["--from", str(source), "--to", "diffusers-lora", "--output", str(tmp_path / "lora")]) == 0
    made = load_file(tmp_path / "lora" / LORA_FILE)
    convert(sat_folder(folder, tmp_path), "hf", tmp_path / "base")
    theirs = theirs_of(tmp_path / "base" / "transformer")
    theirs.load_lora_adapter(made, prefix="transformer")
    case = {name: golden[name] for name in ("latents", "timestep", "text")}
    rotary = rotary_of(load_pretrained(tmp_path / "base", device="cpu").config, case["latents"].shape)
    with torch.no_grad():
        v = theirs(case["latents"], case["text"], case["timestep"], image_rotary_emb=rotary, return_dict=False)[0]
    torch.testing.assert_close(v, golden["out_sat"], atol=2e-5, rtol=0)
    with pytest.raises(CheckpointError, match="holds no LoRA matrices"):
        main(["--from", str(tmp_path / "base"), "--to", "diffusers-lora", "--output", str(tmp_path / "none")])


@pytest.mark.parametrize("name", ["cogvideox-2b", "cogvideox1.5-5b-i2v"])
def test_pipelines_of_diffusers_open_what_is_written(name: str, tmp_path: Path) -> None:
    import diffusers

    source = tiny_folder(name, tmp_path / "sat")
    convert(source, "hf", tmp_path / "hub")
    index = json.loads((tmp_path / "hub/model_index.json").read_text())
    pipeline = getattr(diffusers, index["_class_name"]).from_pretrained(tmp_path / "hub")
    assert pipeline.vae.config.invert_scale_latents == ("i2v" in name)
    painter = load_pretrained(tmp_path / "hub", device="cpu", dtype="float32")
    assert equal(dict(painter.model.state_dict()), dict(load_pretrained(source, device="cpu").model.state_dict()))
    pipeline.save_pretrained(tmp_path / "saved")
    assert load_pretrained(tmp_path / "saved", device="cpu").config.latent_scale == painter.config.latent_scale
    if "i2v" in name:
        return
    pipeline.set_progress_bar_config(disable=True)
    pipeline.transformer.norm_out.norm.eps = 1e-6
    start = torch.randn(1, *painter.config.film_shape(9, *painter.config.usual_size))
    made = pipeline(
        "A red circle", num_frames=9, num_inference_steps=4, guidance_scale=1, latents=start.clone(),
        max_sequence_length=painter.config.text_length, output_type="latent",
    ).frames  # fmt: skip
    *_, last = painter.denoise(start, painter.encode(["A red circle"]), steps=4, guidance=1, sampler="diffusers-ddim")
    torch.testing.assert_close(made, last, atol=1e-4, rtol=0)


def test_names_of_the_autoencoder_go_both_ways() -> None:
    import diffusers

    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 16, 16, 24), latent_channels=4, layers_per_block=2, norm_num_groups=4
    )
    theirs = dict(vae.state_dict())
    config = {"block_out_channels": [8, 16, 16, 24]}
    sat = film_vae_to_sat(theirs, config)
    assert "encoder.down.1.block.0.nin_shortcut.weight" in sat and "decoder.up.3.upsample.conv.weight" in sat
    made = film_vae_config({name: value.shape for name, value in sat.items()}, 0.7)
    assert made["block_out_channels"] == [8, 16, 16, 24] and made["layers_per_block"] == 2
    assert equal(film_vae_to_diffusers(sat, made), theirs)
    diffusers.AutoencoderKLCogVideoX.from_config({**made, "norm_num_groups": 4}).load_state_dict(theirs)


@each_kind("2b")
def test_the_autoencoder_is_the_originals(folder: Path, tmp_path: Path) -> None:
    from sat_models.checkpoint.painter_parts import open_codec

    if not (folder.parent / "vae").is_dir():
        pytest.skip(f"the set has no {folder.parent.name}/vae")
    painter = load_pretrained(sat_folder(folder, tmp_path), device="cpu", dtype="float32")
    golden, config = tensors(folder.parent / "vae"), painter.config
    how = {"device": torch.device("cpu"), "dtype": torch.float32}
    codec = open_codec(painter.checkpoint.step_folder, config, **how)
    latents = golden["latents"][0].transpose(0, 1) * codec.scale
    pixels = torch.cat(list(codec.pieces(latents))).transpose(0, 1)[None]
    torch.testing.assert_close(pixels, golden["decoded_sat"], atol=2e-5, rtol=0)
    torch.testing.assert_close(codec.moments(golden["video"]), golden["moments_sat"], atol=2e-5, rtol=0)
    names = reference(folder.parent / "vae")["sat_names"]
    assert set(film_vae_to_sat(dict(codec.model.state_dict()), dict(codec.model.config))) == set(names)
