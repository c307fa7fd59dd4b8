"""The memory of a model's backward pass, found without computing anything: a forward pass over tensors that have
shapes and no memory, with a count of what autograd holds on to. So it knows every model, plan and checkpointing flag.

Legend: B batch, S tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from mixins.base import ZooModel
from mixins.packed_attention import PACKED_NAME
from sat_models.processing.example import Images, example_inputs, room_for_text
from sat_models.processing.inputs import VLMInputs
from sat_models.processing.layout import collate
from sat_models.training.engine import recompute

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""Attention that keeps no S x S matrix. CPU and GPU have it; on meta, torch would take one that does."""


@dataclass(frozen=True)
class Activations:
    """Bytes on one rank.

    Attributes:
        kept: held from forward to backward.
        layer: on top of it while one layer is computed again, with activation checkpointing; else 0.
        loss: what the loss needs besides, when the forward pass ends and the backward pass begins.
    """

    kept: int
    layer: int
    loss: int


@dataclass(frozen=True)
class Probe:
    """A training pass whose memory is asked for.

    Attributes:
        run: the loss of a model whose weights have shapes and no memory, in a dtype.
        layers: of the stack that is computed again with activation checkpointing.
        loss_bytes: what the loss needs besides, in a dtype.
    """

    run: Callable[[ZooModel, torch.dtype], Tensor]
    layers: int
    loss_bytes: Callable[[torch.dtype], int]


def text_probe(config: Any, batch_size: int, length: int, images: Images = 1, *, packed: bool = False) -> Probe:
    """Text behind images.

    Args:
        config: the model's.
        batch_size, length: samples, and tokens of each; each has the same images.
        images: of each sample, see `processing.example.Images`.
        packed: a sample is a row of several.
    """
    inputs = example_batch(config, batch_size, length, images, packed=packed)
    targets = _targets(inputs)

    def run(model: ZooModel, dtype: torch.dtype) -> Tensor:
        logits = model(**inputs.to(dtype=dtype).model_kwargs(), wanted_positions=targets)[0]
        return F.cross_entropy(logits.float(), torch.zeros_like(targets), reduction="sum")

    def loss_bytes(dtype: torch.dtype) -> int:
        return targets.numel() * config.vocab_size * (dtype.itemsize + 4)  # in fp32 besides, and a gradient of either

    return Probe(run, config.num_layers, loss_bytes)


def model_probe(model: ZooModel, config: Any, batch_size: int, length: int, images: Images = 1) -> Probe:
    """`text_probe`; with the mixin "packed", a sample is a row of several."""
    return text_probe(config, batch_size, length, images, packed=PACKED_NAME in model.mixins)


def measure_activations(
    model: ZooModel, config: Any, *, batch_size: int, length: int, images: Images = 1, **options: Any
) -> Activations:
    """`measure_pass` of text behind images; see `text_probe`."""
    return measure_pass(model, model_probe(model, config, batch_size, length, images), **options)


def measure_pass(
    model: ZooModel,
    probe: Probe,
    *,
    dtype: torch.dtype,
    checkpoint_language: bool = False,
    checkpoint_vision: bool = False,
) -> Activations:
    """Activations of one training pass.

    Args:
        model: with its plan applied; on any device, or on meta. It is not computed with, moved or changed.
        probe: the pass.
        dtype: of weights and activations in training.
    """
    count = _kept(model, probe, dtype, language=checkpoint_language, vision=checkpoint_vision)
    layer = 0
    if checkpoint_language or checkpoint_vision:
        whole = _kept(model, probe, dtype, language=False, vision=False)
        layer = (whole - count) // max(1, probe.layers)
    return Activations(count, layer, probe.loss_bytes(dtype))


def example_batch(config: Any, batch_size: int, length: int, images: Images = 1, *, packed: bool = False) -> VLMInputs:
    """A batch of text behind a picture; its pixels are on meta, the rest is real, because the model reads it.

    Args:
        packed: the text has a lane mask. What it lets a token see takes no memory, so one sample may stand for several.
    """
    text = room_for_text(config, length, images=images)
    sample = example_inputs(config, text, images=images, device="meta")
    if packed:
        common = int(sample.image_embed_mask[0].nonzero()[-1]) + 1
        seen = torch.ones(sample.length - common, sample.length, dtype=torch.bool).tril(common)
        sample = replace(sample, lane_mask=seen[None, None])
    return collate([sample] * batch_size, pad_id=0)


def _targets(inputs: VLMInputs) -> Tensor:
    """Flat indices of the positions whose logits enter the loss: all text."""
    return (inputs.image_embed_mask == 0).flatten().nonzero().flatten()


def _kept(model: ZooModel, probe: Probe, dtype: torch.dtype, *, language: bool, vision: bool) -> int:
    """Bytes of what the graph of one forward pass with its loss holds, parameters aside."""
    held: dict[int, Any] = {}
    own: set[int] = set()

    def hold(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            held[storage._cdata] = storage  # kept, so that the number stays its own
        return tensor

    with ExitStack() as stack:
        own |= {tensor.untyped_storage()._cdata for tensor in stack.enter_context(_without_memory(model, dtype))}
        recompute(model.train(), language=language, vision=vision)
        stack.enter_context(_without_sending())
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor))
        stack.enter_context(_ShapesOnly())
        stack.enter_context(_FlashAttention())
        loss = probe.run(model, dtype)
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in held.values())


@contextmanager
def _without_memory(model: nn.Module, dtype: torch.dtype) -> Iterator[list[Tensor]]:
    """The model with meta tensors for its parameters and buffers, which are given. Afterwards it is as it was in all:
    tables that a forward pass keeps in a module have no content here."""
    twins: dict[int, Tensor] = {}

    def twin(tensor: Tensor | None) -> Tensor | None:
        if tensor is not None and id(tensor) not in twins:
            kind = dtype if tensor.is_floating_point() else tensor.dtype
            twins[id(tensor)] = torch.empty_like(tensor, dtype=kind, device="meta", requires_grad=tensor.requires_grad)
        return None if tensor is None else twins[id(tensor)]

    before = [(m, dict(vars(m)), dict(m._parameters), dict(m._buffers)) for m in model.modules()]
    try:
        for module, _, parameters, buffers in before:
            module._parameters.update({name: twin(tensor) for name, tensor in parameters.items()})
            module._buffers.update({name: twin(tensor) for name, tensor in buffers.items()})
        yield list(twins.values())
    finally:
        for module, attributes, parameters, buffers in before:
            vars(module).clear()
            vars(module).update(attributes)
            module._parameters.update(parameters)
            module._buffers.update(buffers)


class _ShapesOnly(TorchDispatchMode):
    """Lets real tensors (ids, masks) meet meta ones."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves((args, kwargs))):
            args, kwargs = tree_map_only(Tensor, lambda t: t if t.is_meta else t.to("meta"), (args, kwargs))
        return func(*args, **kwargs)


class _FlashAttention(TorchFunctionMode):
    """Takes the attention that training takes."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            mask = kwargs.get("attn_mask")
            return _FLASH(*args[:3], 0.0, kwargs.get("is_causal", False), attn_mask=mask)[0]
        return func(*args, **kwargs)


@contextmanager
def _without_sending() -> Iterator[None]:
    """Collectives that do nothing, for tensors without memory."""
    before: dict[str, Callable] = {name: getattr(dist, name) for name in ("all_reduce", "all_gather", "broadcast")}
    try:
        for name in before:
            setattr(dist, name, lambda *args, **kwargs: None)
        yield
    finally:
        for name, function in before.items():
            setattr(dist, name, function)
