"""A part of a model that is in memory when it is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Part(Generic[T]):
    """A part that is opened when it is asked for.

    Args:
        opened: opens it.
        keep: it stays when it is not needed for now.
    """

    def __init__(self, opened: Callable[[], T], *, keep: bool) -> None:
        self._open, self._keep = opened, keep
        self._value: T | None = None

    @property
    def here(self) -> bool:
        """True if it is in memory."""
        return self._value is not None

    def get(self) -> T:
        """The part, which is opened where it is not there; raises as its opening does."""
        if self._value is None:
            self._value = self._open()
        return self._value

    def release(self) -> None:
        """It is not needed for now."""
        if not self._keep:
            self._value = None
