"""GLM-4's tokenizer: a file in tiktoken's form, and special tokens beside it."""

from __future__ import annotations

import os

from sat_models.models.glm4v.config import GLM4VConfig
from sat_models.processing.byte_tokens import TiktokenTokenizer, added_tokens

SPECIALS = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
)  # fmt: skip
"""In the order of their ids."""


def glm4_tokenizer(config: GLM4VConfig, path: str | os.PathLike[str]) -> TiktokenTokenizer:
    """The tokenizer of a file; where no `tokenizer_config.json` lies beside it, the special tokens are the released
    ones, from the model's pad token on. Raises as `TiktokenTokenizer.from_file`."""
    ids = dict(zip(SPECIALS, range(config.pad_token_id, config.pad_token_id + len(SPECIALS)), strict=True))
    specials = added_tokens(os.path.dirname(path)) or ids
    return TiktokenTokenizer.from_file(path, specials=specials, ends=config.eos_token_ids, pad=config.pad_token_id)
