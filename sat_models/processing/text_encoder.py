"""From a prompt to what a painter reads of it: T5's encoder, as the originals run it (without attention mask).

Legend: B prompts, T tokens, E text width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sat_models.errors import CheckpointError, MissingPackageError

logger = logging.getLogger(__name__)

Load = Callable[[Callable[[], nn.Module]], nn.Module]
"""From what builds a model to the model with its weights."""
T5_TOKENIZERS = ("spiece.model", "tokenizer.json")
_PAD, _END = 0, 1


class TextEncoder(Protocol):
    """What a painter asks of its text encoder."""

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """[B, T, E], on the CPU; what is too long is cut."""

    def length(self, prompt: str) -> int:
        """Tokens of a prompt, those that are cut included."""

    def cut(self, prompt: str) -> str:
        """The end of a prompt that `encode` leaves out; mostly empty."""


class T5Words:
    """T5's tokenizer: pieces of text, the end token, padding. No text can make a special token.

    Args:
        file: `spiece.model` (sentencepiece), or `tokenizer.json` where there is no other.

    Raises:
        CheckpointError: the file cannot be read.
    """

    def __init__(self, file: Path) -> None:
        try:
            if file.suffix == ".json":
                from tokenizers import Tokenizer

                whole = Tokenizer.from_file(str(file))
                self._pieces = lambda text: whole.encode(text, add_special_tokens=False).ids
                self._text = whole.decode
            else:
                from sentencepiece import SentencePieceProcessor

                reader = SentencePieceProcessor(model_file=str(file))
                self._pieces, self._text = reader.encode, reader.decode
        except Exception as error:  # both libraries raise types of their own for a bad file
            raise CheckpointError(
                f"{file} is no tokenizer of T5 ({error!s:.160}). Copy or download it again."
            ) from error

    def ids(self, prompt: str, length: int) -> list[int]:
        """So many ids, the end token behind the text and padding behind it."""
        kept = [*self._pieces(prompt)[: length - 1], _END]
        return kept + [_PAD] * (length - len(kept))

    def length(self, prompt: str) -> int:
        """Tokens of a prompt with the end token."""
        return len(self._pieces(prompt)) + 1

    def cut(self, prompt: str, length: int) -> str:
        """The text that `ids` leaves out."""
        return self._text(self._pieces(prompt)[length - 1 :])


class T5TextEncoder:
    """A `TextEncoder` of T5.

    Args:
        model: ids [B, T] -> an object whose `last_hidden_state` is [B, T, E].
        words: the tokenizer.
        length: T.
        device: of the model.
    """

    def __init__(self, model: nn.Module, words: T5Words, *, length: int, device: torch.device) -> None:
        self.model, self.words, self._length, self._device = model, words, length, device

    @classmethod
    def open(
        cls,
        folder: Path,
        tokenizer: Path,
        *,
        length: int,
        width: int,
        device: torch.device,
        dtype: torch.dtype,
        load: Load | None = None,
    ) -> T5TextEncoder:
        """From a folder of transformers.

        Args:
            folder: `config.json` and weights.
            tokenizer: a file of `T5_TOKENIZERS`.
            length, width: T and E, as the painter reads them.
            load: given what builds the model, builds and fills it otherwise than transformers does, in 8 bits, say.

        Raises:
            MissingPackageError: without transformers.
            CheckpointError: not T5's weights, or of another width.
        """
        transformers = require_transformers()
        logger.info("opening the text encoder %s", folder)
        try:
            if load is None:
                model = transformers.T5EncoderModel.from_pretrained(folder, dtype=dtype, local_files_only=True)
            else:
                sizes = transformers.T5Config.from_pretrained(folder, local_files_only=True)
                model = load(lambda: transformers.T5EncoderModel(sizes))
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{folder} holds no encoder of T5 that can be read: {error!s:.300}") from error
        if model.config.d_model != width:
            raise CheckpointError(
                f"{folder} holds a T5 of width {model.config.d_model}, but this painter reads {width}: it belongs to "
                "another model"
            )
        ready = model.to(device).eval().requires_grad_(False)
        return cls(ready, T5Words(tokenizer), length=length, device=device)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """See `TextEncoder`; one prompt at a time, so that memory does not grow with their number."""
        rows = [torch.tensor([self.words.ids(prompt, self._length)], device=self._device) for prompt in prompts]
        return torch.cat([self.model(input_ids=row).last_hidden_state.cpu() for row in rows]).clone()

    def length(self, prompt: str) -> int:
        """See `TextEncoder`."""
        return self.words.length(prompt)

    def cut(self, prompt: str) -> str:
        """See `TextEncoder`."""
        return self.words.cut(prompt, self._length)


def require_transformers() -> Any:
    """The package. Raises MissingPackageError."""
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError("transformers", "draw", "T5, the text encoder of a painter,") from error
    return transformers
