"""A model as decoding sees it: where it lies, what ends an answer, how long a sequence may be, what it remembers."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mixins.cache_form import CacheForm
from mixins.kv_cache import CACHE_NAME, KVStore, kv_cache
from sat_models.errors import InputError
from sat_models.generation.answer import AnswerRow, Request
from sat_models.generation.prefixes import PrefixCache
from sat_models.generation.steps.choose import KERNELS, Stepper
from sat_models.generation.strict.guide import begin
from sat_models.processing.tokens import Tokenizer

logger = logging.getLogger(__name__)


class AnsweringModel:
    """The model as all sessions share it.

    Args:
        model: a model of the zoo.
        eos_id: end token, or several.
        max_length: most tokens in all, prompt and image included.
        device: where the model lies.
        tokenizer: reads the answers' text; without one answers are token ids, and stop strings are refused.
        keep_prefixes: of how many answers the cache is kept, so that a prompt that begins like one of them (the same
            picture, the next turn of a chat) is not computed from the start. Each costs the memory of a cache.
        prefix_bytes: most memory for all that is kept; None: as much as `keep_prefixes` caches take.
        graphs: on a GPU, decode through CUDA graphs where the model allows.
        kernels: "triton": decode through Triton's kernels where they serve the model, which is not the default as long
            as no GPU has shown them to be faster; None: the usual step.

    Raises:
        InputError: other kernels.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        eos_id: int | Collection[int],
        max_length: int,
        device: torch.device | str,
        tokenizer: Tokenizer | None = None,
        keep_prefixes: int = 0,
        prefix_bytes: int | None = None,
        graphs: bool = True,
        kernels: str | None = None,
    ) -> None:
        if kernels not in (None, *KERNELS):
            raise InputError(f"kernels is {kernels!r}; allowed: {', '.join(map(repr, KERNELS))} or None")
        self.model = model
        self.end_ids = frozenset([eos_id] if isinstance(eos_id, int) else eos_id)
        self.max_length = max_length
        self.device = torch.device(device)
        self.tokenizer = tokenizer
        self.prefixes = PrefixCache(keep_prefixes, max_bytes=prefix_bytes)
        self._graphs, self._kernels = graphs, kernels
        self._form: CacheForm | None = None  # chosen once: what is kept of one answer serves the next

    def row(self, request: Request) -> AnswerRow:
        """A row for a request, checked.

        Raises:
            InputError: more than one prompt, a prompt that leaves no room for an answer, stop strings or a constraint
                where there is no tokenizer to read text, or a constraint as `strict.guide.begin` refuses it.
        """
        if request.stops and self.tokenizer is None:
            raise InputError(f"The stop strings {request.stops!r} need a tokenizer; this engine was made without one.")
        decoder = None if self.tokenizer is None else self.tokenizer.stream()
        budget, guide = self._budget(request), None
        if request.constraint is not None:
            if self.tokenizer is None:
                raise InputError("A constraint needs a tokenizer; this engine was made without one.")
            guide = begin(request.constraint, self.tokenizer, request.lead, self.end_ids, budget)
        return AnswerRow(request, budget=budget, end_ids=self.end_ids, decoder=decoder, guide=guide)

    def _budget(self, request: Request) -> int:
        """How many tokens may be generated."""
        inputs, options = request.inputs, request.options
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
            stepper = Stepper(self.model, cache, graphs=self._graphs, kernels=self._kernels)
            if self._form is None:
                self._form = stepper.cache_form
            yield stepper

    def new_store(self, max_length: int) -> KVStore:
        """An empty one for so many tokens, once the model was `occupied`."""
        return KVStore(len(self.model.transformer.layers), max_length, self._form)

    @property
    def way(self) -> str:
        """The way that a decode step goes, as `Stepper.way`."""
        with self.occupied() as stepper:
            return stepper.way

    @property
    def float_dtype(self) -> torch.dtype | None:
        """The dtype that pixels must be cast to: the type of the weights, quantised ones aside."""
        return next((weight.dtype for weight in self.model.parameters() if weight.is_floating_point()), None)


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
