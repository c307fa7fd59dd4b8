"""Tiny language models of transformers with heads unlike the first LLaMA's, and the same weights in a `LLaMAModel`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sat_models.models.build import build_model, make_config
from sat_models.models.common.llama import LLaMAModel

SIZES = {
    "num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "inner_hidden_size": 128, "vocab_size": 160,
    "max_sequence_length": 128, "layernorm_epsilon": 1e-5,
}  # fmt: skip
THEIRS = {
    "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 160,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "num_key_value_heads": 2, "tie_word_embeddings": False,
    "pad_token_id": 0,
}  # fmt: skip
PEERS = {
    "llama": (
        "LlamaForCausalLM", {"head_dim": 32, "rope_theta": 500000.0},
        {"num_kv_heads": 2, "head_dim": 32, "rope_theta": 500000.0},
    ),
    "qwen2": (
        "Qwen2ForCausalLM", {"rope_theta": 1e6, "use_sliding_window": False},
        {"num_kv_heads": 2, "rope_theta": 1e6, "qkv_bias": True},
    ),
    "glm": (
        "GlmForCausalLM",
        {"head_dim": 16, "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "attention_bias": True},
        {"num_kv_heads": 2, "rotary_dim": 8, "rotary_interleaved": True, "qkv_bias": True},
    ),
}  # fmt: skip
"""Class of transformers, what its config has besides `THEIRS`, and what ours has besides `SIZES`."""


def shaken(model: nn.Module) -> nn.Module:
    """Initial weights plus noise: biases start at 0 and norms at 1, which would hide a wrong name."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def their_model(name: str) -> Any:
    """A peer of transformers with random weights."""
    import transformers

    architecture, own, _ = PEERS[name]
    torch.manual_seed(0)
    config_class = getattr(transformers, architecture.replace("ForCausalLM", "Config"))
    rope = {"rope_type": "default", "rope_theta": own["rope_theta"]}
    if "partial_rotary_factor" in own:
        rope["partial_rotary_factor"] = own["partial_rotary_factor"]
    rest = {key: value for key, value in own.items() if key not in rope}
    return shaken(getattr(transformers, architecture)(config_class(**THEIRS, **rest, rope_parameters=rope)))


def our_model(name: str, theirs: nn.Module) -> LLaMAModel:
    """The same weights, moved by hand."""
    model = build_model(make_config({"model_class": "LLaMAModel", **SIZES, **PEERS[name][2]}), device="cpu")
    given = _by_our_names({key.removeprefix("model."): value for key, value in theirs.state_dict().items()})
    missing, unexpected = model.load_state_dict(given, strict=False)
    assert missing == ["mixins.rotary.rotary_emb.inv_freq"] and not unexpected
    return model.eval().requires_grad_(False)


def _by_our_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {
        "transformer.word_embeddings.weight": state["embed_tokens.weight"],
        "transformer.final_layernorm.weight": state["norm.weight"],
        "mixins.lm.lm_head.weight": state["lm_head.weight"],
    }
    for layer in range(SIZES["num_layers"]):
        theirs, ours = f"layers.{layer}", f"transformer.layers.{layer}"
        for norm in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            found[f"{ours}.{norm}"] = state[f"{theirs}.{norm}"]
        for part in ("weight", "bias"):
            parts = [state.get(f"{theirs}.self_attn.{x}_proj.{part}") for x in "qkv"]
            if parts[0] is not None:
                found[f"{ours}.attention.query_key_value.{part}"] = torch.cat(parts)
        found[f"{ours}.attention.dense.weight"] = state[f"{theirs}.self_attn.o_proj.weight"]
        found[f"{ours}.mlp.dense_4h_to_h.weight"] = state[f"{theirs}.mlp.down_proj.weight"]
        both = state.get(f"{theirs}.mlp.gate_up_proj.weight")
        gate, up = (state[f"{theirs}.mlp.{x}_proj.weight"] for x in ("gate", "up")) if both is None else both.chunk(2)
        found[f"{ours}.mlp.dense_h_to_4h.weight"], found[f"mixins.mlp.gate_proj.{layer}.weight"] = up, gate
    return found
