"""The autoencoder of films under the names of its SAT file and diffusers' names.

Sources: github.com/THUDM/CogVideo at v1.0, `sat/vae_modules/cp_enc_dec.py`; diffusers 0.42.1, `AutoencoderKLCogVideoX`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sat_models.errors import CheckpointError
from sat_models.models.common.kl_keys import Shapes, count_of

FILM_VAE = "AutoencoderKLCogVideoX"
"""Its class in diffusers."""

_NOT_WEIGHTS = "loss."
_FIRST = "encoder.conv_in.conv.weight"
_PART = re.compile(
    r"(encoder|decoder)\.(?:(conv_in|conv_out|norm_out)|mid\.block_([12])|(?:down|up)\.(\d+)\.(?:block\.(\d+)|(?:down|up)sample))\.(.+)"
)
_THEIRS = re.compile(
    r"(encoder|decoder)\.(?:(conv_in|conv_out|norm_out)|mid_block\.resnets\.([01])"
    r"|(?:down|up)_blocks\.(\d+)\.(?:resnets\.(\d+)|(?:down|up)samplers\.0))\.(.+)"
)
_SHORTCUT = ("nin_shortcut", "conv_shortcut")


def is_film_vae(shapes: Shapes) -> bool:
    """True for the weights of a SAT file of this autoencoder."""
    return _FIRST in shapes


def film_vae_config(shapes: Shapes, scale: float) -> dict[str, Any]:
    """The content of diffusers' `config.json` for the weights of a SAT file.

    Args:
        shapes: of the weights, by their names there.
        scale: of the latents.

    Raises:
        CheckpointError: they are no such autoencoder.
    """
    try:
        levels = count_of(shapes, "encoder.down.{}.block.0.conv1.conv.weight")
        channels = [shapes[f"encoder.down.{level}.block.0.conv1.conv.weight"][0] for level in range(levels)]
        out, inner = shapes["decoder.conv_out.conv.weight"][0], shapes["decoder.conv_in.conv.weight"][1]
        given = shapes[_FIRST][1]
    except KeyError as error:
        raise CheckpointError(f"these weights are no autoencoder of films: {error.args[0]} is missing") from error
    return {
        "_class_name": FILM_VAE,
        "in_channels": given,
        "out_channels": out,
        "latent_channels": inner,
        "block_out_channels": channels,
        "layers_per_block": count_of(shapes, "encoder.down.0.block.{}.conv1.conv.weight"),
        "down_block_types": ["CogVideoXDownBlock3D"] * levels,
        "up_block_types": ["CogVideoXUpBlock3D"] * levels,
        "norm_num_groups": 32,
        "norm_eps": 1e-6,
        "act_fn": "silu",
        "temporal_compression_ratio": 4,
        "scaling_factor": scale,
        "force_upcast": True,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }


def film_vae_to_diffusers(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A SAT file's weights under diffusers' names. Raises CheckpointError for a name that is not known."""
    last = len(config["block_out_channels"]) - 1

    def renamed(side: str, end: str, middle: str, level: str, block: str, rest: str) -> str:
        way = "down" if side == "encoder" else "up"
        if end or middle:
            return f"{side}.{end or f'mid_block.resnets.{int(middle) - 1}'}.{rest}"
        number = int(level) if way == "down" else last - int(level)
        inner = f"resnets.{block}" if block else f"{way}samplers.0"
        return f"{side}.{way}_blocks.{number}.{inner}.{rest.replace(*_SHORTCUT)}"

    kept = {name: value for name, value in weights.items() if not name.startswith(_NOT_WEIGHTS)}
    return _renamed(kept, _PART, renamed)


def film_vae_to_sat(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The inverse of `film_vae_to_diffusers`."""
    last = len(config["block_out_channels"]) - 1

    def renamed(side: str, end: str, middle: str, level: str, block: str, rest: str) -> str:
        way = "down" if side == "encoder" else "up"
        if end or middle:
            return f"{side}.{end or f'mid.block_{int(middle) + 1}'}.{rest}"
        number = int(level) if way == "down" else last - int(level)
        inner = f"block.{block}" if block else f"{way}sample"
        return f"{side}.{way}.{number}.{inner}.{rest.replace(*_SHORTCUT[::-1])}"

    return _renamed(weights, _THEIRS, renamed)


def _renamed(weights: Mapping[str, Tensor], pattern: re.Pattern[str], renamed: Any) -> dict[str, Tensor]:
    matches = {name: pattern.fullmatch(name) for name in weights}
    if odd := sorted(name for name, match in matches.items() if match is None):
        raise CheckpointError(f"{odd[0]} (and {len(odd) - 1} more) is no weight of the autoencoder of films")
    return {renamed(*match.groups()): weights[name] for name, match in matches.items()}
