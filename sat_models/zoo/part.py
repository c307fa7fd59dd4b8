"""A part of a model that is in memory when it is needed."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Generic, TypeVar

from sat_models.checkpoint.memory import release_freed

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
        """It is not needed for now; its memory is given back, unless somebody else holds it."""
        if not self._keep and self._value is not None:
            self._value = None
            gc.collect()  # the modules of a model hold each other
            release_freed()
