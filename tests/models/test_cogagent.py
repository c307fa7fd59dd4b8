"""CogAgent against the originals' outputs, and what sets it apart from CogVLM."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mixins.kv_cache import kv_cache
from sat_models import registry, runtime
from sat_models.checkpoint.find import find_checkpoint
from sat_models.checkpoint.io import load_weights, read_weights, save_checkpoint
from sat_models.checkpoint.reshard import slice_for_rank, split_rules
from sat_models.config import CrossTowerConfig, read_json
from sat_models.errors import ConfigError
from sat_models.models.build import build_model, make_config
from sat_models.models.cogagent.config import CogAgentConfig
from sat_models.models.cogagent.model import CogAgentModel
from sat_models.models.cogvlm.config import CogVLMConfig
from sat_models.processing.layout import VLMInputs, collate
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "cogagent-mini"
CASES = json.loads((GOLDEN / "reference.json").read_text())["cases"]
REFERENCE = load_file(GOLDEN / "reference.safetensors")
TOLERANCE = 2e-5
TINY = read_json(ROOT / "configs" / "models" / "cogagent-tiny.json")


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return load_pretrained(str(GOLDEN), device="cpu", dtype="float32")


@pytest.fixture
def tiny() -> CogAgentModel:
    """Random weights, all learned positions included."""
    runtime.init_model_parallel(1)
    torch.manual_seed(0)
    model = build_model(make_config(TINY), device="cpu")
    with torch.no_grad():
        for name in ("eva", "encoder"):
            model.get_mixin(name).pos_embed.normal_(std=0.1)
    return model


def _inputs(vlm: VLM, case: dict[str, Any]) -> VLMInputs:
    return vlm.processor(GOLDEN / "image.png", case["query"], history=case["history"], version=case["version"])


@torch.inference_mode()
def _logits(vlm: VLM, inputs: VLMInputs) -> Tensor:
    return vlm.model(**inputs.model_kwargs())[0]


@contextmanager
def _counting(module: torch.nn.Module) -> Iterator[list[int]]:
    """Grows by one for each call of `module`."""
    calls: list[int] = []
    hook = module.register_forward_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        hook.remove()


def test_the_rotary_table_follows_from_the_sizes(vlm: VLM) -> None:
    stored = read_weights(GOLDEN / "1" / "mp_rank_00_model_states.pt")
    rope = vlm.model.get_mixin("encoder").vit.model.rope
    for place in ("rope", "blocks.1.attn.rope"):
        assert torch.equal(rope.compute_freqs_cos(), stored[f"mixins.encoder.vit.model.{place}.freqs_cos"])
        assert torch.equal(rope.compute_freqs_sin(), stored[f"mixins.encoder.vit.model.{place}.freqs_sin"])


def test_a_checkpoint_without_rotary_tables_loads(vlm: VLM, tmp_path: Path) -> None:
    weights = read_weights(GOLDEN / "1" / "mp_rank_00_model_states.pt")
    kept = {name: value for name, value in weights.items() if "freqs_" not in name and "inv_freq" not in name}
    (tmp_path / "1").mkdir()
    (tmp_path / "model_config.json").write_text((GOLDEN / "model_config.json").read_text())
    torch.save({"module": kept}, tmp_path / "1" / "mp_rank_00_model_states.pt")
    loaded = load_pretrained(tmp_path, device="cpu", dtype="float32", local_tokenizer=GOLDEN)
    assert torch.equal(_logits(loaded, _inputs(vlm, CASES[0])), _logits(vlm, _inputs(vlm, CASES[0])))


def test_text_alone_reads_no_vision_weight(vlm: VLM) -> None:
    inputs = vlm.processor(None, "Hello there", version="chat")
    assert inputs.vision_image is None and inputs.cross_image is None
    cross = vlm.model.transformer.layers[0].cross_attention
    with _counting(vlm.model.get_mixin("encoder").vit) as tower, _counting(cross) as crossed:
        logits = _logits(vlm, inputs)
        assert len(vlm.generate(None, "Hello there", version="chat", max_new_tokens=4).token_ids) == 4
    assert logits.isfinite().all() and not tower and not crossed


def test_keys_and_values_of_the_picture_are_made_once(vlm: VLM) -> None:
    layer = vlm.model.transformer.layers[1].cross_attention
    tower = vlm.model.get_mixin("encoder").vit
    with _counting(tower) as towers, _counting(layer.key_value) as made, _counting(layer) as read:
        result = vlm.generate(GOLDEN / "image.png", "What is it?", version="base", max_new_tokens=5)
    assert len(result.token_ids) == 5
    assert (len(towers), len(made), len(read)) == (1, 1, 5)


def test_an_emptied_cache_forgets_the_picture(vlm: VLM) -> None:
    inputs, text = _inputs(vlm, CASES[0]), vlm.processor(None, "Hello", version="chat")
    expected = _logits(vlm, text)
    with kv_cache(vlm.model, 64) as cache:
        assert cache.cross_memory is None
        _logits(vlm, inputs)
        cache.advance(inputs.length)
        kept = cache.cross_memory
        assert [tuple(key.shape) for key, _ in kept] == [(1, 4, 64, 8)] * 3
        cache.truncate(1)
        assert cache.cross_memory is kept
        cache.truncate(0)
        assert cache.cross_memory is None
        assert torch.equal(_logits(vlm, text), expected)


def test_a_batch_equals_its_rows(vlm: VLM) -> None:
    samples = [_inputs(vlm, case) for case in (CASES[0], CASES[4])]
    samples[1].vision_image, samples[1].cross_image = samples[1].vision_image.flip(-1), samples[1].cross_image.flip(-1)
    batch = collate(samples, pad_id=vlm.processor.tokenizer.pad_id)
    assert batch.cross_image.shape[0] == 2
    together = _logits(vlm, batch)
    for row, sample in enumerate(samples):
        alone = _logits(vlm, sample)[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=0, atol=TOLERANCE)


def test_two_pictures_in_a_row(vlm: VLM) -> None:
    inputs = vlm.processor([GOLDEN / "image.png"] * 2, "Which?", version="base")
    with kv_cache(vlm.model, inputs.length) as cache:
        assert _logits(vlm, inputs).isfinite().all()
        assert cache.cross_memory[0][0].shape[2] == 2 * vlm.config.num_cross_patches


def test_pictures_that_do_not_fit_are_refused(vlm: VLM) -> None:
    with_image, text = _inputs(vlm, CASES[0]), vlm.processor(None, "Hello", version="base")
    for name in ("vision_image", "cross_image"):
        with pytest.raises(ValueError, match="each picture in both sizes"):
            _logits(vlm, dataclasses.replace(with_image, **{name: None}))
    with pytest.raises(ValueError, match="same number of pictures in each row"):
        _logits(vlm, collate([with_image, text], pad_id=0))
    with pytest.raises(ValueError, match=r"takes pictures \[N, 3, 112, 112\], got \[1, 3, 56, 56\]"):
        _logits(vlm, dataclasses.replace(with_image, cross_image=with_image.vision_image))


def test_every_parameter_that_runs_gets_a_gradient(vlm: VLM, tiny: CogAgentModel) -> None:
    inputs = _inputs(vlm, CASES[0])
    tiny.train()
    tiny.get_mixin("encoder").vit.model.checkpoint_activations = True
    tiny(**inputs.model_kwargs())[0].float().square().mean().backward()
    without = {name for name, weight in tiny.named_parameters() if weight.grad is None}
    frozen = {name for name, weight in tiny.named_parameters() if not weight.requires_grad}
    assert without == frozen
    unused = ("blocks.2.", "norm.", "head.")
    assert all(name.removeprefix("mixins.encoder.vit.model.").startswith(unused) for name in frozen) and frozen


def test_recomputing_activations_changes_nothing(vlm: VLM, tiny: CogAgentModel) -> None:
    inputs, gradients = _inputs(vlm, CASES[0]), []
    for recompute in (False, True):
        tiny.zero_grad()
        tiny.get_mixin("encoder").vit.model.checkpoint_activations = recompute
        tiny.transformer.checkpoint_activations = recompute
        tiny(**inputs.model_kwargs())[0].float().square().mean().backward()
        gradients.append(tiny.get_mixin("encoder").vit.model.blocks[0].attn.q_proj.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_only_some_layers_may_read_the_picture(vlm: VLM) -> None:
    runtime.init_model_parallel(1)
    model = build_model(make_config({**TINY, "is_decoder": [False, True]}), device="cpu")
    assert [hasattr(layer, "cross_attention") for layer in model.transformer.layers] == [False, True]
    inputs = _inputs(vlm, CASES[0])
    with kv_cache(model, inputs.length) as cache, torch.inference_mode():
        assert model(**inputs.model_kwargs())[0].isfinite().all()
        assert [memory is None for memory in cache.cross_memory] == [True, False]


def test_splitting_equals_the_original_loader() -> None:
    runtime.init_model_parallel(1)
    rules = split_rules(build_model(make_config(read_json(GOLDEN / "model_config.json"))))
    whole = read_weights(GOLDEN / "1" / "mp_rank_00_model_states.pt")
    assert rules.keys() == whole.keys()
    for rank in (0, 1):
        half = read_weights(GOLDEN.with_name("cogagent-mini-mp2") / "1" / f"mp_rank_0{rank}_model_states.pt")
        assert half.keys() == whole.keys()
        for name, rule in rules.items():
            assert torch.equal(slice_for_rank(whole[name], rule, rank, 2), half[name]), (name, rank)


def test_saved_and_loaded_it_is_the_same(vlm: VLM, tmp_path: Path) -> None:
    save_checkpoint(vlm.model, tmp_path, vlm.config, step=3)
    config = make_config(find_checkpoint(tmp_path).config)
    assert config == vlm.config
    again = build_model(config)
    load_weights(again, find_checkpoint(tmp_path), device="cpu")
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in vlm.model.state_dict().items())


@pytest.mark.parametrize("name", ["cogagent-chat", "cogagent-vqa"])
def test_released_sizes(name: str) -> None:
    runtime.init_model_parallel(1)
    data = read_json(registry.config_path(name))
    config = make_config(data)
    written = json.loads(json.dumps(config.to_dict()))
    assert {key: written[key] for key in data} == data, "something of the released config is lost"
    assert make_config(written) == config
    assert (config.num_cross_patches, config.cross_vision_args.num_heads) == (6400, 16)
    assert registry.resolve(name).available and registry.resolve(name).cross_image_size == config.cross_image_pix
    if name == "cogagent-chat":
        model = build_model(config)
        assert sum(weight.numel() for weight in model.parameters()) == 18_291_033_280
        assert model.state_dict()["mixins.encoder.pos_embed"].shape == (6400, 1024)


@pytest.mark.parametrize("name", ["FineTuneTrainCogAgentModel", "FineTuneTestCogAgentModel"])
def test_names_of_fine_tuned_checkpoints(name: str) -> None:
    config = make_config({**TINY, "model_class": name})
    assert isinstance(config, CogAgentConfig) and isinstance(config, CogVLMConfig)
    runtime.init_model_parallel(1)
    assert isinstance(build_model(config), CogAgentModel)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cross_attn_hidden_size": 48}, "cross_attn_hidden_size is 48, but .* 32 wide"),
        ({"cross_image_pix": 113}, "cross_image_pix = 113 is not divisible by 14"),
        ({"is_decoder": [True]}, "for each of the 2 layers"),
        ({"is_decoder": False}, "at least one"),
        ({"is_decoder": "yes"}, "must be true or a list"),
        ({"cross_vision_args": {"head_width": 6, "width": 32}}, "32 is not divisible by 6"),
        ({"cross_vision_args": {"head_width": 2, "width": 32}}, "2 is not divisible by 4"),
        ({"cross_vision_args": {"mlp_ratio": "big"}}, "mlp_ratio must be a positive number"),
    ],
)
def test_configs_that_contradict_themselves(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config({**TINY, **change})


def test_a_config_names_what_it_lacks() -> None:
    with pytest.raises(ConfigError, match=r"lacks the key\(s\) cross_image_pix"):
        make_config({key: value for key, value in TINY.items() if key != "cross_image_pix"})


def test_the_default_tower_is_the_released_one() -> None:
    tower = CrossTowerConfig()
    assert (tower.layers, tower.width, tower.num_heads, tower.inner_width) == (24, 1024, 16, 2730)
