"""Prefill and decode: inputs in, token ids out, one by one.

The engine knows no text, files or terminals. Under model parallelism every process of a group runs the same engine;
the first one chooses the tokens, the others receive them, so they never disagree.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mixins.kv_cache import CACHE_NAME, KVCacheMixin, kv_cache
from mixins.sat_compat import mpu
from sat_models.errors import InputError, ZooError
from sat_models.generation.sampling import NO_TOKEN, SamplingOptions, sample
from sat_models.processing.layout import VLMInputs
from sat_models.processing.tokens import StreamDecoder, Tokenizer

logger = logging.getLogger(__name__)

FinishReason = Literal["stop", "length"]
_CANCELLED = -2


@dataclass(frozen=True)
class GenerationResult:
    """A finished answer.

    Attributes:
        text: the answer.
        token_ids: what was generated, the end token excluded.
        finish_reason: "stop": the model ended; "length": `max_new_tokens` or `max_length` cut it off.
        prompt_tokens: tokens of the prompt, image included.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    prompt_tokens: int = 0


class TokenStream(Iterator[int]):
    """Token ids of one answer as they are made. Iterate it to the end, or `close` it.

    Attributes:
        token_ids: ids given out so far, the end token excluded.
        finish_reason: None until the end, and after `close`.
        prompt_tokens: tokens of the prompt, image included.
    """

    def __init__(self, prompt_tokens: int) -> None:
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.prompt_tokens = prompt_tokens
        self._source: Iterator[int] = iter(())

    def __next__(self) -> int:
        return next(self._source)

    def close(self) -> None:
        """Stop generating, on all processes, and take the cache off the model."""
        getattr(self._source, "close", lambda: None)()

    def feed_from(self, source: Iterator[int]) -> None:
        """Take the ids from `source`, a generator."""
        self._source = source

    def wrap(self, around: Callable[[Iterator[int]], Iterator[int]]) -> None:
        """Put a generator around the source: code before the first token, after the last one, or on failure."""
        self._source = around(self._source)


class Engine:
    """Generates from one model, one prompt at a time.

    Args:
        model: a model of the zoo.
        eos_id: end token, or several.
        max_length: most tokens in all, prompt and image included.
        device: where the model lies.
    """

    def __init__(
        self, model: nn.Module, *, eos_id: int | Collection[int], max_length: int, device: torch.device | str
    ) -> None:
        self.model = model
        self.eos_ids = frozenset([eos_id] if isinstance(eos_id, int) else eos_id)
        self.max_length = max_length
        self.device = torch.device(device)

    def tokens(self, inputs: VLMInputs, options: SamplingOptions | None = None) -> TokenStream:
        """Start an answer. The prompt is checked now; the model runs when the first token is asked for.

        Args:
            inputs: one prompt (batch of one), on any device.

        Raises:
            InputError: more than one prompt, or a prompt that leaves no room for an answer.
        """
        options = options or SamplingOptions()
        if inputs.batch_size != 1:
            raise InputError(f"The engine takes one prompt at a time; got a batch of {inputs.batch_size}.")
        stream = TokenStream(inputs.length)
        stream.feed_from(self._run(inputs, options, self._budget(inputs.length, options), stream))
        return stream

    def _budget(self, prompt: int, options: SamplingOptions) -> int:
        """How many tokens may be generated."""
        limit = options.max_length or self.max_length
        if limit > self.max_length:
            logger.warning(
                "max_length %d is more than this model's %d; using %d", limit, self.max_length, self.max_length
            )
            limit = self.max_length
        if prompt >= limit:
            raise InputError(
                f"The prompt takes {prompt} tokens, image included, but max_length is {limit} with the answer. Shorten "
                f"the question or the history, or raise max_length (at most {self.max_length} for this model)."
            )
        return min(limit - prompt, options.max_new_tokens or limit)

    def _run(self, inputs: VLMInputs, options: SamplingOptions, budget: int, stream: TokenStream) -> Iterator[int]:
        """Yield ids. The model carries a cache and is in evaluation mode exactly while this is running."""
        if CACHE_NAME in self.model.mixins:
            raise RuntimeError("this model is generating already; finish or close that answer first")
        with evaluation_mode(self.model), kv_cache(self.model, inputs.length + budget) as cache:
            chooser = _Chooser(options, self.device)
            logits, step = self._prefill(inputs, cache)
            for count in range(1, budget + 1):
                token = chooser.next_token(logits)
                if token == _CANCELLED:
                    return
                if token in self.eos_ids:
                    chooser.announce(token)
                    stream.finish_reason = "stop"
                    return
                stream.token_ids.append(token)
                if count == budget:
                    stream.finish_reason = "length"
                yield from chooser.hand_out(token)
                if count < budget:
                    logits, step = self._decode(token, step, cache)

    @torch.inference_mode()
    def _prefill(self, inputs: VLMInputs, cache: KVCacheMixin) -> tuple[Tensor, _Step]:
        """All of the prompt -> logits [1, V] after its last token."""
        last_position = int(inputs.position_ids[0, -1])
        highest = int(inputs.position_ids.max())
        mask = inputs.attention_mask
        inputs = inputs.to(self.device, _float_dtype(self.model))
        output = self.model(**inputs.model_kwargs(), last_position_only=True, max_position=highest)
        cache.advance(inputs.length)
        visible = None if mask is None else mask[:1, :, -1:].to(self.device)
        return output[0][:, -1], _Step(position=last_position + 1, visible=visible)

    @torch.inference_mode()
    def _decode(self, token: int, step: _Step, cache: KVCacheMixin) -> tuple[Tensor, _Step]:
        """One more token, which sees all before it -> logits [1, V]. No vision weight is read."""
        visible = step.visible
        if visible is not None:
            visible = torch.cat((visible, visible.new_ones(1, 1, 1, 1)), dim=-1)
        output = self.model(
            torch.tensor([[token]], device=self.device),
            torch.tensor([[step.position]], device=self.device),
            visible,
            last_position_only=True,
            max_position=step.position,
        )
        cache.advance(1)
        return output[0][:, -1], replace(step, position=step.position + 1, visible=visible)


@dataclass(frozen=True)
class _Step:
    """Where decoding stands.

    Attributes:
        position: position id of the next token. It goes on from the last one of the prompt, which is less than the
            number of tokens, because the tokens of an image share a position.
        visible: [1, 1, 1, T], what the next token may look at, for prompts with a mask of their own; None: all.
    """

    position: int
    visible: Tensor | None


class _Chooser:
    """Chooses tokens, the same on all processes that share the model.

    The first process samples and gives its caller each token *before* it tells the others, who wait. So when the
    caller stops in the middle (`close`, a client gone, an error), the others hear that instead of the token and stop
    too, and nobody is left alone in the next forward pass.
    """

    def __init__(self, options: SamplingOptions, device: torch.device) -> None:
        self._options, self._device = options, device
        self._group = _model_group()
        self._source = mpu.get_model_parallel_src_rank() if self._group is not None else 0
        self._chooses = self._group is None or dist.get_rank() == self._source
        self._generator = options.make_generator(device) if self._chooses else None
        self._history: list[int] = []

    def next_token(self, logits: Tensor) -> int:
        """The token after logits [1, V]; `_CANCELLED` when the first process has stopped."""
        token = self._sample(logits) if self._chooses else self._receive()
        if token == NO_TOKEN:
            self.announce(token)
            raise ZooError(
                f"The model gave logits that are not numbers (dtype {str(logits.dtype).removeprefix('torch.')}). fp16 "
                "overflows in some models: load with --bf16 or --fp32. Otherwise the weights are damaged."
            )
        self._history.append(token)
        return token

    def hand_out(self, token: int) -> Iterator[int]:
        """Yield the token to the caller, then tell the other processes to go on, or to stop if the caller did."""
        told = _CANCELLED
        try:
            yield token
            told = token
        finally:
            self.announce(told)

    def announce(self, token: int) -> None:
        """Send from the first process; nothing on the others."""
        if self._group is not None and self._chooses:
            dist.broadcast(torch.tensor([token], device=self._device), src=self._source, group=self._group)

    def _receive(self) -> int:
        box = torch.zeros(1, dtype=torch.long, device=self._device)
        dist.broadcast(box, src=self._source, group=self._group)
        return int(box)

    @torch.inference_mode()
    def _sample(self, logits: Tensor) -> int:
        history = None
        if self._options.repetition_penalty != 1.0:
            history = torch.tensor([self._history], dtype=torch.long, device=logits.device)
        return int(sample(logits, self._options, self._generator, history))


def text_pieces(tokens: Iterable[int], decoder: StreamDecoder) -> Iterator[str]:
    """Token ids -> pieces of text as soon as they are certain; never half a character. Joined they are the answer."""
    for token in tokens:
        if piece := decoder.push(token):
            yield piece
    if rest := decoder.flush():
        yield rest


def complete(stream: TokenStream, tokenizer: Tokenizer) -> GenerationResult:
    """Run a stream to its end."""
    for _ in stream:
        pass
    return GenerationResult(
        text=tokenizer.decode(stream.token_ids),
        token_ids=stream.token_ids,
        finish_reason=stream.finish_reason or "stop",
        prompt_tokens=stream.prompt_tokens,
    )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """No dropout inside the block; afterwards each module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _model_group() -> Any:
    """The processes that share one model; None when this process holds all of it."""
    if not mpu.model_parallel_is_initialized() or mpu.get_model_parallel_world_size() == 1:
        return None
    return mpu.get_model_parallel_group()


def _float_dtype(model: nn.Module) -> torch.dtype | None:
    """What the pixels must be cast to: the type of the weights, quantised ones aside."""
    return next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), None)
