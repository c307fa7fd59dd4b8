"""SAT's `BaseModel` as every model of the zoo extends it: typos are refused, changes succeed or leave no trace."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mixins.cache_form import CacheForm
from mixins.sat_compat import HOOKS_DEFAULT, BaseMixin, BaseModel

_LOOKS_LIKE_A_HOOK = ("_forward", "_fn")


def check_hook_names(owner: BaseMixin | BaseModel) -> None:
    """Refuse a mixin or model with a method that looks like a hook but is none.

    SAT looks hooks up by name, so a misspelt one would be accepted and never run.

    Raises:
        AttributeError: names the method, the nearest hook and all hooks.
    """
    sats = {*BaseMixin.__mro__, *BaseModel.__mro__}
    for cls in type(owner).__mro__:
        for name, value in vars(cls).items():
            if cls in sats or name.startswith("_") or name in HOOKS_DEFAULT or not callable(value):
                continue
            near = difflib.get_close_matches(name, HOOKS_DEFAULT, n=1, cutoff=0.8)
            if near or name.endswith(_LOOKS_LIKE_A_HOOK):
                guess = f" Did you mean '{near[0]}'?" if near else ""
                raise AttributeError(
                    f"{type(owner).__name__}.{name} looks like a hook, but SAT has no hook of that name, so it would "
                    f"never run.{guess} Hooks: {', '.join(sorted(HOOKS_DEFAULT))}. "
                    "If it is a helper, give it a name that starts with '_'."
                )


class ZooModel(BaseModel):
    """SAT's `BaseModel` whose mixins are checked when added, and which is unchanged when a change fails.

    Attributes:
        quantised_head: the C decode step makes itself an output projection of 8 bits; who loads the weights says so.
        cache_form: how decoding keeps keys and values; None: in bytes where the C decode step multiplies quantised
            weights, else as they are.
    """

    quantised_head: bool = False
    cache_form: CacheForm | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        check_hook_names(self)
        super().__init__(*args, **kwargs)

    def add_mixin(self, name: str, new_mixin: BaseMixin, reinit: bool = False) -> None:
        """Add `new_mixin` under `name` (the name is part of the checkpoint format).

        Raises:
            KeyError: a mixin of that name is there already.
            TypeError: not a `BaseMixin`.
            AttributeError: a misspelt hook.
            ValueError: its hooks conflict with those of another mixin.
        """
        if name in self.mixins:
            raise KeyError(f"mixin '{name}' is already there; use replace_mixin('{name}', …) or del_mixin first")
        if not isinstance(new_mixin, BaseMixin):
            raise TypeError(f"mixin '{name}' must be a BaseMixin, got {type(new_mixin).__name__}")
        check_hook_names(new_mixin)
        with self._unchanged_on_failure():
            super().add_mixin(name, new_mixin, reinit=reinit)

    def del_mixin(self, name: str) -> None:
        """Remove the mixin `name`. Raises KeyError with the names that are there."""
        if name not in self.mixins:
            raise KeyError(f"no mixin '{name}' to delete; the model has: {', '.join(self.mixins)}")
        with self._unchanged_on_failure():
            super().del_mixin(name)

    def replace_mixin(self, name: str, new_mixin: BaseMixin) -> None:
        """`del_mixin` and `add_mixin` as one step: if the new one is refused, the old one stays."""
        with self._unchanged_on_failure():
            self.del_mixin(name)
            self.add_mixin(name, new_mixin)

    @contextmanager
    def without_mixin(self, name: str) -> Iterator[None]:
        """Inside, the model does without the mixin `name`, if it has it; afterwards it is there again, as the last."""
        if name not in self.mixins:
            yield
            return
        mixin = self.mixins[name]
        self.del_mixin(name)
        try:
            yield
        finally:
            self.add_mixin(name, mixin)

    @contextmanager
    def _unchanged_on_failure(self) -> Iterator[None]:
        before = dict(self.mixins.items())
        try:
            yield
        except BaseException:
            self.mixins.clear()
            self.mixins.update(before)
            self.collect_hooks_()
            raise
