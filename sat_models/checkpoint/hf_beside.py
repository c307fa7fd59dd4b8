"""The files of a Hugging Face folder besides config and weights, of models that transformers has a class for.

`AutoProcessor` and servers take the folder as it is: processor, tokenizer, chat template and generation config.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sat_models.config import LanguageConfig
from sat_models.errors import ConfigError, InputError
from sat_models.files import copy_file, write_json, write_text
from sat_models.models.common.hf_form import HFForm
from sat_models.models.common.hf_processor import HFProcessor
from sat_models.models.families import family_of, prompt_style
from sat_models.processing.byte_tokens import added_tokens
from sat_models.processing.chat_template import chat_template
from sat_models.processing.sentencepiece_json import added_token, sentencepiece_json
from sat_models.processing.tokens import SentencePieceTokenizer, Tokenizer

logger = logging.getLogger(__name__)

TOKENIZER_JSON = "tokenizer.json"


@dataclass(frozen=True)
class Beside:
    """What lies beside the weights.

    Attributes:
        processor: in transformers' terms; its config is that of the model as it is written.
        tokenizer: that of the file.
        content: of the `tokenizer.json`; None: the file is one.
        file: the tokenizer's.
        added: special tokens that stand beside its vocabulary: name to id.
    """

    processor: HFProcessor
    tokenizer: Tokenizer
    content: dict[str, Any] | None
    file: Path
    added: Mapping[str, int]

    def write(self, folder: Path) -> None:
        """Write it. Raises OSError."""
        if self.content is None:
            copy_file(self.file, folder / TOKENIZER_JSON)
        else:
            write_text(folder / TOKENIZER_JSON, json.dumps(self.content, ensure_ascii=False))
        config, names = self.processor.config, _names(self.tokenizer, self.added)
        begin = self.tokenizer.bos_id
        ids = {"bos_token": begin, "eos_token": self.tokenizer.eos_id, "pad_token": config.pad_token_id}
        write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "processor_class": self.processor.processor["processor_class"],
                "clean_up_tokenization_spaces": False,
                "model_max_length": config.max_sequence_length,
                **{name: names.get(token) for name, token in ids.items()},
                **({} if begin is not None else {"add_bos_token": False}),
                "added_tokens_decoder": {
                    str(number): {key: value for key, value in added_token(name, number).items() if key != "id"}
                    for name, number in sorted(self.added.items(), key=lambda item: item[1])
                },
                "extra_special_tokens": dict(self.processor.token_names),
            },
        )
        style = prompt_style(config.text_processor_version or config.DEFAULT_VERSION)
        if (system := config.system_message) is not None and style.system is not None:  # else it has no place for one
            style = replace(style, system=system)
        template = chat_template(style, image=self.processor.image, begin=begin is not None)
        write_text(folder / "chat_template.jinja", template)
        write_json(folder / "processor_config.json", dict(self.processor.processor))
        write_json(folder / "preprocessor_config.json", dict(self.processor.images))
        ends = [*self.tokenizer.eos_ids]
        write_json(
            folder / "generation_config.json",
            {
                "bos_token_id": begin if begin is not None else config.bos_token_id,
                "eos_token_id": ends if len(ends) > 1 else ends[0],
                "pad_token_id": config.pad_token_id,
                "do_sample": False,
            },
        )


def plan_beside(form: HFForm, config: Mapping[str, Any], file: Path | None) -> Beside | None:
    """What a folder of this form will hold; None, and a word about it, where transformers has no such processor.

    Args:
        config: content of a `model_config.json`.
        file: the tokenizer's; None where there is none.
    """
    if form.processor is None:
        return None
    if file is None:
        logger.warning("no tokenizer lies beside the weights, so the folder gets no processor: AutoProcessor needs one")
        return None
    typed: LanguageConfig = form.config_class.from_dict(dict(config))
    tokenizer = family_of(typed.model_class).tokenizer(typed, file)
    try:
        processor = form.processor(typed, tokenizer.vocab_size)
        added = {**added_tokens(file.parent), **processor.added}
        content = None if file.suffix == ".json" else sentencepiece_json(file, added)
        return Beside(processor, tokenizer, content, file, added)
    except (ConfigError, InputError) as error:
        logger.warning("the folder gets no processor: %s", error)
        return None


def _names(tokenizer: Tokenizer, added: Mapping[str, int]) -> dict[int, str]:
    """Names of special tokens by their ids."""
    own = {}
    if isinstance(tokenizer, SentencePieceTokenizer):
        pieces = tokenizer.pieces
        special = (n for n in range(pieces.get_piece_size()) if pieces.IsControl(n) or pieces.IsUnknown(n))
        own = {number: pieces.IdToPiece(number) for number in special}
    return {**own, **{number: name for name, number in added.items()}}
