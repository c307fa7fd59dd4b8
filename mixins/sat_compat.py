"""The one door to SwissArmyTransformer (SAT).

`import sat` executes SAT's package bodies, which import Triton, wandb and requests (none declared by SAT, none needed
here), transformers and a data pipeline: seconds of start-up, and a failure on a machine without those packages. This
module puts SAT's own packages in `sys.modules` without running their `__init__` bodies, and imports the few modules
this project stands on. Nothing is faked: the package objects come from SAT's own import specs, and the body of a
package runs the first time somebody asks it for a name that the body defines. So

* `import sat; sat.get_args` anywhere in the process gives the real SAT (with SAT's own requirements),
* if `sat` was imported before this module, that one is used as it is,
* `sys.modules` holds no stand-in for Triton, so torch's own detection of it sees the truth.

Where there is a GPU, SAT would also import DeepSpeed for its activation checkpointing. Here that is torch's, in the
variant that torch recommends, on every device.

Every other module of the project takes SAT's names from here.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.utils.checkpoint

TESTED_SAT_VERSION = "0.4.12"

# SAT packages whose bodies import what is not needed here. Order matters: parents first.
_DEFERRED_PACKAGES = (
    "sat",
    "sat.model",
    "sat.model.official",
    "sat.model.finetune",
    "sat.model.position_embedding",
    "sat.resources",
)


@functools.cache
def _names_defined_in(file: Path) -> frozenset[str]:
    """Names that running a package's `__init__.py` may bind, read from its source."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            names |= _names_defined_in(file.parent / str(node.module) / "__init__.py")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return frozenset(names)


class _DeferredPackage(types.ModuleType):
    """A real package whose body runs when a name it would define is first asked for."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            qualified = f"{self.__name__}.{name}"
            if qualified in sys.modules or importlib.util.find_spec(qualified) is not None:
                return importlib.import_module(qualified)  # `from sat import mpu` needs the submodule, not the body
        # Python and its tools (pickle, inspect) ask modules for all sorts of names; those must not run the body.
        # `__all__` is what `from package import *` asks first, as SAT's own bodies do.
        wanted = name == "__all__" or name in _names_defined_in(Path(self.__file__))
        if self.__dict__.get("_zoo_body_ran") or not wanted:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        before = dict(self.__dict__)
        self.__dict__["_zoo_body_ran"] = True
        try:
            self.__spec__.loader.exec_module(self)
        except BaseException as error:  # as Python does: a failed body leaves nothing but the modules it imported
            kept = {k: v for k, v in self.__dict__.items() if isinstance(v, types.ModuleType)}
            self.__dict__.clear()
            self.__dict__.update({**kept, **before})
            if isinstance(error, AttributeError):  # who asked would take it for "no such name"
                raise ImportError(f"the body of {self.__name__} failed: {error}") from error
            raise
        return getattr(self, name)


def _check_version() -> None:
    try:
        found = importlib.metadata.version("SwissArmyTransformer")
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(
            "SwissArmyTransformer is not installed. Install it with: "
            f'pip install "SwissArmyTransformer=={TESTED_SAT_VERSION}"'
        ) from None
    if found != TESTED_SAT_VERSION:
        raise ImportError(
            f"SwissArmyTransformer {found} is installed, but this project was tested with {TESTED_SAT_VERSION} only. "
            f'Install it with: pip install "SwissArmyTransformer=={TESTED_SAT_VERSION}"'
        )


def _defer(name: str) -> None:
    spec = importlib.util.find_spec(name)
    package = _DeferredPackage(name)
    package.__spec__, package.__loader__ = spec, spec.loader
    package.__path__, package.__package__, package.__file__ = spec.submodule_search_locations, name, spec.origin
    sys.modules[name] = package
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, package)


def _auto_create(*args: Any, **kwargs: Any) -> str:
    """SAT's checkpoint download; its module (and requests) is imported when it is called."""
    return importlib.import_module("sat.resources.download").auto_create(*args, **kwargs)


@contextmanager
def _without(package: str) -> Iterator[None]:
    """Inside the block, importing `package` fails as if it were not installed; unless it is imported already."""
    absent = package not in sys.modules
    if absent:
        sys.modules[package] = None  # Python's own way to say "not importable"
    try:
        yield
    finally:
        if absent:
            del sys.modules[package]


def _open_door() -> None:
    if "sat" in sys.modules:
        return
    _check_version()
    for name in _DEFERRED_PACKAGES:
        _defer(name)
    sys.modules["sat"].__version__ = TESTED_SAT_VERSION
    # `sat.model.base_model` does `from sat.resources import auto_create`; SAT's body would import requests for it.
    sys.modules["sat.resources"].auto_create = _auto_create
    # SAT announces at import that it runs without CUDA; that is our normal case, so only warnings are let through.
    chosen = os.environ.get("SAT_LOGLEVEL")
    os.environ.setdefault("SAT_LOGLEVEL", "WARNING")
    try:
        with _without("deepspeed"):
            importlib.import_module("sat.model.base_model")
    finally:
        if chosen is None:
            del os.environ["SAT_LOGLEVEL"]
    # SAT leaves the choice to torch, which warns and takes the reentrant variant.
    recompute = functools.partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)
    sys.modules["sat.mpu"].checkpoint = sys.modules["sat.model.transformer"].checkpoint = recompute


@contextmanager
def as_one_process() -> Iterator[None]:
    """SAT's layers that are made inside are those of a model that is not split."""
    modules = [sys.modules[name] for name in ("sat.model.transformer", "sat.mpu.layers")]
    before = [module.get_model_parallel_world_size for module in modules]
    try:
        for module in modules:
            module.get_model_parallel_world_size = lambda: 1
        yield
    finally:
        for module, function in zip(modules, before, strict=True):
            module.get_model_parallel_world_size = function


def stock_generation() -> types.SimpleNamespace:
    """SAT's own generation, to compare with: `filling_sequence`, `BaseStrategy`, `CachedAutoregressiveMixin`."""
    sampling = importlib.import_module("sat.generation.autoregressive_sampling")
    cached = importlib.import_module("sat.model.cached_autoregressive_model")
    return types.SimpleNamespace(
        filling_sequence=sampling.filling_sequence,
        BaseStrategy=sampling.BaseStrategy,
        CachedAutoregressiveMixin=cached.CachedAutoregressiveMixin,
    )


_open_door()

from sat import mpu  # noqa: E402
from sat.model.base_model import BaseMixin, BaseModel, non_conflict  # noqa: E402
from sat.model.transformer import BaseTransformer, BaseTransformerLayer  # noqa: E402
from sat.mpu import (  # noqa: E402
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    copy_to_model_parallel_region,
    gather_from_model_parallel_region,
    reduce_from_model_parallel_region,
)
from sat.mpu.utils import split_tensor_along_last_dim, unscaled_init_method  # noqa: E402
from sat.ops.layernorm import RMSNorm  # noqa: E402
from sat.transformer_defaults import HOOKS_DEFAULT  # noqa: E402

__all__ = [
    "HOOKS_DEFAULT",
    "TESTED_SAT_VERSION",
    "BaseMixin",
    "BaseModel",
    "BaseTransformer",
    "BaseTransformerLayer",
    "ColumnParallelLinear",
    "RMSNorm",
    "RowParallelLinear",
    "VocabParallelEmbedding",
    "as_one_process",
    "copy_to_model_parallel_region",
    "gather_from_model_parallel_region",
    "mpu",
    "non_conflict",
    "reduce_from_model_parallel_region",
    "split_tensor_along_last_dim",
    "stock_generation",
    "unscaled_init_method",
]
