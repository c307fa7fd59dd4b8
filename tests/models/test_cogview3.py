"""CogView3-Plus beside the original's outputs, and its files."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from golden_set import each_folder, reference, tensors
from painter_golden import TOLD, given, pipeline, sat_folder

from sat_models import runtime
from sat_models.checkpoint.io import read_weights, save_checkpoint
from sat_models.checkpoint.source import open_source
from sat_models.config import DiffusionConfig, read_json
from sat_models.errors import CheckpointError, ConfigError, InputError
from sat_models.models.build import build_model, make_config
from sat_models.models.cogview3.keys import FORM, KEYS
from sat_models.registry import config_file
from sat_models.zoo import Painter, load_pretrained

TOLERANCE = 2e-5
FORMS = ("sat", "sat-step", "diffusers", "diffusers-transformer")
TINY = read_json(config_file("models/cogview3-plus-tiny.json"))


def place_of(form: str, folder: Path, tmp_path: Path) -> Path:
    """A golden folder in one of its forms."""
    if form.startswith("sat"):
        found = sat_folder(folder, tmp_path)
        return found if form == "sat" else found / "transformer" / (found / "transformer/latest").read_text().strip()
    return pipeline(folder, tmp_path) if form == "diffusers" else folder / "diffusers" / "transformer"


def loaded(place: Path, **how: Any) -> Painter:
    painter = load_pretrained(place, device="cpu", dtype="float32", **how)
    assert isinstance(painter, Painter)
    return painter


@pytest.mark.parametrize("form", FORMS)
@each_folder("cogview3-plus")
def test_outputs_are_the_originals(folder: Path, form: str, tmp_path: Path) -> None:
    painter, golden = loaded(place_of(form, folder, tmp_path)), tensors(folder)
    for number in range(len(reference(folder)["cases"])):
        with torch.inference_mode():
            v = painter.model(**given(golden, f"case{number}"))
        torch.testing.assert_close(v, golden[f"case{number}.out_sat"], atol=TOLERANCE, rtol=0)


@each_folder("cogview3-plus")
def test_one_token_stands_for_so_many_alike(folder: Path, tmp_path: Path) -> None:
    """Zeros in the place of a text stay alike in every layer, so that one of them says what all of them say."""
    model, asked = loaded(place_of("sat", folder, tmp_path)).model, given(tensors(folder), "case0")
    none = torch.zeros_like(asked.pop("text"))
    with torch.inference_mode():
        many, one = model(text=none, **asked), model(text=none[:, :1], text_copies=none.shape[1], **asked)
        alone = model(text=none[:, :1], **asked)
    torch.testing.assert_close(one, many, atol=TOLERANCE, rtol=0)
    assert (alone - many).abs().max() > 10 * TOLERANCE, "their number counts"


@each_folder("cogview3-plus")
def test_names_are_the_originals_and_both_forms_hold_the_same_bits(folder: Path, tmp_path: Path) -> None:
    sat, hub = loaded(sat_folder(folder, tmp_path)), loaded(folder / "diffusers" / "transformer")
    prefix, stored = DiffusionConfig.SAT_PREFIX, sat.model.state_dict()
    assert {prefix + name: list(value.shape) for name, value in stored.items()} == reference(folder)["sat_names"]
    assert all(value.equal(hub.model.state_dict()[name]) for name, value in stored.items())
    assert stored["mixins.pos_embed.image_pos_embedding"].equal(tensors(folder)["pos_table"])
    theirs = load_file(folder / "diffusers" / "transformer" / "diffusion_pytorch_model.safetensors")
    for name, value in theirs.items():
        assert KEYS.hf_value(name, *(stored[place.name] for place in KEYS.places(name))).equal(value), name


@each_folder("cogview3-plus")
def test_what_training_saves_has_the_originals_names(folder: Path, tmp_path: Path) -> None:
    painter = loaded(sat_folder(folder, tmp_path))
    save_checkpoint(painter.model, tmp_path / "saved", painter.config, step=3)
    file = tmp_path / "saved" / "3" / "mp_rank_00_model_states.pt"
    raw = torch.load(file, weights_only=True)["module"]
    assert {name: list(value.shape) for name, value in raw.items()} == reference(folder)["sat_names"]
    again = loaded(tmp_path / "saved").model.state_dict()
    assert all(value.equal(again[name]) for name, value in painter.model.state_dict().items())


@each_folder("cogview3-plus")
def test_sizes_that_shapes_do_not_tell(folder: Path, tmp_path: Path) -> None:
    place = sat_folder(folder, tmp_path) / "transformer"
    config = open_source(place).config
    sizes = reference(folder)["sizes"]
    for name in ("num_layers", "hidden_size", "in_channels", "patch_size", "time_embed_dim", "condition_dim", *TOLD):
        assert getattr(config, name) == sizes[name], name
    assert (config.text_hidden_size, config.pos_max) == (sizes["text_hidden_size"], sizes["pos_max"])
    file = place / "model_config.json"
    file.write_text(json.dumps({"num_attention_heads": sizes["num_attention_heads"], "guidance": 3, "snr_shift": 2.0}))
    assert (open_source(place).config.guidance, open_source(place).config.snr_shift) == (3, 2.0)
    file.write_text(json.dumps({"num_attention_heads": sizes["num_attention_heads"], "num_layers": 77}))
    with pytest.raises(
        ConfigError, match=f"says num_layers = 77, but the weights beside it have {sizes['num_layers']}"
    ):
        open_source(place)
    file.unlink()
    size = f"width {sizes['hidden_size']} and {sizes['num_layers']} layers"
    with pytest.raises(ConfigError, match=f"{size}, as no release .*put a model_config.json with num_attention_heads"):
        open_source(place)


def test_the_released_sizes_are_told_by_width_and_depth() -> None:
    from sat_models.models.families import config_of_weights

    runtime.init_model_parallel(1)
    sizes = read_json(config_file("models/cogview3-plus-3b.json"))
    shapes = {name: tuple(value.shape) for name, value in build_model(make_config(sizes)).state_dict().items()}
    assert make_config(config_of_weights(shapes, {})) == make_config(sizes)
    assert config_of_weights({"transformer.word_embeddings.weight": (5, 5)}, {}) is None


def test_sizes_survive_both_ways() -> None:
    for name in ("cogview3-plus-3b", "cogview3-plus-tiny"):
        sizes = make_config(read_json(config_file(f"models/{name}.json"))).to_dict()
        assert FORM.config_to_sat(FORM.config_to_hf(sizes)) == sizes
    released = FORM.config_to_hf(read_json(config_file("models/cogview3-plus-3b.json")))
    assert set(released) == {
        "_class_name", "num_layers", "num_attention_heads", "in_channels", "out_channels", "patch_size",
        "time_embed_dim", "text_embed_dim", "condition_dim", "pos_embed_max_size", "attention_head_dim", "sample_size",
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_weights_compute_and_learn(dtype: torch.dtype) -> None:
    """SAT itself cannot run this model in bf16 on a CPU: its norms without weights fail there."""
    runtime.init_model_parallel(1)
    torch.manual_seed(0)
    model = build_model(make_config(TINY), device="cpu", dtype=dtype)
    latents, text = torch.randn(2, 4, 8, 12), torch.randn(2, 16, 32)
    v = model(latents=latents, timestep=torch.tensor([999.0, 3.0]), text=text)
    assert v.shape == latents.shape and v.dtype == latents.dtype and v.isfinite().all()
    v.square().mean().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
    one = model(latents=latents[1:], timestep=torch.tensor([3.0]), text=text[1:])
    torch.testing.assert_close(one, v[1:], atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=0)


def test_checkpointed_activations_change_nothing() -> None:
    runtime.init_model_parallel(1)
    torch.manual_seed(0)
    model = build_model(make_config(TINY), device="cpu").train()
    inputs = {"latents": torch.randn(1, 4, 8, 8), "timestep": torch.tensor([500.0]), "text": torch.randn(1, 16, 32)}
    plain = model(**inputs)
    plain.sum().backward()
    before = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    model.transformer.checkpoint_activations = True
    again = model(**inputs)
    again.sum().backward()
    assert again.equal(plain)
    assert all(weight.grad.equal(before[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"latents": (1, 3, 8, 8)}, r"takes latents \[B, 4, h, w\].*got \[1, 3, 8, 8\]"),
        ({"latents": (1, 4, 8, 7)}, "not cut into patches of 2"),
        ({"latents": (1, 4, 64, 8)}, "larger than the table of positions, 32 a side"),
        ({"text": (1, 16, 31)}, r"text is \[1, 16, 31\]; these latents and this model take \[1, 'T', 32\]"),
        ({"text": (2, 16, 32)}, r"text is \[2, 16, 32\]"),
    ],
)
def test_wrong_shapes_are_named(given: dict[str, tuple[int, ...]], message: str) -> None:
    runtime.init_model_parallel(1)
    model = build_model(make_config(TINY), device="cpu")
    shapes = {"latents": (1, 4, 8, 8), "text": (1, 16, 32), **given}
    with pytest.raises(ValueError, match=message):
        model(timestep=torch.zeros(1), **{name: torch.zeros(shape) for name, shape in shapes.items()})


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (500, 512, "500x512 cannot be drawn: .*multiples of 32 from 512 to 2048.*nearest sides are 512x512"),
        (256, 512, "nearest sides are 512x512"),
        (512, 4096, "nearest sides are 512x2048"),
        (2048, 2048, "2048x2048 is 4194304 pixels: .*at most 2097152"),
        (512.0, 512, "two whole numbers"),
    ],
)
def test_the_rule_of_sizes(width: Any, height: Any, message: str) -> None:
    config = make_config(read_json(config_file("models/cogview3-plus-3b.json")))
    for good in ((512, 512), (2048, 1024), (512, 2048), (1024, 1024), (736, 1312)):
        config.check_size(*good)
    assert config.usual_size == (1024, 1024)
    with pytest.raises(InputError, match=message):
        config.check_size(width, height)


@each_folder("cogview3-plus")
def test_another_familys_weights_and_missing_ones(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="CogView3PlusModel, which is for drawing; only models that talk will do here"
    ):
        load_pretrained(sat_folder(folder, tmp_path), device="cpu", task="dialogue")
    with pytest.raises(ConfigError, match="takes no version"):
        load_pretrained(tmp_path / "sat", device="cpu", version="chat")
    with pytest.raises(ConfigError, match=r"keep is 'some'; allowed: all, model, none"):
        load_pretrained(tmp_path / "sat", device="cpu", keep="some")
    other = Path(shutil.copytree(folder / "diffusers" / "transformer", tmp_path / "unet"))
    data = json.loads((other / "config.json").read_text())
    (other / "config.json").chmod(0o644)
    (other / "config.json").write_text(json.dumps({**data, "_class_name": "UNet2DConditionModel"}))
    with pytest.raises(ConfigError, match=r"of another model: config\.json has architectures 'UNet2DConditionModel'"):
        load_pretrained(other, device="cpu")
    step = tmp_path / "sat" / "transformer" / "1" / "mp_rank_00_model_states.pt"
    weights = {name: value.clone() for name, value in read_weights(step).items() if name != "time_embed.0.weight"}
    torch.save({"module": weights}, step)
    with pytest.raises(CheckpointError, match=r"1 missing: time_embed\.0\.weight"):
        load_pretrained(tmp_path / "sat", device="cpu")
