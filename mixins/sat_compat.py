"""The one door to SwissArmyTransformer (SAT).

`import sat` executes SAT's package bodies, which import Triton, wandb and requests (none declared by SAT, none needed
here), transformers and a data pipeline: seconds of start-up, and a failure on a machine without those packages. This
module puts SAT's own packages in `sys.modules` without running their `__init__` bodies, and imports the few modules
this project stands on. Nothing is faked: the package objects come from SAT's own import specs, and the body of a
package runs the first time somebody asks it for a name that is not there yet. So

* `import sat; sat.get_args` anywhere in the process gives the real SAT (with SAT's own requirements),
* if `sat` was imported before this module, that one is used as it is,
* `sys.modules` holds no stand-in for Triton, so torch's own detection of it sees the truth.

Every other module of the project takes SAT's names from here.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
import types
from typing import Any

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


class _DeferredPackage(types.ModuleType):
    """A real package whose body runs when a name it would define is first asked for."""

    def __getattr__(self, name: str) -> Any:
        # Python and its tools probe modules for dunder names; those never come from SAT's bodies.
        if name.startswith("__") or self.__dict__.get("_zoo_body_ran"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        qualified = f"{self.__name__}.{name}"
        if qualified in sys.modules or importlib.util.find_spec(qualified) is not None:
            return importlib.import_module(qualified)  # `from sat import mpu` needs the submodule, not the body
        self.__dict__["_zoo_body_ran"] = True
        try:
            self.__spec__.loader.exec_module(self)
        except BaseException:
            self.__dict__["_zoo_body_ran"] = False
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


def _open_door() -> None:
    if "sat" in sys.modules:
        return
    _check_version()
    for name in _DEFERRED_PACKAGES:
        _defer(name)
    # `sat.model.base_model` does `from sat.resources import auto_create`; SAT's body would import requests for it.
    sys.modules["sat.resources"].auto_create = _auto_create
    # SAT announces at import that it runs without CUDA; that is our normal case, so only warnings are let through.
    chosen = os.environ.get("SAT_LOGLEVEL")
    os.environ.setdefault("SAT_LOGLEVEL", "WARNING")
    try:
        importlib.import_module("sat.model.base_model")
    finally:
        if chosen is None:
            del os.environ["SAT_LOGLEVEL"]


_open_door()

from sat import mpu  # noqa: E402
from sat.model.base_model import BaseMixin, BaseModel, non_conflict  # noqa: E402
from sat.model.transformer import BaseTransformer  # noqa: E402
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
    "ColumnParallelLinear",
    "RMSNorm",
    "RowParallelLinear",
    "VocabParallelEmbedding",
    "copy_to_model_parallel_region",
    "gather_from_model_parallel_region",
    "mpu",
    "non_conflict",
    "reduce_from_model_parallel_region",
    "split_tensor_along_last_dim",
    "unscaled_init_method",
]
