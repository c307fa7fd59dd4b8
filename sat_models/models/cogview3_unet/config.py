"""Sizes of CogView3-Base, CogView3-Relay and their distilled forms.

Source: github.com/THUDM/CogView3 at d450a74, `sat/configs/cogview3_{base,relay}*.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sat_models.config.thin import UNetConfig
from sat_models.errors import ConfigError

MODEL_CLASS = "CogView3UNetModel"
CONDITIONS = 6
"""Numbers that an image is described by, as for CogView3-Plus."""
_BASE = {"least_side": 256, "most_side": 1024, "most_pixels": 2**18}
_SHARED_VAE = "cogview3-base-3b-vae"


@dataclass(frozen=True, kw_only=True)
class CogView3UNetConfig(UNetConfig):
    """CogView3-Base (draws at 512 px) and CogView3-Relay (enlarges to 1024 px)."""

    model_class: str = MODEL_CLASS
    in_channels: int = 4
    text_hidden_size: int = 4096
    text_length: int = 225
    guidance: float = 7.5
    latent_scale: float = 0.13025
    least_side: int = _BASE["least_side"]
    most_side: int = _BASE["most_side"]
    most_pixels: int = _BASE["most_pixels"]

    VAE_FILE: ClassVar[str] = "sdxl_vae.safetensors"
    VAE_FOLDERS: ClassVar[tuple[str, ...]] = ("vae", _SHARED_VAE)


_RELEASES: dict[tuple[int, tuple[int, ...]], dict[str, Any]] = {(320, (1, 2, 4)): {"num_head_channels": 64}}
"""What shapes cannot tell of released models, by width and multiples."""
_DISTILLED: dict[int, dict[str, Any]] = {512: {"steps": 4}, 256: {"steps": 5, "partial_num_steps": 1}}
"""What the width of the guidance's sinusoids tells of released models: drawing in four steps, enlarging in one."""

_FIRST, _LAST, _LABELS = "input_blocks.0.0.weight", "out.2.weight", "label_emb.0.0.weight"


def levels(shapes: Mapping[str, Sequence[int]]) -> list[tuple[int, int, int]]:
    """Channels, blocks and depth of attention of each level, from the shapes of the weights by SAT's names."""
    found: list[list[tuple[int, int]]] = [[]]
    number = 1
    while any(f"input_blocks.{number}.0.{part}.weight" in shapes for part in ("op", "in_layers.2")):
        block = f"input_blocks.{number}"
        if f"{block}.0.op.weight" in shapes:
            found.append([])
        else:
            depth = 0
            while f"{block}.1.transformer_blocks.{depth}.norm1.weight" in shapes:
                depth += 1
            found[-1].append((shapes[f"{block}.0.in_layers.2.weight"][0], depth))
        number += 1
    return [(level[0][0], len(level), level[0][1]) for level in found if level]


def limits(levels: int, enlarges: bool, pixels_per_latent: int = 8) -> dict[str, int]:
    """The rule of image sizes: about 512 px a side, twice that of what is enlarged.

    Args:
        levels: of the network; each but the first halves the sides.
    """
    times = 2 if enlarges else 1
    sides = {name: _BASE[name] * times for name in ("least_side", "most_side")}
    multiple = pixels_per_latent * 2 ** (levels - 1) * times
    return {**sides, "most_pixels": _BASE["most_pixels"] * times**2, "side_multiple": multiple}


def config_of_weights(shapes: Mapping[str, Sequence[int]], told: Mapping[str, Any]) -> dict[str, Any] | None:
    """The content of a `model_config.json` for weights that have none, or one that is not whole.

    Args:
        shapes: of the weights, by SAT's names.
        told: what stands in a `model_config.json` beside them.

    Returns:
        None for weights of another family.

    Raises:
        ConfigError: neither the weights nor the file nor the table of releases tell the width of the heads, or they
            contradict each other.
    """
    if not {_FIRST, _LAST, _LABELS} <= shapes.keys():
        return None
    width, channels = shapes[_FIRST][:2]
    each = levels(shapes)
    found = {
        "model_channels": width,
        "channel_mult": [wide // width for wide, _, _ in each],
        "num_res_blocks": each[0][1],
        "transformer_depth": [depth for _, _, depth in each],
        "in_channels": channels,
        "condition_dim": shapes[_LABELS][1] // CONDITIONS,
    }
    if text := next((shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")), None):
        found["text_hidden_size"] = text
    if "w_proj.weight" in shapes:
        found["cfg_cond_embed_dim"] = shapes["w_proj.weight"][1]
    known = _RELEASES.get((width, tuple(found["channel_mult"])), {})
    rest = {**known, **_DISTILLED.get(found.get("cfg_cond_embed_dim"), {}), **told}
    if "num_head_channels" not in rest:
        raise ConfigError(
            f"these weights of a CogView3 UNet have {width} channels times {found['channel_mult']}, as no release "
            f"({', '.join(f'{wide} times {list(by)}' for wide, by in _RELEASES)}): shapes do not tell the width of the "
            "heads: put a model_config.json with num_head_channels (and partial_num_steps for one that enlarges, "
            "text_length, guidance, where they are not those of the release) beside 'latest'"
        )
    if wrong := {key: value for key, value in found.items() if key in rest and rest[key] != value}:
        name, value = next(iter(wrong.items()))
        raise ConfigError(f"model_config.json says {name} = {rest[name]!r}, but the weights beside it have {value}")
    return {"model_class": MODEL_CLASS, **found, **limits(len(each), "partial_num_steps" in rest), **rest}
