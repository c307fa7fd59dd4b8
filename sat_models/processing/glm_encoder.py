"""What CogView4 reads of a prompt: the last but one layer of GLM-4, as diffusers' pipeline runs it.

Legend: B prompts, T tokens, E text width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sat_models.errors import CheckpointError
from sat_models.processing.text_encoder import Load, require_transformers

logger = logging.getLogger(__name__)

_MULTIPLE = 16
"""Texts are padded in front to so many tokens; there is no attention mask."""


class GLMTextEncoder:
    """A `TextEncoder` of a language model.

    Args:
        model: of transformers; ids [B, T] -> an object with `hidden_states`.
        tokenizer: of transformers.
        length: most tokens.
        device: of the model.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, *, length: int, device: torch.device) -> None:
        self.model, self.tokenizer, self._length, self._device = model, tokenizer, length, device

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
    ) -> GLMTextEncoder:
        """From folders of transformers; arguments and errors as `T5TextEncoder.open`."""
        transformers = require_transformers()
        logger.info("opening the text encoder %s", folder)
        try:
            if load is None:
                model = transformers.AutoModel.from_pretrained(folder, dtype=dtype, local_files_only=True)
            else:
                sizes = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
                model = load(lambda: transformers.AutoModel.from_config(sizes))
            words = transformers.AutoTokenizer.from_pretrained(tokenizer.parent, local_files_only=True)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(f"{folder} holds no text encoder that can be read: {error!s:.300}") from error
        if model.config.hidden_size != width:
            raise CheckpointError(
                f"{folder} holds a model of width {model.config.hidden_size}, but this painter reads {width}: it "
                "belongs to another"
            )
        return cls(model.to(device).eval().requires_grad_(False), words, length=length, device=device)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """[B, T, E] on the CPU, T a multiple of 16 that the longest prompt needs."""
        rows = [self._ids(prompt)[: self._length] for prompt in prompts]
        longest = -(-max(map(len, rows)) // _MULTIPLE) * _MULTIPLE
        padded = [[self.tokenizer.pad_token_id] * (longest - len(row)) + row for row in rows]
        states = [self.model(torch.tensor([row], device=self._device), output_hidden_states=True) for row in padded]
        return torch.cat([state.hidden_states[-2].cpu() for state in states]).clone()

    def length(self, prompt: str) -> int:
        """See `TextEncoder`."""
        return len(self._ids(prompt))

    def cut(self, prompt: str) -> str:
        """See `TextEncoder`."""
        return self.tokenizer.decode(self._ids(prompt)[self._length :])

    def _ids(self, prompt: str) -> list[int]:
        return self.tokenizer(prompt).input_ids
