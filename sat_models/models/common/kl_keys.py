"""The image autoencoder (KL) under the names of its SAT file (those of latent diffusion) and diffusers' names.

Sources: github.com/THUDM/CogView3 at d450a74, `sat/sgm/modules/diffusionmodules/model.py`; diffusers 0.42.1,
`AutoencoderKL`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from sat_models.errors import CheckpointError

Shapes = Mapping[str, Sequence[int]]

_ATTENTION = "decoder.mid.attn_1"
_PARTS = (("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"))
"""Of the attention in the middle: convolutions of one pixel in SAT's file, linears in diffusers."""
_NOT_WEIGHTS = "loss."
"""What training leaves in the file besides."""


def kl_config(shapes: Shapes, scale: float) -> dict[str, Any]:
    """The content of diffusers' `config.json` for the weights of a SAT file.

    Args:
        shapes: of the weights, by their names there.
        scale: of the latents.

    Raises:
        CheckpointError: they are no such autoencoder, or one with attention elsewhere than in the middle.
    """
    try:
        levels = count_of(shapes, "encoder.down.{}.block.0.conv1.weight")
        channels = [shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)]
        blocks = count_of(shapes, "encoder.down.0.block.{}.conv1.weight")
        out, inner = shapes["decoder.conv_out.weight"][0], shapes["decoder.conv_in.weight"][1]
        given = shapes["encoder.conv_in.weight"][1]
    except KeyError as error:
        raise CheckpointError(f"these weights are no image autoencoder: {error.args[0]} is missing") from error
    if odd := next((name for name in shapes if ".attn." in name), None):
        raise CheckpointError(f"an autoencoder with attention outside its middle ({odd}) is not read")
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": given,
        "out_channels": out,
        "latent_channels": inner,
        "block_out_channels": channels,
        "layers_per_block": blocks,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "norm_num_groups": 32,
        "act_fn": "silu",
        "mid_block_add_attention": f"{_ATTENTION}.q.weight" in shapes,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "scaling_factor": scale,
        "force_upcast": True,
    }


def count_of(shapes: Shapes, pattern: str) -> int:
    """How many names there are of a pattern that takes a number, from 0 on."""
    number = 0
    while pattern.format(number) in shapes:
        number += 1
    return number


def _modules(levels: int, blocks: int) -> Iterator[tuple[str, str]]:
    """The names of all modules with weights, in SAT's file and in diffusers."""
    yield from (("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv"))
    for side, way, more in (("encoder", "down", 0), ("decoder", "up", 1)):
        yield from ((f"{side}.{name}", f"{side}.{name}") for name in ("conv_in", "conv_out"))
        yield f"{side}.norm_out", f"{side}.conv_norm_out"
        middle, attention = f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0"
        yield from ((f"{middle}.{own}", f"{attention}.{theirs}") for own, theirs in _PARTS)
        pairs = [(f"{side}.mid.block_{n + 1}", f"{side}.mid_block.resnets.{n}") for n in range(2)]
        for level in range(levels):
            own, theirs = f"{side}.{way}.{level}", f"{side}.{way}_blocks.{levels - 1 - level if more else level}"
            yield f"{own}.{way}sample.conv", f"{theirs}.{way}samplers.0.conv"
            pairs += [(f"{own}.block.{n}", f"{theirs}.resnets.{n}") for n in range(blocks + more)]
        for own, theirs in pairs:
            yield from ((f"{own}.{name}", f"{theirs}.{name}") for name in ("norm1", "conv1", "norm2", "conv2"))
            yield f"{own}.nin_shortcut", f"{theirs}.conv_shortcut"


def _table(config: Mapping[str, Any]) -> dict[str, str]:
    modules = _modules(len(config["block_out_channels"]), config["layers_per_block"])
    return {f"{own}.{part}": f"{theirs}.{part}" for own, theirs in modules for part in ("weight", "bias")}


def kl_to_diffusers(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A SAT file's weights under diffusers' names. Raises CheckpointError for a name that is not known."""
    kept = {name: value for name, value in weights.items() if not name.startswith(_NOT_WEIGHTS)}
    renamed = _renamed(kept, _table(config))
    return {name: value.flatten(1) if _is_linear(name) else value for name, value in renamed.items()}


def kl_to_sat(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The inverse of `kl_to_diffusers`."""
    shaped = {name: value[..., None, None] if _is_linear(name) else value for name, value in weights.items()}
    return _renamed(shaped, {theirs: own for own, theirs in _table(config).items()})


def _is_linear(name: str) -> bool:
    """Of the attention's weights under diffusers' names."""
    return ".attentions." in name and name.endswith(".weight") and "group_norm" not in name


def _renamed(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    if odd := sorted(weights.keys() - names.keys()):
        raise CheckpointError(f"{odd[0]} (and {len(odd) - 1} more) is no weight of the image autoencoder")
    return {names[name]: value for name, value in weights.items()}
