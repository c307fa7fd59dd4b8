"""The path of a text token through a mixin, said by the mixin itself, so that decoding can do without its hooks.

A mixin says it with a method `text_token`, marked with the methods that it stands for: the hook, and what the hook
calls. A class that overrides one of those without an answer of its own has none, and is decoded through its hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from torch import Tensor, nn

from mixins.heads import HeadLayout

if TYPE_CHECKING:
    from mixins.rotary import RotaryEmbedding

_Method = TypeVar("_Method", bound=Callable[..., Any])


class AttentionPart(NamedTuple):
    """Of one layer: `dense(attention(rotated(mix(x))))`."""

    mix: nn.Module
    dense: nn.Module
    heads: HeadLayout
    rotary: RotaryEmbedding


class GatedPart(NamedTuple):
    """Of one layer: `down(activation(gate(x)) * up(x))`."""

    activation: Callable[[Tensor], Tensor]
    gate: nn.Module
    up: nn.Module
    down: nn.Module


def stands_for(*methods: str) -> Callable[[_Method], _Method]:
    """Mark a `text_token`: what it says holds as long as these methods are those of its class, or of one below."""

    def mark(method: _Method) -> _Method:
        method.stands_for = methods
        return method

    return mark


def says(mixin: Any, hook: str) -> bool:
    """True if `mixin.text_token` says what a token of text passes in this hook of the mixin."""
    methods = getattr(getattr(mixin, "text_token", None), "stands_for", ())
    if hook not in methods:
        return False
    speaker = _owner(mixin, "text_token")
    return speaker is not None and all(
        (owner := _owner(mixin, name)) is not None and issubclass(speaker, owner) for name in methods
    )


def _owner(mixin: Any, name: str) -> type | None:
    """The class that a method of an object comes from; None if the object has one of its own."""
    if name in vars(mixin):
        return None
    return next((cls for cls in type(mixin).__mro__ if name in vars(cls)), None)
