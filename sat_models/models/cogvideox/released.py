"""SAT's checkpoints of CogVideoX carry no sizes: what their weights tell, and what the releases are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sat_models.errors import ConfigError
from sat_models.models.cogvideox.config import MODEL_CLASS

Shapes = Mapping[str, Sequence[int]]

_PATCHES, _TEXT, _HEAD = (
    "mixins.patch_embed.proj.weight",
    "mixins.patch_embed.text_proj.weight",
    "mixins.final_layer.linear.weight",
)
_TABLE, _ANGLES = "mixins.pos_embed.pos_embedding", "mixins.pos_embed.freqs_sin"
_MODULATION, _NORM = "mixins.adaln_layer.adaLN_modulations", "mixins.adaln_layer.query_layernorm_list.0.weight"
_UNUSED, _OFS = "transformer.position_embeddings.weight", "ofs_embed.0.weight"

OF_SINCOS = {"snr_shift": 3.0, "latent_scale": 1.15258426}
"""CogVideoX-2B."""
OF_1_5: dict[str, Any] = {
    "text_length": 224, "latent_frames": 42, "latent_height": 300, "latent_width": 300, "usual_frames": 81,
    "usual_height": 768, "usual_width": 1360, "fps": 16, "frame_step": 16,
}  # fmt: skip
"""CogVideoX 1.5, beside the defaults of the config, which are those of CogVideoX-5B."""

_RELEASES = {(1920, 30, 1): "CogVideoX-2B", (3072, 42, 1): "CogVideoX-5B", (3072, 42, 2): "CogVideoX1.5-5B"}
"""By width, depth and frames of a token."""
_NOT_TOLD = ("text_length", "latent_height", "latent_width")
"""What has to be written down for others. The number of frames follows from the tables, where there are any."""


def of_kind(positions: str, patch_frames: int) -> dict[str, Any]:
    """What every release of a kind has where it is not as the config's defaults say."""
    return dict(OF_1_5) if patch_frames > 1 else dict(OF_SINCOS) if positions == "sincos" else {}


def config_of_weights(shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any] | None:
    """The content of a `model_config.json` for weights of CogVideoX that have none, or one that is not whole.

    Args:
        shapes: of the weights, by SAT's names.
        told: what stands in a `model_config.json` beside them.

    Returns:
        None if they are no CogVideoX.

    Raises:
        ConfigError: neither the weights nor the file nor the table of releases tell how large its films are, or they
            contradict each other.
    """
    if not {_PATCHES, _TEXT, _HEAD, _NORM, f"{_MODULATION}.0.1.weight"} <= shapes.keys():
        return None
    found = _told_by_shapes(shapes, told)
    known = (found["hidden_size"], found["num_layers"], found["patch_frames"]) in _RELEASES
    if absent := [name for name in _NOT_TOLD if not known and name not in told]:
        sizes = ", ".join(f"{wide} and {deep} ({name})" for (wide, deep, _), name in _RELEASES.items())
        raise ConfigError(
            f"these weights of CogVideoX have the width {found['hidden_size']} and {found['num_layers']} layers, as no "
            f"release ({sizes}): shapes do not tell all of their sizes: put a model_config.json with "
            f"{', '.join(absent)} (and latent_frames, snr_shift, latent_scale, spatial_scale, where they are not as "
            "those of a release) beside 'latest'"
        )
    whole = {**of_kind(found["positions"], found["patch_frames"]), **told}
    if frames := _frames(shapes, whole):
        found["latent_frames"] = frames
        if "usual_frames" not in told and not known:
            found["usual_frames"] = (frames - 1) * told.get("frames_per_latent", 4) + 1
    if wrong := {name: value for name, value in found.items() if name in told and told[name] != value}:
        name, value = next(iter(wrong.items()))
        raise ConfigError(f"model_config.json says {name} = {told[name]!r}, but the weights beside it have {value!r}")
    return {"model_class": MODEL_CLASS, **whole, **found}


def _told_by_shapes(shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any]:
    width, inputs, *kernel = shapes[_PATCHES]
    side = kernel[0] if kernel else told.get("patch_size", 2)
    frames = 1 if kernel else told.get("patch_frames", 2)
    given = inputs if kernel else inputs // (frames * side**2)
    made = shapes[_HEAD][0] // (frames * side**2)
    # A table alone is one of sines and cosines; with angles, or where an image is given, it was learned.
    sincos = _TABLE in shapes and _ANGLES not in shapes and given == made
    return {
        "num_layers": sum(name.startswith(_MODULATION) and name.endswith(".weight") for name in shapes),
        "hidden_size": width,
        "num_attention_heads": width // shapes[_NORM][0],
        "in_channels": given,
        "out_channels": made,
        "patch_size": side,
        "patch_frames": frames,
        "positions": "sincos" if sincos else "rotary",
        "learned_positions": _TABLE in shapes and not sincos,
        "time_embed_dim": shapes["time_embed.0.weight"][0],
        "text_hidden_size": shapes[_TEXT][1],
        "ofs_dim": shapes[_OFS][1] if _OFS in shapes else 0,
        "unused_positions": shapes[_UNUSED][0] if _UNUSED in shapes else 0,
    }


def _frames(shapes: Shapes, told: Mapping[str, Any]) -> int | None:
    """Of the tables, in latents; None where there is no table."""
    side = told.get("patch_size", 2)
    places = told.get("latent_height", 60) // side * (told.get("latent_width", 90) // side)
    if _ANGLES in shapes:
        tokens = shapes[_ANGLES][0]
    elif _TABLE in shapes:
        tokens = shapes[_TABLE][1] - told.get("text_length", 226)
    else:
        return None
    if tokens % places or tokens <= 0:
        raise ConfigError(
            f"the positions in these weights are {tokens}, which are no whole frames of {places} tokens: text_length, "
            "latent_height or latent_width in model_config.json are not theirs"
        )
    return tokens // places
