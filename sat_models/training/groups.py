"""Named groups of a model's parameters, as shell patterns over their names; every parameter belongs to exactly one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mixins.lora_settings import matching, near_patterns
from mixins.ptuning import PTUNING_NAME
from sat_models.errors import ConfigError, UnknownNameError

_LAYER = "transformer.layers.*"

GROUPS: dict[str, tuple[str, ...]] = {
    "vit": (
        "mixins.eva.vit_model.transformer.*",
        "mixins.eva.vit_model.mixins.*",
        "mixins.eva.vit_model.vit.*",
        "mixins.eva.model.vit.*",
    ),
    "qformer": ("mixins.eva.vit_model.qformer.*", "mixins.eva.model.qformer.*"),
    "projector": (
        "mixins.eva.linear_proj.*",
        "mixins.eva.model.glm_proj.*",
        "mixins.eva.boi",
        "mixins.eva.eoi",
        "mixins.eva.pos_embed",
    ),
    "vision_expert": ("mixins.mlp.vision_*", "mixins.rotary.vision_*"),
    "language": (
        f"{_LAYER}.attention.*",
        f"{_LAYER}.mlp.*",
        f"{_LAYER}.input_layernorm.*",
        f"{_LAYER}.post_attention_layernorm.*",
        "transformer.final_layernorm.*",
        "mixins.mlp.gate_proj.*",
    ),
    "embeddings": ("transformer.word_embeddings.*",),
    "head": ("mixins.lm.*", "mixins.chatglm-final.*"),
    "encoder": ("mixins.encoder.*",),
    "cross_attention": (f"{_LAYER}.cross_attention.*", f"{_LAYER}.post_cross_attention_layernorm.*"),
    "prefix": (f"mixins.{PTUNING_NAME}.*",),
}
"""Shell patterns over whole parameter names. LoRA matrices belong to the group of the weight they adapt."""

VISION_GROUPS = ("vit", "qformer", "projector", "vision_expert", "encoder", "cross_attention")
"""What a batch without pictures gives no gradient."""


def group_of(name: str) -> str:
    """The group of a parameter, by its name.

    Raises:
        KeyError: none or several; a model with new parts needs a new line in `GROUPS`.
    """
    plain = name.replace(".original.", ".")
    found = [group for group, patterns in GROUPS.items() if any(matching(p, (plain,)) for p in patterns)]
    if len(found) != 1:
        raise KeyError(f"parameter '{name}' belongs to {len(found)} groups {found}; see GROUPS in {__name__}")
    return found[0]


def select_parameters(names: Sequence[str], wanted: Iterable[str]) -> list[str]:
    """Those of `names` that are meant by groups or shell patterns, in the order of `names`.

    Raises:
        ConfigError: a group that this model does not have, or a pattern that fits nothing, with near matches.
    """
    chosen: set[str] = set()
    for pattern in wanted:
        fits = [n for n in names if group_of(n) == pattern] if pattern in GROUPS else matching(pattern, names)
        if not fits:
            raise ConfigError(no_match(pattern, names))
        chosen.update(fits)
    return [name for name in names if name in chosen]


def no_match(pattern: str, names: Sequence[str]) -> str:
    """What to say of a group or pattern that fits none of `names`."""
    present = ", ".join(dict.fromkeys(group_of(name) for name in names))
    if pattern in GROUPS:
        return f"this model has no parameters of the group '{pattern}'; it has: {present}"
    near = near_patterns(pattern, [*names, *GROUPS])
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    return f"'{pattern}' fits no parameter of this model. {hint}Groups: {present}; or a shell pattern over their names."


def check_rate_scales(rate_scales: Mapping[str, float]) -> None:
    """Raise for a group that does not exist (UnknownNameError) or a factor that is not positive (ConfigError)."""
    for group, scale in rate_scales.items():
        if group not in GROUPS:
            raise UnknownNameError("parameter group", str(group), GROUPS)
        if not isinstance(scale, int | float) or not scale > 0:
            raise ConfigError(
                f"the learning-rate scale of '{group}' must be positive, got {scale!r}; 0 means freezing it"
            )
