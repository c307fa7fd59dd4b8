"""LLaVA as llama.cpp reads it: `model.gguf`, the language model with its tokenizer; `mmproj.gguf`, tower and projector.

Names and keys are those of llama.cpp's architectures "llama" and "clip" (`gguf-py/gguf/constants.py` and
`tools/mtmd/clip.cpp` of its repository). Queries and keys are ordered as its rotation takes them: both halves of a head
interleaved.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sat_models.checkpoint.huggingface import form_of_class
from sat_models.checkpoint.output import check_output, check_room, new_folder
from sat_models.checkpoint.source import EMBEDDING, Opened, Source
from sat_models.errors import ConfigError, MissingPackageError
from sat_models.models.common.hf_form import KeyTable
from sat_models.models.common.quantisation import QUANTISATION_KEY
from sat_models.models.families import prompt_style
from sat_models.processing.chat_template import chat_template
from sat_models.processing.sentencepiece_json import piece_table
from sat_models.processing.tokens import SentencePieceTokenizer

MODEL_FILE, TOWER_FILE = "model.gguf", "mmproj.gguf"
MEDIA = "<__media__>"
"""What stands in a prompt of llama.cpp's where an image goes."""
_MODEL_CLASS = "LLaVAModel"
_NAMES = (
    (r"^language_model\.model\.embed_tokens\.", "token_embd."),
    (r"^language_model\.model\.norm\.", "output_norm."),
    (r"^language_model\.lm_head\.", "output."),
    (r"^language_model\.model\.layers\.(\d+)\.self_attn\.([qkv])_proj\.", r"blk.\1.attn_\2."),
    (r"^language_model\.model\.layers\.(\d+)\.self_attn\.o_proj\.", r"blk.\1.attn_output."),
    (r"^language_model\.model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\.", r"blk.\1.ffn_\2."),
    (r"^language_model\.model\.layers\.(\d+)\.input_layernorm\.", r"blk.\1.attn_norm."),
    (r"^language_model\.model\.layers\.(\d+)\.post_attention_layernorm\.", r"blk.\1.ffn_norm."),
    (r"^vision_tower\.vision_model\.embeddings\.class_embedding$", "v.class_embd"),
    (r"^vision_tower\.vision_model\.embeddings\.patch_embedding\.", "v.patch_embd."),
    (r"^vision_tower\.vision_model\.embeddings\.position_embedding\.", "v.position_embd."),
    (r"^vision_tower\.vision_model\.pre_layrnorm\.", "v.pre_ln."),
    (r"^vision_tower\.vision_model\.post_layernorm\.", "v.post_ln."),
    (r"^vision_tower\.vision_model\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.", r"v.blk.\1.attn_\2."),
    (r"^vision_tower\.vision_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"v.blk.\1.attn_out."),
    (r"^vision_tower\.vision_model\.encoder\.layers\.(\d+)\.layer_norm([12])\.", r"v.blk.\1.ln\2."),
    (r"^vision_tower\.vision_model\.encoder\.layers\.(\d+)\.mlp\.fc1\.", r"v.blk.\1.ffn_up."),
    (r"^vision_tower\.vision_model\.encoder\.layers\.(\d+)\.mlp\.fc2\.", r"v.blk.\1.ffn_down."),
    (r"^multi_modal_projector\.linear_1\.", "mm.0."),
    (r"^multi_modal_projector\.linear_2\.", "mm.2."),
)
"""transformers' names -> llama.cpp's."""
_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def save_gguf(source: Source, folder: Path, *, dtype: torch.dtype | None = None, overwrite: bool = False) -> Path:
    """Write both files, one weight in memory at a time. llama.cpp's own `llama-quantize` makes smaller ones of them.

    Args:
        source: a LLaVA 1.5 with the tokenizer beside it.
        folder: must not exist, or be empty.
        dtype: of matrices; None keeps the stored one. Vectors are fp32.
        overwrite: a folder that was written so may give way, as a whole.

    Raises:
        ConfigError: another model, quantised weights, or no tokenizer.
        CheckpointError: a folder that may not be written.
        MissingPackageError: without gguf.
    """
    _gguf()
    config = source.config
    if config.model_class != _MODEL_CLASS:
        raise ConfigError(
            f"{config.model_class} is not written for llama.cpp, {_MODEL_CLASS} (1.5) is; other families go --to hf"
        )
    check_output(folder, overwrite=overwrite, read=source.files())
    opened = source.open()
    plan = _Plan.of(opened, dtype)
    check_room(folder, sum(plan.bytes.values()))
    with new_folder(folder, last=MODEL_FILE) as staging:
        for name, describe in ((TOWER_FILE, _describe_tower), (MODEL_FILE, _describe_model)):
            plan.write(staging / name, describe, tower=name == TOWER_FILE)
    return folder


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise MissingPackageError("gguf", "gguf", "Writing files of llama.cpp") from error
    return gguf


@dataclass
class _Plan:
    """What is written.

    Attributes:
        config: typed, of a LLaVA 1.5.
        keys: between SAT's names and transformers'.
        tokenizer: its sentencepiece model.
        sources: name in the files -> its name in transformers' form.
        bytes: of each on disk.
        kind: dtype of matrices.
    """

    opened: Opened
    config: Any
    keys: KeyTable
    tokenizer: SentencePieceTokenizer
    sources: dict[str, str]
    bytes: dict[str, int]
    kind: torch.dtype

    @classmethod
    def of(cls, opened: Opened, dtype: torch.dtype | None) -> _Plan:
        """Raises ConfigError."""
        if QUANTISATION_KEY in opened.config:
            raise ConfigError("quantised weights are not written for llama.cpp; convert those in full precision")
        if opened.tokenizer_file is None:
            raise ConfigError("llama.cpp keeps the tokenizer with the model: put tokenizer.model beside the weights")
        form = form_of_class(_MODEL_CLASS)
        form.config_to_hf(opened.config)
        config, kind = opened.model.config, opened.kind(EMBEDDING, dtype)
        keys = form.keys_of(opened.config)
        names = [hf for sat in opened.weights.names for hf in keys.all_hf(sat, config.num_layers)]
        plan = cls(opened, config, keys, SentencePieceTokenizer.from_file(opened.tokenizer_file), {}, {}, kind)
        plan.sources = {_name(hf): hf for hf in names}
        plan.bytes = {name: value.numel() * plan.kind_of(value).itemsize for name, value in plan.shapes().items()}
        return plan

    def shapes(self) -> dict[str, Tensor]:
        """Tensors without memory, by names in the files."""
        empty = {name: value.to("meta") for name, value in self.opened.model.state_dict().items()}
        return {name: self._value(hf, lambda sat: empty[sat]) for name, hf in self.sources.items()}

    def kind_of(self, value: Tensor) -> torch.dtype:
        """Dtype of a tensor on disk: matrices alone may be short."""
        return self.kind if value.ndim > 1 else torch.float32

    def write(self, file: Path, describe: Callable[[_Plan, Any], None], *, tower: bool) -> None:
        """Write one of the files."""
        gguf = _gguf()
        writer = gguf.GGUFWriter(str(file), "clip" if tower else "llama")
        describe(self, writer)
        mine = {name: value for name, value in self.shapes().items() if name.startswith(("v.", "mm.")) == tower}
        for name, value in mine.items():
            kind = gguf.GGMLQuantizationType[_TYPES[self.kind_of(value)]]
            shape = gguf.quant_shape_to_byte_shape(value.shape, kind) if kind.name == "BF16" else tuple(value.shape)
            stored = {"F32": "float32", "F16": "float16", "BF16": "uint8"}[kind.name]
            writer.add_tensor_info(name, shape, gguf.np.dtype(stored), self.bytes[name], raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        weights = self.opened.weights
        for name in mine:
            value = self._value(self.sources[name], lambda sat: weights.part(sat, dtype=torch.float32).read())
            kind = gguf.GGMLQuantizationType[_TYPES[self.kind_of(value)]]
            writer.write_tensor_data(gguf.quants.quantize(value.contiguous().numpy(), kind))
        writer.close()

    def _value(self, hf: str, read: Callable[[str], Tensor]) -> Tensor:
        value = self.keys.hf_value(hf, *(read(place.name) for place in self.keys.places(hf)))
        heads = self.config.heads
        count = {"q_proj": heads.num_heads, "k_proj": heads.num_kv_heads}.get(hf.split(".")[-2])
        return interleaved(value, count) if count and hf.startswith("language_model") else value


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys, whose rotation turns row i with row i + half, for one that turns neighbours."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape)


def _name(hf: str) -> str:
    for pattern, instead in _NAMES:
        if re.match(pattern, hf):
            return re.sub(pattern, instead, hf)
    raise ValueError(f"{hf} has no name in llama.cpp's files")


def _describe_model(plan: _Plan, writer: Any) -> None:
    config, heads = plan.config, plan.config.heads
    writer.add_context_length(config.max_sequence_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.inner_hidden_size)
    writer.add_head_count(heads.num_heads)
    writer.add_head_count_kv(heads.num_kv_heads)
    writer.add_key_length(heads.head_dim)
    writer.add_value_length(heads.head_dim)
    writer.add_rope_dimension_count(heads.head_dim)
    writer.add_rope_freq_base(heads.rope_theta)
    writer.add_layer_norm_rms_eps(config.layernorm_epsilon)
    writer.add_vocab_size(config.vocab_size)
    table = piece_table(plan.opened.tokenizer_file)
    more = config.vocab_size - len(table.pieces)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*table.pieces, *(f"<unused_{number}>" for number in range(more))])
    writer.add_token_scores([*table.scores, *[-1000.0] * more])
    writer.add_token_types([*table.types, *[_gguf().TokenType.UNUSED] * more])
    writer.add_add_space_prefix(table.adds_space)
    writer.add_remove_extra_whitespaces(table.fewer_spaces)
    writer.add_bos_token_id(plan.tokenizer.bos_id)
    writer.add_eos_token_id(plan.tokenizer.eos_id)
    writer.add_unk_token_id(plan.tokenizer.pieces.unk_id())
    writer.add_add_bos_token(True)
    style = prompt_style(config.text_processor_version or config.DEFAULT_VERSION)
    writer.add_chat_template(chat_template(style, image=MEDIA, begin=False))


def _describe_tower(plan: _Plan, writer: Any) -> None:
    config, tower, images = plan.config, plan.config.eva_args, plan.config.images.processing
    layer = tower.feature_layer
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_image_size(config.image_size)
    writer.add_vision_patch_size(tower.patch_size)
    writer.add_vision_embedding_length(tower.hidden_size)
    writer.add_vision_feed_forward_length(tower.inner_hidden_size)
    writer.add_vision_block_count(tower.num_layers)
    writer.add_vision_head_count(tower.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(tower.layernorm_epsilon)
    writer.add_vision_projection_dim(config.hidden_size)
    writer.add_vision_image_mean(list(images.mean))
    writer.add_vision_image_std(list(images.std))
    writer.add_bool("clip.use_gelu", False)  # CLIP's is the quick one, which stands for neither
    writer.add_array("clip.vision.feature_layer", [layer if layer >= 0 else tower.num_layers + 1 + layer])
