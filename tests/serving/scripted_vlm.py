"""A `VLM` without weights that gives scripted tokens, whatever it is asked: what ends an answer can be tried out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sat_models.config import SquareImages
from sat_models.models.families import prompt_styles
from sat_models.processing.processor import Processor
from sat_models.zoo.vlm import VLM

BOS, EOS, FIRST, VOCAB = 1, 2, 70_000, 70_064
"""Ids from FIRST on are the script's; lower ones, from 3 on, are characters."""


class ScriptedTokenizer:
    """Characters as ids for what is asked, and tokens of any text for what is said."""

    vocab_size, bos_id, eos_id, eos_ids, pad_id = VOCAB, BOS, EOS, (EOS,), 0

    def __init__(self) -> None:
        self.script: Sequence[str] = ()

    def encode(self, text: str) -> list[int]:
        return [3 + ord(letter) % 60_000 for letter in text]

    def special_id(self, name: str) -> int:
        return 61_000 + sum(map(ord, name)) % 1000

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.script[token - FIRST] for token in ids)

    def stream(self) -> SimpleNamespace:
        return SimpleNamespace(push=lambda token: self.decode([token]), flush=lambda: "")


class ScriptedWeights(nn.Module):
    """Any prompt is followed by the script's first token, each of its tokens by the next, the last by the end token."""

    def __init__(self, tokenizer: ScriptedTokenizer) -> None:
        super().__init__()
        self.tokenizer, self.computed = tokenizer, []
        self.weight = nn.Parameter(torch.zeros(1))
        self.transformer = nn.Module()
        self.transformer.layers = [None]
        self.mixins: dict[str, Any] = {}

    def add_mixin(self, name: str, mixin: Any) -> None:
        self.mixins[name] = mixin

    def del_mixin(self, name: str) -> None:
        del self.mixins[name]

    def next_positions(self, position_ids: Tensor) -> Tensor:
        return position_ids[:, -1:] + 1

    def forward(self, input_ids: Tensor, position_ids: Tensor, *_: Any, **kwargs: Any) -> list[Tensor]:
        (cache,) = self.mixins.values()
        cache.store.append(0, *[input_ids[:, None, :, None].float()] * 2)
        self.computed.append(input_ids.shape[1])
        ends = kwargs.get("last_positions")
        last = input_ids[:, -1] if ends is None else input_ids.gather(1, ends[:, None])[:, 0]
        following = [FIRST if token < FIRST else token + 1 for token in last.tolist()]
        said = [EOS if token - FIRST == len(self.tokenizer.script) else token for token in following]
        return [torch.nn.functional.one_hot(torch.tensor(said), VOCAB).float()[:, None]]


def scripted_vlm(model_class: str = "CogVLMModel") -> VLM:
    """Say what it shall say in `vlm.processor.tokenizer.script`."""
    tokenizer = ScriptedTokenizer()
    processor = Processor(
        tokenizer, images=SquareImages(side=8, length=4), styles=prompt_styles(), version="chat", max_length=1024
    )
    model = ScriptedWeights(tokenizer).eval()
    cpu = torch.device("cpu")
    config = SimpleNamespace(model_class=model_class)
    return VLM(model, processor, config, device=cpu, dtype=torch.float32, checkpoint=None)
