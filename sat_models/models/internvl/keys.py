"""InternVL's names: SAT's beside those of its two layouts.

They are `InternVLChatModel` of its releases, and transformers' own `InternVLForConditionalGeneration`, where an
InternLM2 is a LLaMA, queries, keys and values of the tower are apart, and tokens have no order but row by row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sat_models.models.common.hf_form import HFForm, Joined, KeyTable, Lowered, Row
from sat_models.models.common.llama_keys import ROTARY_TABLE
from sat_models.models.internvl import sizes
from sat_models.models.internvl.config import InternVLConfig
from sat_models.models.internvl.languages import LANGUAGES
from sat_models.models.internvl.processor import hf_processor

_SAT_TOWER, _TOWER = "mixins.eva.vit_model", "vision_model"
_SAT_LAYER, _LAYER = f"{_SAT_TOWER}.transformer.layers.{{j}}", f"{_TOWER}.encoder.layers.{{j}}"

_VISION: dict[str, str | Lowered] = {
    f"{_SAT_TOWER}.transformer.word_embeddings.weight": Lowered(f"{_TOWER}.embeddings.class_embedding"),
    f"{_SAT_TOWER}.transformer.position_embeddings.weight": Lowered(f"{_TOWER}.embeddings.position_embedding"),
    f"{_SAT_TOWER}.mixins.qk_norm.query_norm.{{j}}.weight": f"{_LAYER}.attn.q_norm.weight",
    f"{_SAT_TOWER}.mixins.qk_norm.key_norm.{{j}}.weight": f"{_LAYER}.attn.k_norm.weight",
    f"{_SAT_TOWER}.mixins.scaled.scales.{{j}}.attention": f"{_LAYER}.ls1",
    f"{_SAT_TOWER}.mixins.scaled.scales.{{j}}.mlp": f"{_LAYER}.ls2",
    **{
        f"{sat}.{part}": f"{hf}.{part}"
        for part in ("weight", "bias")
        for sat, hf in {
            f"{_SAT_TOWER}.mixins.patch_embedding.proj": f"{_TOWER}.embeddings.patch_embedding",
            f"{_SAT_LAYER}.input_layernorm": f"{_LAYER}.norm1",
            f"{_SAT_LAYER}.post_attention_layernorm": f"{_LAYER}.norm2",
            f"{_SAT_LAYER}.attention.query_key_value": f"{_LAYER}.attn.qkv",
            f"{_SAT_LAYER}.attention.dense": f"{_LAYER}.attn.proj",
            f"{_SAT_LAYER}.mlp.dense_h_to_4h": f"{_LAYER}.mlp.fc1",
            f"{_SAT_LAYER}.mlp.dense_4h_to_h": f"{_LAYER}.mlp.fc2",
            "mixins.eva.linear_proj.norm": "mlp1.0",
            "mixins.eva.linear_proj.linear_1": "mlp1.1",
            "mixins.eva.linear_proj.linear_2": "mlp1.3",
        }.items()
    },
}
"""Tower and projector, as the releases have them."""

_PROJECTOR = "model.multi_modal_projector"
_IN_TRANSFORMERS = (
    ("vision_model.embeddings.class_embedding", "model.vision_tower.embeddings.cls_token"),
    ("vision_model.embeddings.position_embedding", "model.vision_tower.embeddings.position_embeddings"),
    ("vision_model.embeddings.patch_embedding", "model.vision_tower.embeddings.patch_embeddings.projection"),
    ("vision_model.encoder.layers.", "model.vision_tower.encoder.layer."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".attn.proj.", ".attention.projection_layer."),
    (".attn.", ".attention."),
    (".ls1", ".lambda_1"),
    (".ls2", ".lambda_2"),
    ("mlp1.0.", f"{_PROJECTOR}.layer_norm."),
    ("mlp1.1.", f"{_PROJECTOR}.linear_1."),
    ("mlp1.3.", f"{_PROJECTOR}.linear_2."),
)
"""Parts of the releases' names, and transformers' instead."""


def _in_transformers(row: str | Lowered) -> Row:
    """A row of `_VISION` for transformers' layout."""
    name = row if isinstance(row, str) else row.name
    for theirs, instead in _IN_TRANSFORMERS:
        name = name.replace(theirs, instead)
    if ".qkv." in name:
        return Joined(tuple(name.replace(".qkv.", f".{x}_proj.") for x in "qkv"))
    return name if isinstance(row, str) else Lowered(name)


def _tables(vision: Mapping[str, Row], model: str, head: str) -> dict[str, KeyTable]:
    """A table for each kind of language model."""
    return {
        name: KeyTable({**language.rows(model, head), **vision}, left_out=(ROTARY_TABLE,))
        for name, language in LANGUAGES.items()
    }


_ORIGINAL = _tables(_VISION, "language_model.model", "language_model.lm_head")
_ORIGINAL["internlm2"] = _tables(_VISION, "language_model.model", "language_model.output")["internlm2"]
_TRANSFORMERS = _tables({sat: _in_transformers(row) for sat, row in _VISION.items()}, "model.language_model", "lm_head")

_NO_WEIGHT = re.compile(r"\.rotary_emb\.inv_freq$")
_RENAMED = (
    (re.compile(r"^language_model\.model\."), "model.language_model."),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^(vision_tower|multi_modal_projector)\."), r"model.\1."),
)
"""Names in folders that transformers 4 wrote."""


def original_name(name: str) -> str | None:
    """A name in a release; None for tables, which follow from the sizes."""
    return None if _NO_WEIGHT.search(name) else name


def name_in_transformers(name: str) -> str | None:
    """A name in a folder of transformers', whichever version wrote it; None for tables."""
    for pattern, instead in _RENAMED:
        name = pattern.sub(instead, name)
    return original_name(name)


def _original_keys(config: InternVLConfig) -> KeyTable:
    return _ORIGINAL[config.language]


def _transformers_keys(config: InternVLConfig) -> KeyTable:
    return _TRANSFORMERS[LANGUAGES[config.language].in_transformers]


FORM = HFForm(
    architecture="InternVLForConditionalGeneration",
    model_class="InternVLModel",
    config_class=InternVLConfig,
    keys=_transformers_keys,
    versions={},
    sizes_to_sat=sizes.from_transformers,
    sizes_to_hf=sizes.to_transformers,
    canonical=name_in_transformers,
    layout="transformers",
    reads_tokens=True,
    processor=hf_processor,
)
ORIGINAL = HFForm(
    architecture="InternVLChatModel",
    model_class="InternVLModel",
    config_class=InternVLConfig,
    keys=_original_keys,
    versions={},
    sizes_to_sat=sizes.from_original,
    sizes_to_hf=sizes.to_original,
    canonical=original_name,
    reads_tokens=True,
)
