"""The decode loop waits for the device once per step, where it reads the tokens.

There is no device here that could be waited for, so a stub keeps the books: a tensor is "on the device" if it is a
weight, a cache, an input, or was computed from one, and an operator that brings such a tensor's content to the host,
or needs it to know the size of its result, is a wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sat_models.generation.answer import Request
from sat_models.generation.engine import Engine
from sat_models.generation.sampling import SamplingOptions
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
READS = ("aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal")
METHODS = ("tolist", "numpy", "cpu")  # of tensors; no operator is called for them where the tensor is on the CPU
SIZES = ("aten::nonzero", "aten::masked_select", "aten::_unique2")


def is_wait(name: str, args: tuple[Any, ...]) -> bool:
    """True if an operator on tensors of a device stops until the device has reached it."""
    if name.startswith("aten::index") and len(args) > 1 and isinstance(args[1], list | tuple):
        by_mask = any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1])
        filled = len(args) > 2 and args[2].numel() == 1  # torch makes a masked fill of it
        return by_mask and not filled
    return name in READS or name.startswith(SIZES)


class Waits(TorchDispatchMode):
    """Counts waits by operator."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self._storages = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        self._alive: list[Tensor] = []  # a storage that was freed could come back under the same number

    def __enter__(self) -> Waits:
        self._patch = pytest.MonkeyPatch()
        for name in METHODS:
            self._patch.setattr(Tensor, name, self._counting(name, getattr(Tensor, name)))
        return super().__enter__()

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        self._patch.undo()

    def _counting(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.count[name] += tensor.untyped_storage()._cdata in self._storages
            return method(tensor, *args, **kwargs)

        return counted

    def mark(self, *tensors: Tensor) -> None:
        """Say that these are on the device."""
        for tensor in tensors:
            self._storages.add(tensor.untyped_storage()._cdata)
            self._alive.append(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = any(tensor.untyped_storage()._cdata in self._storages for tensor in given)
        if there and is_wait(func.name(), args):
            self.count[func.name()] += 1
        result = func(*args, **(kwargs or {}))
        if there:
            self.mark(*(x for x in tree_leaves(result) if isinstance(x, Tensor)))
        return result


@pytest.fixture(scope="module", params=["cogvlm-mini", "cogagent-mini"])
def vlm(request: pytest.FixtureRequest) -> VLM:
    """Each miniature in turn."""
    return load_pretrained(GOLDEN / request.param, device="cpu", dtype="float32")


OPTIONS = {
    "greedy": SamplingOptions(max_new_tokens=9),
    "drawn": SamplingOptions(max_new_tokens=9, temperature=0.9, top_p=0.8, top_k=50, seed=1, repetition_penalty=1.2),
}


@pytest.mark.parametrize("choice", OPTIONS)
def test_one_answer_waits_once_per_token(vlm: VLM, choice: str) -> None:
    engine = Engine(vlm.model, eos_id=-5, max_length=256, device="cpu")
    image = GOLDEN / ("cogagent-mini" if vlm.processor.cross_image_size else "cogvlm-mini") / "image.png"
    stream = engine.tokens(vlm.processor(image, "What is it?"), OPTIONS[choice])
    with Waits(vlm.model) as waits:
        next(stream)
        waits.count.clear()  # the prompt may be looked at as often as need be
        assert len(list(stream)) == 8
    assert waits.count == {"tolist": 8}


@pytest.mark.parametrize("choice", OPTIONS)
def test_a_batch_waits_once_per_step(vlm: VLM, choice: str) -> None:
    engine = Engine(vlm.model, eos_id=-5, max_length=256, device="cpu")
    questions = ["Hello", "What would you say?", "Who are you, and what is it that you want from me?"]
    with Waits(vlm.model) as waits, engine.session() as session:
        for question in questions:
            session.add(Request(vlm.processor(None, question, version="chat"), OPTIONS[choice]))
        session.step()
        waits.count.clear()
        for _ in range(6):
            assert len(session.step()) == 3
    assert waits.count == {"tolist": 6}


def test_the_stub_sees_what_it_shall_see(vlm: VLM) -> None:
    weight = vlm.model.transformer.layers[0].attention.dense.weight
    with Waits(vlm.model) as waits, torch.inference_mode():
        int(torch.tensor(3))
        torch.arange(4)[torch.arange(4) > 2].tolist()
        values = weight * 2
        values[values > 1] = 0.0
        assert not any(waits.count.values())
        for wait in (
            lambda: float(values.sum()),
            lambda: values[values > 0],
            lambda: bool((values == 0).all()),
            lambda: values.nonzero(),
            lambda: values.cpu(),
            lambda: values.tolist(),
        ):
            wait()
            assert sum(waits.count.values()) == 1, waits.count
            waits.count.clear()
