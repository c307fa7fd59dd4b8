"""MiniGPT-4's released files under SAT's names: Vicuna's, EVA's, BLIP-2's, and its own (`llama_proj`).

Names of EVA's file get the prefix `visual_encoder.`, as the original's modules have it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sat_models.models.common.hf_form import HFForm, Joined, KeyTable, Lifted
from sat_models.models.common.llama_keys import ROTARY_TABLE, llama_rows, llama_sizes
from sat_models.models.minigpt4.config import MiniGPT4Config

EVA_PREFIX = "visual_encoder."
_VIT, _VIT_LAYER = "mixins.eva.vit_model.vit", "mixins.eva.vit_model.vit.transformer.layers.{j}"
_QFORMER, _QFORMER_LAYER = "mixins.eva.vit_model.qformer", "mixins.eva.vit_model.qformer.transformer.layers.{j}"
_BLOCK, _BERT = "visual_encoder.blocks.{j}", "Qformer.bert.encoder.layer.{j}"

_SAME_PARTS = {
    f"{_VIT}.mixins.patch_embedding.proj": "visual_encoder.patch_embed.proj",
    f"{_VIT}.mixins.cls.ln_vision": "ln_vision",
    f"{_VIT_LAYER}.input_layernorm": f"{_BLOCK}.norm1",
    f"{_VIT_LAYER}.post_attention_layernorm": f"{_BLOCK}.norm2",
    f"{_VIT_LAYER}.attention.dense": f"{_BLOCK}.attn.proj",
    f"{_VIT_LAYER}.mlp.dense_h_to_4h": f"{_BLOCK}.mlp.fc1",
    f"{_VIT_LAYER}.mlp.dense_4h_to_h": f"{_BLOCK}.mlp.fc2",
    f"{_QFORMER_LAYER}.input_layernorm": "Qformer.norms.{j}",
    f"{_QFORMER}.transformer.final_layernorm": "Qformer.last_norm",
    f"{_QFORMER_LAYER}.attention.dense": f"{_BERT}.attention.output.dense",
    f"{_QFORMER_LAYER}.post_attention_layernorm": f"{_BERT}.attention.output.LayerNorm",
    f"{_QFORMER_LAYER}.cross_attention.query": f"{_BERT}.crossattention.self.query",
    f"{_QFORMER_LAYER}.cross_attention.dense": f"{_BERT}.crossattention.output.dense",
    f"{_QFORMER_LAYER}.post_cross_attention_layernorm": f"{_BERT}.crossattention.output.LayerNorm",
    f"{_QFORMER_LAYER}.mlp.dense_h_to_4h": f"{_BERT}.intermediate_query.dense",
    f"{_QFORMER_LAYER}.mlp.dense_4h_to_h": f"{_BERT}.output_query.dense",
    "mixins.eva.linear_proj": "llama_proj",
}
_JOINED = {
    f"{_QFORMER_LAYER}.attention.query_key_value": tuple(
        f"{_BERT}.attention.self.{x}" for x in ("query", "key", "value")
    ),
    f"{_QFORMER_LAYER}.cross_attention.key_value": tuple(f"{_BERT}.crossattention.self.{x}" for x in ("key", "value")),
}
KEYS = KeyTable(
    {
        **llama_rows("model", "lm_head"),
        f"{_VIT}.transformer.word_embeddings.weight": Lifted("visual_encoder.class_vector"),
        f"{_VIT}.transformer.position_embeddings.weight": "visual_encoder.positions",
        f"{_VIT_LAYER}.attention.query_key_value.weight": f"{_BLOCK}.attn.qkv.weight",
        f"{_VIT_LAYER}.attention.query_key_value.bias": Joined(tuple(f"{_BLOCK}.attn.{x}_bias" for x in "qkv")),
        f"{_QFORMER}.transformer.word_embeddings.weight": "queries",
        **{f"{sat}.{part}": f"{hf}.{part}" for sat, hf in _SAME_PARTS.items() for part in ("weight", "bias")},
        **{
            f"{sat}.{part}": Joined(tuple(f"{name}.{part}" for name in names))
            for sat, names in _JOINED.items()
            for part in ("weight", "bias")
        },
    },
    left_out=(ROTARY_TABLE,),
)

_NOT_READ = re.compile(
    r"^visual_encoder\.(norm|fc_norm|head|mask_token|rel_pos_bias|pooler)\b"  # heads of EVA's pre-training
    r"|^Qformer\.(cls|bert\.(pooler|embeddings\.(word_embeddings|position_embeddings|position_ids)))\b"
    r"|^Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\."  # the text side of the Q-Former
    r"|^(t5_proj|opt_proj|t5_model|opt_model|vision_proj|text_proj|itm_head|temp)\b|\.rotary_emb\.inv_freq$"
)
_EVA_BLOCK = re.compile(r"^visual_encoder\.blocks\.(\d+)\.")
_END_NORM = re.compile(r"^Qformer\.bert\.encoder\.layer\.(\d+)\.output_query\.LayerNorm\.")
_LORA = re.compile(r"^llama_model\.base_model\.model\.(.+)\.lora_([AB])(\.default)?\.weight$")


def renamed(found: Mapping[str, Tensor], config: MiniGPT4Config) -> dict[str, Tensor]:
    """The weights of the released files that the model needs, under the names of `KEYS`; unknown names stay.

    What differs from a mere renaming: EVA's blocks behind the last one used are left out, its keys get the bias 0 that
    it does without, and its positions are interpolated where pictures are larger; a Q-Former layer's last norm is the
    first of the next layer; LoRA of v2 (scale 16 / 64) is merged into Vicuna's weights.
    """
    weights: dict[str, Tensor] = {}
    layers = config.qformer_args.num_layers if config.qformer_args else 0
    for name, value in found.items():
        block, norm = _EVA_BLOCK.match(name), _END_NORM.match(name)
        if _NOT_READ.search(name) or _LORA.match(name) or (block and int(block[1]) >= config.eva_args.num_layers):
            continue
        if norm:
            after = int(norm[1]) + 1
            target = "Qformer.last_norm." if after == layers else f"Qformer.norms.{after}."
            weights[target + name[norm.end() :]] = value
        elif name.startswith("Qformer.bert.embeddings.LayerNorm."):
            weights["Qformer.norms.0." + name.rpartition(".")[2]] = value
        elif name == "visual_encoder.cls_token":
            weights["visual_encoder.class_vector"] = value.reshape(-1)
        elif name == "visual_encoder.pos_embed":
            weights["visual_encoder.positions"] = _interpolated(value[0], config.eva_args.num_patches)
        elif name == "query_tokens":
            weights["queries"] = value[0]
        else:
            weights[name] = value
        if name.endswith(".attn.q_bias"):
            weights[name.replace("q_bias", "k_bias")] = torch.zeros_like(value)
    return _with_lora(weights, found)


def _interpolated(positions: Tensor, patches: int) -> Tensor:
    """[1 + P, V] for another number of patches, as the original does it (bicubic)."""
    own, side = round((len(positions) - 1) ** 0.5), round(patches**0.5)
    if own == side:
        return positions
    grid = positions[1:].float().unflatten(0, (own, own)).permute(2, 0, 1)[None]
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)[0].permute(1, 2, 0).flatten(0, 1)
    return torch.cat((positions[:1], grid.to(positions.dtype)))


def _with_lora(weights: dict[str, Tensor], found: Mapping[str, Tensor], scale: float = 16 / 64) -> dict[str, Tensor]:
    matrices = {(match[1], match[2]): found[name] for name in found if (match := _LORA.match(name))}
    for layer in dict.fromkeys(layer for layer, _ in matrices):
        base, update = weights[f"{layer}.weight"], matrices[layer, "B"].float() @ matrices[layer, "A"].float()
        weights[f"{layer}.weight"] = (base.float() + scale * update).to(base.dtype)
    return weights


def _sizes_to_sat(data: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes from the language model's `config.json` beside those of the rest under SAT's names."""
    return {**data, **llama_sizes(data["llama"])}


FORM = HFForm(
    architecture="MiniGPT-4",
    model_class="MiniGPT4Model",
    config_class=MiniGPT4Config,
    keys=KEYS,
    versions={},
    sizes_to_sat=_sizes_to_sat,
)
