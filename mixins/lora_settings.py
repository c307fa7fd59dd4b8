"""Settings of LoRA, and shell patterns over the names of a model's parts."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class LoRASettings:
    """The linears that are adapted, and how; the same for all of them.

    Attributes:
        targets: shell patterns (`*` also spans dots) over names of linears or of their weights, such as
            `transformer.layers.*.attention.*`.
        rank: inner width of A and B.
        alpha: numerator of the scale, alpha / rank.
        dropout: probability, on what goes into A.
        use_dora: also learn the length of each row of the weight.
        layer_range: only these numbers of layers, in every tower; linears outside of numbered layers stay. None = all.
        seed: of the initial A.
    """

    targets: tuple[str, ...]
    rank: int
    alpha: float = 1.0
    dropout: float = 0.0
    use_dora: bool = False
    layer_range: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise ValueError(f"the rank of LoRA must be a positive integer, got {self.rank!r}")
        if not self.alpha > 0:
            raise ValueError(
                f"the alpha of LoRA must be positive, got {self.alpha!r}; the update is alpha / rank · B A"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"the dropout of LoRA must be in [0, 1), got {self.dropout!r}")
        if isinstance(self.targets, str) or not self.targets:
            raise ValueError(f"the targets of LoRA must be a list of patterns, got {self.targets!r}")
        object.__setattr__(self, "targets", tuple(self.targets))
        if self.layer_range is not None:
            object.__setattr__(self, "layer_range", tuple(int(layer) for layer in self.layer_range))

    @property
    def scale(self) -> float:
        """Factor of B A."""
        return self.alpha / self.rank

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LoRASettings:
        """The inverse of `to_dict`; raises ValueError on unknown or missing keys."""
        names = {f.name for f in dataclasses.fields(cls)}
        if data.keys() - names or {"targets", "rank"} - data.keys():
            raise ValueError(f"LoRA settings have the keys {', '.join(sorted(names))}; got {', '.join(sorted(data))}")
        return cls(**data)


def matching(pattern: str, names: Iterable[str], *, suffix: str = "") -> list[str]:
    """Those of `names` that a shell pattern fits, with or without `suffix` at their end."""
    return [n for n in names if fnmatch.fnmatchcase(n, pattern) or fnmatch.fnmatchcase(n + suffix, pattern)]


def near_patterns(pattern: str, names: Iterable[str]) -> list[str]:
    """Up to three patterns near to one that fits nothing; numbers in names are shown as `*`."""
    known = sorted({re.sub(r"\b\d+\b", "*", name) for name in names})
    return difflib.get_close_matches(pattern, known, n=3, cutoff=0.4)


def choose_linears(settings: LoRASettings, names: Sequence[str], *, wrapped: Iterable[str] = ()) -> list[str]:
    """The linears that `settings` mean, in the order of `names`.

    Args:
        names: of the linears that can be adapted.
        wrapped: of those that are adapted already; only for the message.

    Raises:
        ValueError: a pattern or a layer number that fits no linear; near matches are named.
    """
    chosen: set[str] = set()
    for pattern in settings.targets:
        fits = matching(pattern, names, suffix=".weight")
        if not fits:
            raise ValueError(f"the LoRA target '{pattern}' fits no linear; {_why(pattern, names, wrapped)}")
        chosen.update(fits)
    if settings.layer_range is not None:
        layers = {layer_number(name) for name in chosen} - {None}
        if absent := sorted(set(settings.layer_range) - layers):
            raise ValueError(f"layer_range names {absent}, but the targets lie in layers {sorted(layers)}")
        chosen = {name for name in chosen if layer_number(name) in {*settings.layer_range, None}}
    return [name for name in names if name in chosen]


def _why(pattern: str, names: Iterable[str], wrapped: Iterable[str]) -> str:
    if matching(pattern, wrapped, suffix=".weight"):
        return "what it fits is wrapped already"
    near = near_patterns(pattern, names)
    return f"did you mean {' or '.join(near)}?" if near else "linear_names(model) lists what can be named"


def layer_number(name: str) -> int | None:
    """The number of the layer that a name lies in: the first number in it; None without one."""
    numbers = [part for part in name.split(".") if part.isdigit()]
    return int(numbers[0]) if numbers else None
