"""Which linears of a model are quantised: what a user asks for, and what a stored config says."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from mixins.lora_settings import matching, near_patterns
from mixins.sat_compat import ColumnParallelLinear, RowParallelLinear
from mixins.whole import WholeLinear
from sat_models.config import ModelConfig
from sat_models.errors import ConfigError
from sat_models.models.common.quantised import block_size, quantised_form

logger = logging.getLogger(__name__)

QUANTISATION_KEY = "quantisation"
"""Where `model_config.json` says that its weights are quantised, and how."""

DEFAULT_SKIP = ("*.lm_head",)
"""Left in full precision with all embeddings, norms and projectors (no parallel linears): the output projection."""


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """Which linears are quantised, to how many bits.

    Attributes:
        bits: 8 or 4.
        skip: shell patterns (`*` also spans dots) over names of linears that stay as they are.
    """

    bits: int
    skip: tuple[str, ...] = DEFAULT_SKIP

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ConfigError(f"quant is {self.bits!r}; allowed: 8 or 4 (bits per weight), or none")
        if isinstance(self.skip, str):
            raise ConfigError(f"quant_skip must be a list of patterns, got {self.skip!r}")
        object.__setattr__(self, "skip", tuple(self.skip))

    @classmethod
    def asked(cls, quant: int | None, skip: Sequence[str] = ()) -> Quantisation | None:
        """The settings that a user asks for: bits, and patterns besides the default ones.

        Raises:
            ConfigError: other bits, or patterns without bits.
        """
        if quant is not None:
            return cls(bits=quant, skip=(*DEFAULT_SKIP, *skip))
        if skip:
            raise ConfigError("quant_skip says what quantisation leaves out; say quant 8 or 4 (--quant), too")
        return None

    @classmethod
    def of(cls, config: ModelConfig) -> Quantisation | None:
        """The settings of a stored config; None for weights in full precision."""
        data = config.extra.get(QUANTISATION_KEY)
        if data is None:
            return None
        if not isinstance(data, dict) or data.keys() != {"bits", "skip"}:
            raise ConfigError(f"'{QUANTISATION_KEY}' in the model config must hold bits and skip, got {data!r:.80}")
        return cls(bits=data["bits"], skip=data["skip"])

    def to_dict(self) -> dict[str, Any]:
        """As the value of `QUANTISATION_KEY`."""
        return {"bits": self.bits, "skip": list(self.skip)}

    def noted_in(self, config: ModelConfig) -> ModelConfig:
        """A copy of `config` that says how its weights are quantised."""
        return dataclasses.replace(config, extra={**config.extra, QUANTISATION_KEY: self.to_dict()})


def linears_to_quantise(model: nn.Module, settings: Quantisation, size: int = 1) -> dict[str, nn.Module]:
    """The parallel linears that `settings` mean, by name.

    Args:
        size: number of ranks that a whole model will be divided over; 1 for a model that is one rank's part.

    Raises:
        ConfigError: a pattern that fits nothing, nothing left, or a width that this many processes cut inside a block.
    """
    kinds = (ColumnParallelLinear, RowParallelLinear, WholeLinear)
    linears = {n: m for n, m in model.named_modules() if isinstance(m, kinds)}
    skipped: set[str] = set()
    for pattern in settings.skip:
        fits = matching(pattern, linears, suffix=".weight")
        if not fits and pattern not in DEFAULT_SKIP:
            near = near_patterns(pattern, linears)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ConfigError(f"quant_skip '{pattern}' fits no linear of this {type(model).__name__}{hint}")
        skipped.update(fits)
    wide = {n: m for n, m in linears.items() if settings.bits == 8 or block_size(m) is not None}
    if odd := sorted(linears.keys() - wide.keys() - skipped):
        logger.info("%d linears stay as they are: 4 bits need inputs in blocks of 32, %s has others", len(odd), odd[0])
    chosen = {name: linear for name, linear in wide.items() if name not in skipped}
    if not chosen:
        raise ConfigError(f"nothing of this {type(model).__name__} is left to quantise; shorten quant_skip")
    for name, linear in chosen.items():
        inputs = linear.weight.shape[1] // (size if isinstance(linear, RowParallelLinear) else 1)
        if settings.bits == 4 and inputs % block_size(linear):
            raise ConfigError(
                f"{name}, of {linear.input_size} inputs, would be cut into {linear.input_size // inputs} parts inside "
                f"a block of {block_size(linear)} that shares a scale. Take fewer parts (processes), or 8 bits."
            )
    return chosen


def make_quantised(model: nn.Module, settings: Quantisation) -> None:
    """Give a model on meta the parameters of a quantised checkpoint, in place."""
    for name, linear in linears_to_quantise(model, settings).items():
        model.set_submodule(name, quantised_form(linear, settings.bits))
