"""CogView3-Base, -Relay and their distilled forms beside the original's outputs, and their files."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from golden_set import each_folder, reference, tensors
from unet_golden import KINDS, by_diffusers, conditions, diffusers_folder, sizes_of, stored, told, unet_folder

from sat_models import registry, runtime
from sat_models.checkpoint.convert import convert
from sat_models.checkpoint.find import find_checkpoint
from sat_models.checkpoint.source import open_source
from sat_models.config import PainterConfig, read_json
from sat_models.errors import ConfigError, MissingPackageError
from sat_models.models.build import build_model, make_config
from sat_models.models.cogview3_unet.config import config_of_weights
from sat_models.models.cogview3_unet.keys import FORM, network_config
from sat_models.models.cogview3_unet.model import guidance_sinusoid
from sat_models.sampling.sigmas import sigma_steps, sigma_table
from sat_models.training.tasks import kind_of
from sat_models.zoo import load_pretrained
from sat_models.zoo.unet_painter import UNetPainter

TOLERANCE = 2e-5
each_kind = pytest.mark.parametrize("kind", KINDS)


def loaded(place: Path) -> UNetPainter:
    painter = load_pretrained(place, device="cpu", dtype="float32")
    assert isinstance(painter, UNetPainter)
    return painter


def cases(golden: dict[str, Tensor], kind: str) -> list[dict[str, Tensor]]:
    keys = sorted({key.rpartition(".")[0] for key in golden if key.startswith(f"{kind}.case")})
    return [{key.rpartition(".")[2]: v for key, v in golden.items() if key.startswith(f"{case}.")} for case in keys]


def given(case: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: case[name] for name in ("latents", "timestep", "text")} | conditions(case["time_ids"])


@each_kind
@each_folder("cogview3-base")
def test_outputs_and_names_are_the_originals(folder: Path, kind: str, tmp_path: Path) -> None:
    model, found = loaded(unet_folder(folder, kind, tmp_path)).model, cases(tensors(folder), kind)
    assert len(found) > 1
    for case in found:
        with torch.inference_mode():
            torch.testing.assert_close(model(**given(case)), case["out_sat"], atol=TOLERANCE, rtol=0)
    names = {PainterConfig.SAT_PREFIX + name: list(value.shape) for name, value in model.state_dict().items()}
    assert names == reference(folder)[f"{kind}_names"]
    own, theirs = ({id(weight) for weight in module.parameters()} for module in (model, model.network))
    assert own == theirs, "every weight of the network stands under a name of the release"


@each_folder("cogview3-base")
def test_the_guidance_of_a_distilled_model(folder: Path, tmp_path: Path) -> None:
    painter, case = loaded(unet_folder(folder, "distill", tmp_path)), cases(tensors(folder), "distill")[0]
    usual = torch.full((len(case["latents"]),), painter.config.guidance)
    width = painter.config.cfg_cond_embed_dim
    torch.testing.assert_close(guidance_sinusoid(usual, width), case["scale_emb"], atol=2e-4, rtol=0)
    told: list[Tensor] = []
    painter.model.w_proj.register_forward_pre_hook(lambda module, args: told.append(args[0].float()))
    with torch.inference_mode():
        found = [painter.model(**given(case), guidance=value) for value in (usual, None, usual + 1)]
    torch.testing.assert_close(found[0], case["out_sat"], atol=TOLERANCE, rtol=0)
    assert told[0].equal(guidance_sinusoid(usual, width)) and told[1].equal(told[0]) and found[1].equal(found[0])
    assert told[2].equal(guidance_sinusoid(usual + 1, width)) and not found[2].equal(found[0])
    with pytest.raises(ValueError, match="guidance is for distilled models"):
        loaded(unet_folder(folder, "base", tmp_path)).model(**given(case), guidance=usual)


@each_kind
@each_folder("cogview3-base")
def test_trajectories_are_the_originals(folder: Path, kind: str, tmp_path: Path) -> None:
    painter, golden, meta = loaded(unet_folder(folder, kind, tmp_path)), tensors(folder), reference(folder)
    start, text, sizes = golden[f"{kind}.sample.start"], golden[f"{kind}.sample.text"], sizes_of(golden, kind)
    for sampler in ("euler", "relay"):
        how = dict(meta[f"{kind}.{sampler}"])
        sigmas = [*(step.sigma for step in sigma_steps(how["steps"])), 0.0]
        torch.testing.assert_close(torch.tensor(sigmas), golden[f"{kind}.{sampler}.sigmas"], atol=0, rtol=2e-6)
        if sampler == "relay":
            how["image_latents"] = golden[f"{kind}.relay.image_latents"]
        states, wanted = list(painter.denoise(start, text, **how, **sizes)), golden[f"{kind}.{sampler}.final"]
        assert len(states) == how.get("partial_num_steps", how["steps"])
        torch.testing.assert_close(states[-1] / wanted.abs().max(), wanted / wanted.abs().max(), atol=1e-4, rtol=0)


@each_folder("cogview3-base")
def test_the_table_of_noise_is_the_originals(folder: Path) -> None:
    rising = tensors(folder)["sigmas_1000"].sort().values
    torch.testing.assert_close(sigma_table().float(), rising, atol=0, rtol=2e-6)
    assert [step.time for step in sigma_steps(1000)] == list(range(999, -1, -1))


@each_kind
@each_folder("cogview3-base")
def test_names_of_diffusers_are_those_of_its_own_conversion(folder: Path, kind: str, tmp_path: Path) -> None:
    config = open_source(unet_folder(folder, kind, tmp_path)).config
    keys, weights = FORM.keys_of(config.to_dict()), stored(folder, kind)
    theirs = by_diffusers(folder, kind, network_config(config))
    assert {keys.to_hf(name) for name in weights} == set(theirs)
    assert all(weights[keys.to_sat(name)].equal(value) for name, value in theirs.items())


@each_folder("cogview3-base")
def test_both_forms_hold_the_same(folder: Path, tmp_path: Path) -> None:
    sat, hub = loaded(unet_folder(folder, "base", tmp_path)), loaded(diffusers_folder(folder, tmp_path))
    assert all(value.equal(hub.model.state_dict()[name]) for name, value in sat.model.state_dict().items())
    sizes = {**told(folder), **{"text_length": hub.config.text_length}}
    assert make_config({**sat.config.to_dict(), **sizes}) == hub.config


@each_kind
@each_folder("cogview3-base")
def test_from_sat_and_back_every_bit_is_there(folder: Path, kind: str, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    source = unet_folder(folder, kind, tmp_path)
    convert(source, "hf", tmp_path / "hub", verify=True)
    convert(tmp_path / "hub", "sat", tmp_path / "back", verify=True)
    (file,) = (tmp_path / "back").glob("*/mp_rank_00_model_states.pt")
    (original,) = (source / "transformer").glob("*/mp_rank_00_model_states.pt")
    ours, theirs = (torch.load(place, weights_only=True)["module"] for place in (file, original))
    assert ours.keys() == theirs.keys() and all(value.equal(theirs[name]) for name, value in ours.items())
    assert loaded(tmp_path / "back").config == loaded(source).config
    network = UNet2DConditionModel.from_pretrained(tmp_path / "hub" / "unet", torch_dtype=torch.float32)
    case = cases(tensors(folder), kind)[0]
    extra = {"time_ids": case["time_ids"], "text_embeds": case["text"].new_zeros(len(case["text"]), 0)}
    how = {"added_cond_kwargs": extra, "timestep_cond": case.get("scale_emb")}
    with torch.inference_mode():
        found = network(case["latents"], case["timestep"], case["text"], **how).sample
    torch.testing.assert_close(found, case["out_sat"], atol=TOLERANCE, rtol=0)
    stem = "diffusion_pytorch_model-00001-of-00001.safetensors"
    assert load_file(tmp_path / "hub" / "unet" / stem).keys() == network.state_dict().keys()


@each_folder("cogview3-base")
def test_sizes_that_shapes_do_not_tell(folder: Path, tmp_path: Path) -> None:
    place = unet_folder(folder, "base", tmp_path) / "transformer"
    config, sizes = open_source(place).config, reference(folder)["sizes"]
    assert config.channels == tuple(sizes["ch"] * times for times in sizes["mult"]) and not config.enlarges
    depths = [depth for depth in config.transformer_depth if depth]
    assert depths == sizes["depth"][-len(depths) :]
    assert (config.text_hidden_size, config.condition_dim) == (sizes["ctx"], sizes["adm"])
    file, known = place / "model_config.json", told(folder)
    file.write_text(json.dumps({**known, "partial_num_steps": 3, "steps": 9}))
    enlarges = open_source(place).config
    assert (enlarges.partial_num_steps, enlarges.steps, enlarges.usual_size) == (3, 9, (1024, 1024))
    file.write_text(json.dumps({**known, "model_channels": 7}))
    with pytest.raises(ConfigError, match=f"says model_channels = 7, but the weights beside it have {sizes['ch']}"):
        open_source(place)
    file.write_text(json.dumps({**known, "partial_num_steps": 51}))
    with pytest.raises(ConfigError, match="partial_num_steps = 51 of 50 steps"):
        open_source(place)
    file.unlink()
    with pytest.raises(ConfigError, match=r"as no release .*put a model_config.json with num_head_channels"):
        open_source(place)


@pytest.mark.slow
def test_released_sizes_are_told_by_shapes_and_the_folders_name(tmp_path: Path) -> None:
    runtime.init_model_parallel(1)
    for spec in (spec for spec in registry.specs() if spec.runs_in == "diffusers"):
        data = read_json(registry.config_path(spec.name))
        model = build_model(make_config(data), dtype=torch.float16)
        assert sum(weight.numel() for weight in model.parameters()) == spec.parameters, spec.name
        if not spec.name.startswith("cogview3"):
            continue
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        alone = make_config(config_of_weights(shapes, {}))
        assert alone.model_channels == 320 and alone.enlarges == spec.name.startswith("cogview3-relay-3b-distill")
        step = tmp_path / spec.name / "1"
        step.mkdir(parents=True)
        weights = {f"model.diffusion_model.{name}": torch.empty(1).expand(shape) for name, shape in shapes.items()}
        torch.save({"module": weights}, step / "mp_rank_00_model_states.pt")
        (tmp_path / spec.name / "latest").write_text("1")
        assert make_config(find_checkpoint(tmp_path / spec.name).config) == make_config(data), spec.name


@each_folder("cogview3-base")
def test_what_is_refused_before_work_begins(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = unet_folder(folder, "base", tmp_path)
    with pytest.raises(ConfigError, match="runs in diffusers, and its linears stay as they are: leave quant out"):
        load_pretrained(place, device="cpu", quant=8)
    with pytest.raises(ConfigError, match="runs in diffusers, in one process; 2 were started"):
        open_source(place, size=2)
    sdxl = Path(shutil.copytree(folder / "base" / "diffusers" / "unet", tmp_path / "sdxl"))
    data = json.loads((sdxl / "config.json").read_text())
    (sdxl / "config.json").chmod(0o644)
    (sdxl / "config.json").write_text(json.dumps({**data, "projection_class_embeddings_input_dim": 2816}))
    with pytest.raises(ConfigError, match=r"of another model: config\.json has architectures 'UNet2DConditionModel'"):
        load_pretrained(sdxl, device="cpu")
    with pytest.raises(ConfigError, match="which runs in diffusers and is not fine-tuned here"):
        kind_of(SimpleNamespace(from_pretrained=str(place)))
    painter = loaded(place)
    channels, side = painter.config.in_channels, painter.config.latent_multiple
    rest = {"timestep": torch.zeros(1), "text": torch.zeros(1, 4, painter.config.text_hidden_size)}
    with pytest.raises(ValueError, match=rf"takes latents \[B, {channels}, h, w\]"):
        painter.model(latents=torch.zeros(1, channels + 1, side, side), **rest)
    with pytest.raises(ValueError, match=f"multiples of {side} high and wide"):
        painter.model(latents=torch.zeros(1, channels, side, side + 1), **rest)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingPackageError, match=r"UNet2DConditionModel needs .*cogvlm-sat-zoo\[draw\]"):
        load_pretrained(place, device="cpu")
