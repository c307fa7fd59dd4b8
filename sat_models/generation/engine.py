"""Prefill and decode: inputs in, token ids out, one by one or in batches.

The engine knows no text, files or terminals. Under model parallelism every process of a group runs the same engine;
the first one chooses the tokens, the others receive them, so they never disagree.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mixins.kv_cache import CACHE_NAME, KVCacheMixin, kv_cache
from sat_models.errors import InputError
from sat_models.generation.prefixes import PrefixCache
from sat_models.generation.results import FinishReason, GenerationResult, TokenStream, complete, text_pieces
from sat_models.generation.sampling import SamplingOptions
from sat_models.generation.steps.choose import Stepper
from sat_models.generation.tokens import CANCELLED, StreamChooser
from sat_models.processing.inputs import VLMInputs

if TYPE_CHECKING:
    from sat_models.generation.session import BatchRow, BatchSession

__all__ = [
    "Engine",
    "FinishReason",
    "GenerationResult",
    "TokenStream",
    "complete",
    "evaluation_mode",
    "text_pieces",
]

logger = logging.getLogger(__name__)


class Engine:
    """Generates from one model.

    Args:
        model: a model of the zoo.
        eos_id: end token, or several.
        max_length: most tokens in all, prompt and image included.
        device: where the model lies.
        keep_prefixes: of how many answers of `tokens` the cache is kept, so that a prompt that begins like one of them
            (the next turn of a chat) is not computed from the start. Each costs the memory of a cache.
        graphs: on a GPU, decode through CUDA graphs where the model allows.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        eos_id: int | Collection[int],
        max_length: int,
        device: torch.device | str,
        keep_prefixes: int = 0,
        graphs: bool = True,
    ) -> None:
        self.model = model
        self.eos_ids = frozenset([eos_id] if isinstance(eos_id, int) else eos_id)
        self.max_length = max_length
        self.device = torch.device(device)
        self.prefixes = PrefixCache(keep_prefixes)
        self._graphs = graphs

    def tokens(self, inputs: VLMInputs, options: SamplingOptions | None = None) -> TokenStream:
        """Start an answer. The prompt is checked now; the model runs when the first token is asked for.

        Args:
            inputs: one prompt (batch of one), on any device.

        Raises:
            InputError: more than one prompt, or a prompt that leaves no room for an answer.
        """
        options = options or SamplingOptions()
        budget = self.budget(inputs, options)
        stream = TokenStream(inputs.length)
        stream.feed_from(self._run(inputs, options, budget, stream))
        return stream

    def session(self, *, max_rows: int = 16) -> BatchSession:
        """Answers that are decoded together, each of which may join and leave at any step: see `BatchSession`."""
        from sat_models.generation.session import BatchSession

        return BatchSession(self, max_rows=max_rows)

    def batch(
        self,
        inputs: Sequence[VLMInputs],
        options: SamplingOptions | Sequence[SamplingOptions] | None = None,
        *,
        max_rows: int = 16,
    ) -> list[BatchRow]:
        """Answer several prompts together; token ids are those of one answer after the other.

        Args:
            inputs: prompts (each a batch of one), with or without pictures, of any length.
            options: one for all, or one for each prompt.
            max_rows: how many are decoded at a time; memory for keys and values grows with it.

        Returns:
            One row per prompt, in order.

        Raises:
            InputError: a prompt that leaves no room for an answer, or another number of options.
            ZooError: logits that are not numbers.
        """
        each = list(options) if isinstance(options, Sequence) else [options] * len(inputs)
        if len(each) != len(inputs):
            raise InputError(f"{len(inputs)} prompts came with {len(each)} options; give one for all, or one for each.")
        with self.session(max_rows=max_rows) as session:
            numbers = [session.add(prompt, choice) for prompt, choice in zip(inputs, each, strict=True)]
            while session.running:
                session.step()
            rows = [session.remove(number) for number in numbers]
        for row in rows:
            if row.error is not None:
                raise row.error
        return rows

    def budget(self, inputs: VLMInputs, options: SamplingOptions) -> int:
        """How many tokens may be generated for one prompt.

        Raises:
            InputError: more than one prompt, or a prompt that leaves no room for an answer.
        """
        if inputs.batch_size != 1:
            raise InputError(f"The engine takes one prompt at a time; got a batch of {inputs.batch_size}.")
        prompt, limit = inputs.length, options.max_length or self.max_length
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

    @contextmanager
    def occupied(self) -> Iterator[Stepper]:
        """The model in evaluation mode, with a cache whose store the caller sets, exactly while the block runs.

        Raises:
            RuntimeError: it is generating already.
        """
        if CACHE_NAME in self.model.mixins:
            raise RuntimeError("this model is generating already; finish or close that answer first")
        with evaluation_mode(self.model), kv_cache(self.model, 0) as cache:
            yield Stepper(self.model, cache, graphs=self._graphs)

    @property
    def float_dtype(self) -> torch.dtype | None:
        """What the pixels must be cast to: the type of the weights, quantised ones aside."""
        return next((weight.dtype for weight in self.model.parameters() if weight.is_floating_point()), None)

    def _run(self, inputs: VLMInputs, options: SamplingOptions, budget: int, stream: TokenStream) -> Iterator[int]:
        """Yield ids."""
        layers, room = len(self.model.transformer.layers), inputs.length + budget
        with (
            self.occupied() as stepper,
            self.prefixes.store_for(inputs, room, layers, stream.token_ids) as (store, stream.cached_tokens),
        ):
            stepper.cache.store = store
            chooser = StreamChooser(options, self.device)
            logits, step = self._prefill(inputs, stream.cached_tokens, stepper.cache)
            for count in range(1, budget + 1):
                token, read = chooser.next_token(logits)
                if read == CANCELLED:
                    return
                if read in self.eos_ids:
                    chooser.announce(read)
                    stream.finish_reason = "stop"
                    return
                stream.token_ids.append(read)
                if count == budget:
                    stream.finish_reason = "length"
                yield from chooser.hand_out(read)
                if count < budget:
                    logits, step = self._decode(token, step, stepper)

    @torch.inference_mode()
    def _prefill(self, inputs: VLMInputs, cached: int, cache: KVCacheMixin) -> tuple[Tensor, _Step]:
        """The prompt behind its first `cached` tokens -> logits [1, V] after its last token."""
        highest = int(inputs.position_ids.max())
        mask = inputs.attention_mask
        inputs = inputs.to(self.device, self.float_dtype)
        given = inputs.model_kwargs()
        if cached:  # what is left is text
            given = {"input_ids": inputs.input_ids[:, cached:], "position_ids": inputs.position_ids[..., cached:]}
        output = self.model(**given, last_position_only=True, max_position=highest)
        cache.advance(inputs.length - cached)
        visible = None if mask is None else mask[:1, :, -1:].bool().to(self.device)
        return output[0][:, -1], _Step(highest + 1, self.model.next_positions(inputs.position_ids), visible)

    @torch.inference_mode()
    def _decode(self, token: Tensor, step: _Step, stepper: Stepper) -> tuple[Tensor, _Step]:
        """One more token [1], which sees all before it -> logits [1, V]. No vision weight is read."""
        visible = step.visible
        if visible is not None:
            visible = torch.cat((visible, visible.new_ones(1, 1, 1, 1)), dim=-1)
        logits = stepper(token, step.position_ids, visible, max_position=step.highest)
        following = self.model.next_positions(step.position_ids)
        return logits, _Step(step.highest + 1, following, visible)


@dataclass(frozen=True)
class _Step:
    """Where decoding stands. What the model reads is on its device, so that a step waits for nothing.

    Attributes:
        highest: upper bound of the next token's position ids, known on the host.
        position_ids: of the next token, [1, 1] ([1, 2, 1] for a GLM). They go on from the last ones of the prompt,
            which are less than the number of tokens, because the tokens of an image share a position.
        visible: [1, 1, 1, T], what the next token may look at, for prompts with a mask of their own; None: all.
    """

    highest: int
    position_ids: Tensor
    visible: Tensor | None


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
