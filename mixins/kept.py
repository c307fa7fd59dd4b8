"""What a backward pass needs and need not be kept: a tensor may say how it is made again from tensors kept anyway.

A norm's output is made from its input, and the input of a down projection from gate and up; their own backward passes
keep these. So a linear with trained low-rank matrices (`lora_product`), which needs its input once more, keeps neither.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

_ATTRIBUTE = "zoo_remake"


class Remake(NamedTuple):
    """`make(*tensors)` is the tensor again, bit for bit. `tensors` have no graph."""

    make: Callable[..., Tensor]
    tensors: tuple[Tensor, ...]


def remember(tensor: Tensor, make: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """The same tensor, which can say from now on that `make(*tensors)` is it."""
    setattr(tensor, _ATTRIBUTE, Remake(make, tuple(t.detach() for t in tensors)))
    return tensor


def remake_of(tensor: Tensor) -> Remake:
    """How a tensor is made again; one that does not say is kept itself."""
    return getattr(tensor, _ATTRIBUTE, None) or Remake(lambda kept: kept, (tensor.detach(),))
