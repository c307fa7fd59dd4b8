"""From a model_class name and a typed config to a module, with or without memory behind its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mixins.base import ZooModel
from sat_models.config import ModelConfig
from sat_models.errors import ConfigError
from sat_models.models.common.quantisation import QUANTISATION_KEY, Quantisation, make_quantised
from sat_models.models.families import model_class, model_names

_FACTORIES = frozenset(
    (torch.empty, torch.empty_strided, torch.zeros, torch.ones, torch.full, torch.eye, torch.rand, torch.randn)
)

_FILLERS = frozenset((Tensor.normal_, Tensor.uniform_, Tensor.zero_, Tensor.fill_))
_INIT_MODULE = "torch.nn.init"


def make_config(data: dict[str, Any]) -> ModelConfig:
    """The typed config of the content of a `model_config.json`.

    Raises:
        ConfigError: no `model_class`, or sizes that are missing or contradict each other.
        UnknownNameError: a `model_class` that the zoo does not have.
    """
    if "model_class" not in data:
        raise ConfigError(f"the model config names no model_class; one of {', '.join(sorted(model_names()))} is needed")
    return model_class(data["model_class"]).config_class.from_dict(data)


class OnMeta(TorchFunctionMode):
    """Makes every new tensor a meta tensor: shapes without memory.

    `with torch.device("meta")` is not enough: SAT passes `device="cpu"` to its layers, which wins over that. Random
    initialisation is skipped, and tables (`arange`, `tensor`) are computed on the CPU: torch would import its compiler
    to work out what they are on meta (seconds). `build_model` moves them.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls `func`, with device="meta" if it makes a tensor, and not at all if it fills one."""
        kwargs = kwargs or {}
        if func in _FILLERS or getattr(func, "__module__", None) == _INIT_MODULE:
            target = args[0] if args else kwargs["tensor"]
            if target.is_meta:
                return target
        if func in _FACTORIES:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def build_model(
    config: ModelConfig, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "meta"
) -> ZooModel:
    """This rank's part of the model that `config` describes; model-parallel groups must exist.

    Args:
        config: sizes and `model_class`.
        dtype: of parameters and floating-point buffers.
        device: "meta" gives shapes only (fill them with `sat_models.checkpoint.io.load_weights`); any other device
            gives SAT's random initialisation, drawn on the CPU.

    Raises:
        UnknownNameError: unknown `model_class`.
        ConfigError: a quantised model that is not to be on meta: it has no random weights.
    """
    cls, quantisation = model_class(config.model_class), Quantisation.of(config)
    if torch.device(device).type != "meta":
        if quantisation:
            raise ConfigError(f"a config with '{QUANTISATION_KEY}' is for loading weights; train without it")
        return cls(config).to(device=device, dtype=dtype)
    with OnMeta():
        model = cls(config)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to("meta")
    model.to(dtype)
    if quantisation:
        make_quantised(model, quantisation)
    return model


def computable_buffers(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Buffers that follow from the sizes, as (full name, module, name).

    By convention, buffer `x` is one if its module has a method `compute_x(device) -> Tensor`. Checkpoints may carry
    such a buffer (SAT's carry `inv_freq`) or not. A module that several others share comes once under each name.
    """
    for path, module in model.named_modules(remove_duplicate=False):
        for name in module._buffers:
            if hasattr(module, f"compute_{name}"):
                yield f"{path}.{name}".lstrip("."), module, name


def compute_buffer(module: nn.Module, name: str, *, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """The value of a buffer of `computable_buffers`."""
    return getattr(module, f"compute_{name}")(device).to(dtype)
