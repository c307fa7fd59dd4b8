"""Sizes of CogView3-Plus.

Source: github.com/THUDM/CogView3 at d450a74, `sat/configs/cogview3_plus/*.yaml`; the rule of image sizes: its README.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sat_models.config import DiffusionConfig
from sat_models.config.base import require_divides, require_positive
from sat_models.config.diffusion import limits
from sat_models.errors import ConfigError

MODEL_CLASS = "CogView3PlusModel"
CONDITIONS = 6
"""Numbers that a picture is described by: height and width of the original, top and left of the crop, height and width
of the target."""


@dataclass(frozen=True, kw_only=True)
class CogView3PlusConfig(DiffusionConfig):
    """CogView3-Plus.

    Attributes:
        condition_dim: width of the sinusoid of each number that describes an image.
        pos_max: side of the table of positions, in tokens.
    """

    model_class: str = MODEL_CLASS
    in_channels: int = 16
    time_embed_dim: int = 512
    text_hidden_size: int = 4096
    text_length: int = 224
    snr_shift: float = 4.0
    condition_dim: int = 256
    pos_max: int = 128
    least_side: int = 512
    most_side: int = 2048
    most_pixels: int = 2**21

    PROMPT_LANGUAGES: ClassVar[tuple[str, ...]] = ("en",)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "condition_dim", "pos_max")
        require_divides("condition_dim", self.condition_dim, 2, "cosines and sines")
        require_divides("hidden_size", self.hidden_size, 4, "sines and cosines of columns and rows")
        if self.most_side > self.pos_max * self.patch_size * self.pixels_per_latent:
            raise ConfigError(f"most_side = {self.most_side} px is more than a table of {self.pos_max} tokens has")


_RELEASES: dict[tuple[int, int], dict[str, Any]] = {(2560, 30): {"num_attention_heads": 64}}
"""What shapes cannot tell of a released model, by its width and depth; the rest are the defaults above."""

_POSITIONS, _PATCHES = "mixins.pos_embed.image_pos_embedding", "mixins.patch_embed.proj.weight"
_TEXT, _LABELS, _MODULATION = (
    "mixins.patch_embed.text_proj.weight",
    "label_emb.0.0.weight",
    "mixins.adaln.adaln_modules",
)


def config_of_weights(shapes: Mapping[str, Sequence[int]], told: Mapping[str, Any]) -> dict[str, Any] | None:
    """The content of a `model_config.json` for weights of CogView3-Plus that have none, or one that is not whole.

    Args:
        shapes: of the weights, by SAT's names.
        told: what stands in a `model_config.json` beside them.

    Returns:
        None if they are no CogView3-Plus.

    Raises:
        ConfigError: neither the weights nor the file nor the table of releases tell the number of heads.
    """
    if not {_POSITIONS, _PATCHES, _TEXT, _LABELS} <= shapes.keys():
        return None
    width, values = shapes[_PATCHES]
    layers = sum(name.startswith(_MODULATION) and name.endswith(".weight") for name in shapes)
    patch, side = told.get("patch_size", 2), shapes[_POSITIONS][0]
    found = {
        "num_layers": layers,
        "hidden_size": width,
        "in_channels": values // patch**2,
        "patch_size": patch,
        "text_hidden_size": shapes[_TEXT][1],
        "time_embed_dim": shapes[_LABELS][0],
        "condition_dim": shapes[_LABELS][1] // CONDITIONS,
        "pos_max": side,
        **limits(side, told.get("pixels_per_latent", 8) * patch),
    }
    rest = {**_RELEASES.get((width, layers), {}), **told}
    if "num_attention_heads" not in rest:
        known = ", ".join(f"{wide} and {deep}" for wide, deep in _RELEASES)
        raise ConfigError(
            f"these weights of CogView3-Plus have the width {width} and {layers} layers, as no release ({known}): "
            "shapes do not tell the number of heads: put a model_config.json with "
            "num_attention_heads (and guidance, snr_shift, text_length, where they are not "
            f"{CogView3PlusConfig.guidance:g}, {CogView3PlusConfig.snr_shift:g}, {CogView3PlusConfig.text_length}) "
            "beside 'latest'"
        )
    wrong = {k: v for k, v in found.items() if k in rest and rest[k] != v and k not in limits(side)}
    if wrong:
        name, value = next(iter(wrong.items()))
        raise ConfigError(f"model_config.json says {name} = {rest[name]!r}, but the weights beside it have {value}")
    return {"model_class": MODEL_CLASS, **found, **rest}
