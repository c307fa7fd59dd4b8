"""CogVideoX beside the original's outputs, its sizes and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from film_golden import each_kind, given, sat_folder, told
from golden_set import reference, tensors

from mixins.film_positions import rotary_table
from mixins.patch_text_embedding import from_patches, to_patches, token_grid
from sat_models import runtime
from sat_models.checkpoint.source import open_source
from sat_models.config import FilmConfig, read_json
from sat_models.errors import ConfigError, InputError
from sat_models.models.build import build_model, make_config
from sat_models.models.cogvideox.keys import FORM
from sat_models.models.families import config_of_weights
from sat_models.registry import config_file
from sat_models.zoo import load_pretrained

TOLERANCE = 2e-5
RELEASED = ("cogvideox-2b", "cogvideox-5b", "cogvideox-5b-i2v", "cogvideox1.5-5b", "cogvideox1.5-5b-i2v")
TINY = {name: read_json(config_file(f"models/{name}-tiny.json")) for name in ("cogvideox-2b", "cogvideox1.5-5b-i2v")}


@each_kind()
def test_outputs_and_names_are_the_originals(folder: Path, tmp_path: Path) -> None:
    painter, golden = load_pretrained(sat_folder(folder, tmp_path), device="cpu", dtype="float32"), tensors(folder)
    meta = reference(folder)
    for number in range(len(meta["cases"])):
        with torch.inference_mode():
            v = painter.model(**given(golden, f"case{number}"))
        torch.testing.assert_close(v, golden[f"case{number}.out_sat"], atol=TOLERANCE, rtol=0)
    stored = painter.model.state_dict()
    assert {f"{FilmConfig.SAT_PREFIX}{name}": list(v.shape) for name, v in stored.items()} == meta["sat_names"]
    if "ofs" in given(golden, "case0"):
        other = {**given(golden, "case0"), "ofs": torch.zeros(1)}
        assert not torch.allclose(painter.model(**other), golden["case0.out_sat"], atol=1e-3), "ofs is read"


@each_kind()
def test_positions_are_the_originals(folder: Path, tmp_path: Path) -> None:
    golden, config = tensors(folder), open_source(sat_folder(folder, tmp_path)).config
    if config.positions == "sincos":
        mixin = build_model(config, device="cpu").get_mixin("pos_embed")
        assert mixin.pos_embedding.equal(golden["pos_table"])
        return
    grid = token_grid(golden["case0.latents"].shape, config.patch_size, config.patch_frames)
    cos, sin = rotary_table(golden["rotary.cos"].shape[1], grid)
    torch.testing.assert_close(cos, golden["rotary.cos"], atol=1e-7, rtol=0)
    torch.testing.assert_close(sin, golden["rotary.sin"], atol=1e-7, rtol=0)


@each_kind()
def test_sizes_that_shapes_do_not_tell(folder: Path, tmp_path: Path) -> None:
    place = sat_folder(folder, tmp_path) / "transformer"
    config, sizes = open_source(place).config, reference(folder)["sizes"]
    assert (config.num_attention_heads, config.num_layers) == (sizes["heads"], sizes["layers"])
    assert (config.in_channels, config.out_channels) == (sizes["in_channels"], sizes["out_channels"])
    assert (config.positions == "rotary") == sizes["rotary"]
    assert (config.snr_shift, config.text_length) == (sizes["shift_scale"], sizes["text_len"])
    if config.patch_frames == 1:
        assert config.latent_frames == sizes["compressed_frames"]
    file = place / "model_config.json"
    file.write_text(json.dumps({**told(folder), "num_layers": 77}))
    with pytest.raises(ConfigError, match=f"says num_layers = 77, but the weights beside it have {sizes['layers']}"):
        open_source(place)
    if config.patch_frames == 1:
        file.write_text(json.dumps({**told(folder), "latent_height": 2 * 37}))
        with pytest.raises(ConfigError, match=r"no whole frames of .* tokens: text_length, latent_height or"):
            open_source(place)
    file.unlink()
    size = f"width {sizes['hidden']} and {sizes['layers']} layers"
    with pytest.raises(ConfigError, match=f"{size}, as no release .*put a model_config.json with text_length"):
        open_source(place)


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_sizes_are_told_by_shapes_and_survive_both_ways(name: str) -> None:
    runtime.init_model_parallel(1)
    sizes = make_config(read_json(config_file(f"models/{name}.json")))
    shapes = {key: tuple(value.shape) for key, value in build_model(sizes).state_dict().items()}
    assert make_config(config_of_weights(shapes, {})) == sizes
    there = FORM.config_to_hf(sizes.to_dict())
    back = FORM.config_to_sat(there)
    assert {**back, "unused_positions": sizes.unused_positions} == sizes.to_dict()
    assert there["in_channels"] == sizes.in_channels and there["sample_height"] == sizes.latent_height


def test_patches_go_back() -> None:
    for shape, frames in (((2, 4, 6, 8), 1), ((2, 3, 4, 6, 8), 1), ((2, 4, 4, 6, 8), 2)):
        latents = torch.randn(shape)
        assert from_patches(to_patches(latents, 2, frames), shape, 2, frames).equal(latents)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_weights_compute_and_learn(name: str, dtype: torch.dtype) -> None:
    runtime.init_model_parallel(1)
    torch.manual_seed(0)
    config = make_config(TINY[name])
    model = build_model(config, device="cpu", dtype=dtype)
    given = {"latents": torch.randn(2, *config.film_shape(9, *config.usual_size))}
    if config.takes_image:
        given["image_latents"] = torch.randn_like(given["latents"])
    given["text"] = torch.randn(2, config.text_length, config.text_hidden_size)
    v = model(timestep=torch.tensor([999.0, 3.0]), **given)
    assert v.shape == given["latents"].shape and v.isfinite().all()
    v.square().mean().backward()
    unread = {id(p) for part in model.never_run for p in part.parameters()}
    assert [key for key, weight in model.named_parameters() if weight.grad is None and id(weight) not in unread] == []
    one = model(timestep=torch.tensor([3.0]), **{key: value[1:] for key, value in given.items()})
    torch.testing.assert_close(one, v[1:], atol=1e-5 if dtype == torch.float32 else 3e-2, rtol=0)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("cogvideox-2b", {"latents": (1, 4, 8, 12)}, r"takes latents \[B, F, 4, h, w\]"),
        ("cogvideox-2b", {"latents": (1, 3, 4, 4, 4)}, "no positions here: those are for 8 x 12, at most 3 frames"),
        ("cogvideox-2b", {"latents": (1, 5, 4, 8, 12)}, "at most 3 frames"),
        ("cogvideox-2b", {"text": (1, 5, 32)}, "the table of positions is for 12 tokens"),
        ("cogvideox-2b", {"image_latents": (1, 3, 4, 8, 12)}, "takes no image_latents"),
        ("cogvideox1.5-5b-i2v", {"latents": (1, 4, 4, 8, 12)}, "takes image_latents, and none were given"),
        (
            "cogvideox1.5-5b-i2v", {"latents": (1, 3, 4, 8, 12), "image_latents": (1, 3, 4, 8, 12)},
            "have 3 frames, not a multiple of 2",
        ),
        (
            "cogvideox1.5-5b-i2v", {"latents": (1, 4, 4, 8, 40), "image_latents": (1, 4, 4, 8, 40)},
            "have no positions here",
        ),
    ],
)  # fmt: skip
def test_wrong_shapes_are_named(name: str, given: dict[str, tuple[int, ...]], message: str) -> None:
    runtime.init_model_parallel(1)
    model = build_model(make_config(TINY[name]), device="cpu")
    shapes = {"latents": (1, 3, 4, 8, 12), "text": (1, 12, 32), **given}
    with pytest.raises(ValueError, match=message):
        model(timestep=torch.zeros(1), **{key: torch.zeros(shape) for key, shape in shapes.items()})


@pytest.mark.parametrize(
    ("name", "frames", "message"),
    [
        ("cogvideox-5b", 50, "frames is 50; films of this model have 1, 9, 17, 25, 33, 41, 49 frames"),
        ("cogvideox-5b", 57, "41, 49 frames"),
        ("cogvideox-5b", 0, "frames is 0"),
        ("cogvideox-5b", 9.5, "frames is 9.5"),
        ("cogvideox-5b", True, "frames is True"),
        ("cogvideox1.5-5b", 80, "73, 81, 89, .*, 161 frames"),
    ],
)
def test_the_rule_of_frames(name: str, frames: Any, message: str) -> None:
    config = make_config(read_json(config_file(f"models/{name}.json")))
    config.check_frames(config.usual_frames)
    with pytest.raises(InputError, match=message):
        config.check_frames(frames)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("cogvideox-2b", (480, 720), "480x720 cannot be made: films of this model are 720x480"),
        ("cogvideox-5b-i2v", (1360, 768), "films of this model are 720x480"),
        ("cogvideox1.5-5b", (1360, 760), "multiples of 16, at most 2400 and 2400.*trained on 1360x768"),
        ("cogvideox1.5-5b", (2416, 768), "at most 2400"),
        ("cogvideox1.5-5b", (768.0, 768), "two whole numbers"),
    ],
)
def test_the_rule_of_sizes(name: str, size: Any, message: str) -> None:
    config = make_config(read_json(config_file(f"models/{name}.json")))
    config.check_size(*config.usual_size)
    with pytest.raises(InputError, match=message):
        config.check_size(*size)
