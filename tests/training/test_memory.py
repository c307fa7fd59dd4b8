"""The memory estimate: what it counts, and its activations against those of a real forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mixins.base import ZooModel
from mixins.packed_attention import PACKED_NAME, PackedLanesMixin
from sat_models import runtime
from sat_models.checkpoint.find import find_checkpoint
from sat_models.errors import ConfigError
from sat_models.models.build import build_model, make_config
from sat_models.training import memory
from sat_models.training.activations import example_batch, measure_activations
from sat_models.training.engine import recompute
from sat_models.training.losses import token_loss
from sat_models.training.memory import estimate_memory
from sat_models.training.trainable import apply_plan, plan_of

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
PLANS = {"all": ("all", -1), "expert": ("expert", -1), "lora": ("all", 4)}


def made(name: str, plan: str, device: str = "meta") -> tuple[ZooModel, Any]:
    """A miniature with a plan, and its config."""
    runtime.init_model_parallel(1)
    config = make_config(find_checkpoint(GOLDEN / name).config)
    model = build_model(config, device=device)
    apply_plan(model, plan_of(*PLANS[plan]))
    return model, config


def estimate(plan: str = "all", **options: Any) -> memory.MemoryEstimate:
    """Of the CogVLM miniature, without data parallelism, on a CPU in fp32 unless `options` say otherwise."""
    model, config = made("cogvlm-mini", plan)
    chosen = {"precision": "fp32", "zero_stage": 0, "data_parallel": 1, "batch_size": 2, "length": 40, "device": "cpu"}
    return estimate_memory(model, config, **{**chosen, **options})


def really_kept(model: ZooModel, config: Any, *, language: bool = False, vision: bool = False) -> int:
    """Bytes that autograd holds after a forward pass with its loss, counted over real tensors."""
    recompute(model.train(), language=language, vision=vision)
    inputs = example_batch(config, 2, 40, packed=PACKED_NAME in model.mixins)
    for name in ("vision_image", "cross_image"):
        if getattr(inputs, name) is not None:
            setattr(inputs, name, torch.zeros(getattr(inputs, name).shape))
    inputs.labels = torch.where(inputs.image_embed_mask == 1, -100, 1)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    held = {}

    def hold(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        loss, _ = token_loss(model, inputs)
    assert loss.requires_grad
    return sum(count for count, _ in held.values())


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ["cogvlm-mini", "cogagent-mini"])
def test_activations_are_those_of_a_real_forward_pass(name, plan):
    model, config = made(name, plan, device="cpu")
    counted = measure_activations(model, config, batch_size=2, length=40, dtype=torch.float32)
    assert counted.layer == 0
    assert counted.kept == pytest.approx(really_kept(model, config), rel=0.03)


def test_the_activations_of_packed_rows_are_those_of_a_real_forward_pass():
    model, config = made("cogvlm-mini", "all", device="cpu")
    plain = measure_activations(model, config, batch_size=2, length=40, dtype=torch.float32).kept
    model.add_mixin(PACKED_NAME, PackedLanesMixin())
    counted = measure_activations(model, config, batch_size=2, length=40, dtype=torch.float32).kept
    assert counted == pytest.approx(really_kept(model, config), rel=0.03) and counted != plain


def test_keys_that_queries_share_are_counted_as_they_are():
    runtime.init_model_parallel(1)
    data = find_checkpoint(GOLDEN / "cogvlm-mini").config
    config = make_config({**data, "num_kv_heads": 1, "head_dim": 24, "vision_qkv_bias": True})
    model = build_model(config, device="cpu")
    apply_plan(model, plan_of(*PLANS["all"]))
    assert all(p.requires_grad for name, p in model.named_parameters() if "vision_query_key_value" in name)
    counted = measure_activations(model, config, batch_size=2, length=40, dtype=torch.float32)
    assert counted.kept == pytest.approx(really_kept(model, config), rel=0.03)


def test_checkpointing_keeps_less_and_computes_a_layer_again():
    model, config = made("cogvlm-mini", "all", device="cpu")
    options = {"batch_size": 2, "length": 40, "dtype": torch.float32}
    plain, again = (measure_activations(model, config, **options, checkpoint_language=flag) for flag in (False, True))
    assert again.kept < 0.7 * plain.kept and again.layer == (plain.kept - again.kept) // config.num_layers > 0
    assert again.kept == pytest.approx(really_kept(model, config, language=True), rel=0.05)


def test_activations_grow_with_batch_and_length_and_halve_with_bf16():
    model, config = made("cogvlm-mini", "all")
    small = measure_activations(model, config, batch_size=1, length=40, dtype=torch.float32).kept
    assert measure_activations(model, config, batch_size=3, length=40, dtype=torch.float32).kept > 2.5 * small
    assert measure_activations(model, config, batch_size=1, length=80, dtype=torch.float32).kept > 1.4 * small
    assert measure_activations(model, config, batch_size=1, length=40, dtype=torch.bfloat16).kept < 0.8 * small


@pytest.mark.parametrize("name", ["cogvlm-mini", "cogagent-mini"])
def test_the_model_stays_as_it_was(name):
    model, config = made(name, "lora", device="cpu")
    model.eval()
    model.transformer.checkpoint_activations = True
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    measure_activations(model, config, batch_size=1, length=40, dtype=torch.bfloat16, checkpoint_vision=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules()) and model.transformer.checkpoint_activations
    assert torch.equal(torch.get_rng_state(), state) and not any(p.is_meta for p in model.parameters())
    assert really_kept(model, config) > 0  # tables that a forward pass keeps are not those of the pass on meta


def test_weights_and_optimiser_follow_precision_and_stage():
    model, _ = made("cogvlm-mini", "all")
    tensors = sum(t.numel() for t in [*model.parameters(), *model.buffers()])
    trained = sum(p.numel() for p in model.parameters())
    rows = {  # bytes per weight, and per trained weight of optimiser state over four ranks
        ("fp32", 0): (4, 8), ("bf16", 0): (2, 12), ("fp32", 1): (4, 12 / 4), ("fp16", 2): (2, 12 / 4),
        ("bf16", 3): (2 / 4, 12 / 4),
    }  # fmt: skip
    for (precision, stage), (weight, state) in rows.items():
        step = estimate(precision=precision, zero_stage=stage, data_parallel=4).phases["step"]
        assert step["weights"] == pytest.approx(weight * tensors, abs=4)
        assert step["optimizer"] == pytest.approx(state * trained, abs=48)


def test_gradients_follow_the_stage_and_what_trains():
    trained = sum(p.numel() for p in made("cogvlm-mini", "all")[0].parameters())
    backward = {stage: estimate(zero_stage=stage, data_parallel=4).phases["backward"] for stage in (0, 1, 2)}
    assert backward[0]["gradients"] == 4 * trained
    assert backward[1]["gradients"] == pytest.approx(5 * trained, abs=16)
    assert backward[2]["gradients"] == pytest.approx(trained, abs=16)
    lora = estimate("lora", zero_stage=1)
    assert lora.total < 0.5 * estimate("all", zero_stage=1).total and lora.peak_phase == "forward"
    assert lora.phases["step"]["optimizer"] < 0.3 * lora.phases["step"]["weights"]


def test_a_gpu_has_the_whole_bucket_and_several_passes_keep_their_gradients():
    cpu, gpu = (estimate(zero_stage=2, device=device, bucket=10**7) for device in ("cpu", "cuda"))
    assert gpu.phases["backward"]["working"] == 4 * 10**7 > cpu.phases["backward"]["working"]
    one, two = (estimate(accumulate=count).phases["forward"]["gradients"] for count in (1, 2))
    assert one == 0 and two == estimate().phases["backward"]["gradients"]


def test_offloading_moves_bytes_to_the_host():
    here, there = (estimate(precision="bf16", zero_stage=2, offload_optimizer=flag) for flag in (False, True))
    assert not here.host and here.host_total == 0 and there.phases["step"]["optimizer"] == 0
    assert there.host["optimizer"] == here.phases["step"]["optimizer"] and there.device_total < here.device_total
    assert there.total == there.device_total + there.host_total
    both = estimate(precision="bf16", zero_stage=3, offload_optimizer=True, offload_parameters=True)
    assert both.phases["step"]["weights"] == 0 and both.host["weights"] == here.phases["step"]["weights"]
    assert "on the host besides" in both.table() and "on the host" not in here.table()


def test_the_table_has_every_part_and_marks_the_peak():
    found = estimate()
    lines = found.table().splitlines()
    assert [line.split()[0] for line in lines[1:]] == [*memory.PARTS, "sum"] and lines[-1].count("peak") == 1
    assert found.total == max(sum(parts.values()) for parts in found.phases.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "precision 'int8' is unknown; use fp32, bf16, fp16"),
        ({"zero_stage": 4}, "ZeRO stage 4 is unknown"),
        ({"offload_optimizer": True}, "under ZeRO 1, 2 and 3, not 0"),
        ({"zero_stage": 2, "offload_parameters": True}, "ZeRO 3 only, not 2"),
    ],
)
def test_what_there_is_not_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        estimate(**options)


def test_layers_that_need_data_leave_a_note(monkeypatch, caplog):
    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x * float(x.sum())

    model, config = made("cogvlm-mini", "all")
    monkeypatch.setattr(type(model.transformer.final_layernorm), "forward", forward)
    found = estimate_memory(
        model, config, precision="fp32", zero_stage=0, data_parallel=1, batch_size=1, length=40, device="cpu"
    )
    assert "activations are not counted" in found.table() and found.phases["forward"]["activations"] == 0
    assert len(caplog.messages) == 1
