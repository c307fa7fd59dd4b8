"""Where and how a run happens: processes, device, dtype, seeds, log lines.

Collectives take their device from the tensors they are given; the rest of the project asks here.
"""

from __future__ import annotations

import atexit
import logging
import os
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mixins.sat_compat import mpu
from sat_models.errors import ConfigError, ZooError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_DTYPES = {
    **dict.fromkeys(("float32", "fp32"), torch.float32),
    **dict.fromkeys(("bfloat16", "bf16"), torch.bfloat16),
    **dict.fromkeys(("float16", "fp16"), torch.float16),
}


_NCCL_TIMEOUT = timedelta(hours=2)
"""Rank 0 may merge or hash a checkpoint of hundreds of GB while the others wait in a collective, and NCCL's watchdog
would end the run after its usual ten minutes. A rank that dies is noticed by torchrun all the same."""


def local_rank() -> int:
    """This process's number on its machine, as torchrun gives it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def rank() -> int:
    """This process's number in the whole run."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes in the run."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """The device to run on; "auto" is this process's GPU where there is one, else the CPU.

    Raises:
        ConfigError: a device that this machine does not have.
    """
    if str(device) == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", local_rank() % torch.cuda.device_count())
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device '{device}' is not a device: use auto, cpu, cuda, cuda:N or mps") from error
    if chosen.type == "mps":
        _check_apple(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device '{device}' was asked for, but torch sees no GPU here; use --device cpu or auto")
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", local_rank() % torch.cuda.device_count())
    if chosen.type == "cuda" and chosen.index >= torch.cuda.device_count():
        raise ConfigError(
            f"device '{device}' was asked for, but this machine has {torch.cuda.device_count()} GPU(s), numbered from 0"
        )
    return chosen


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of weights; "auto" is fp32 on CPU; on a GPU bf16 where it has it, else fp16; fp16 on Apple's."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        kind = torch.device(device).type
        if kind != "cuda":
            return torch.float16 if kind == "mps" else torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype '{dtype}' is unknown; use auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def init_distributed(device: torch.device | str = "cpu") -> None:
    """Join the process group of torchrun, or make one of this process alone; one that is there already stays.

    Args:
        device: of this process. A GPU becomes the current one of this thread.

    Raises:
        ConfigError: more processes on this machine than GPUs.
    """
    device = torch.device(device)
    use_device(device)
    if dist.is_initialized():
        return
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        if device.type == "cuda":
            _check_gpus()
            dist.init_process_group("nccl", init_method="env://", timeout=_NCCL_TIMEOUT)
        else:
            dist.init_process_group("gloo", init_method="env://")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    if dist.get_backend() == "gloo":
        atexit.register(_leave_group)


def use_device(device: torch.device | str) -> None:
    """Make a GPU the current one of this thread (CUDA keeps one for each); nothing for a CPU.

    Attention there is not cuDNN's: that plans anew for each number of tokens, so that each step of decoding would wait
    for a plan (38 ms on an H100, of 41 in all).
    """
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.enable_cudnn_sdp(False)


def wait_for(device: torch.device) -> None:
    """Let a GPU end what it was given, before a clock is read; a CPU has ended already."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def current_device() -> torch.device:
    """The GPU that is the current one of this thread; the CPU if no GPU is in use."""
    if torch.cuda.is_initialized():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _check_apple(device: str | torch.device) -> None:
    if not torch.backends.mps.is_available():
        raise ConfigError(f"device '{device}' was asked for, but torch sees no Apple GPU; use --device cpu or auto")
    if world_size() > 1:
        raise ConfigError(f"device '{device}' serves one process, and this run has {world_size()}; use --device cpu")
    logger.warning("nobody has tested this zoo on Apple's GPUs yet: compare an answer with --device cpu")


def _check_gpus() -> None:
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if processes > gpus:
        raise ConfigError(
            f"{processes} processes were started on this machine, but it has {gpus} GPU(s): one process per GPU. Start "
            "fewer, or use --device cpu"
        )


def _leave_group() -> None:
    """End gloo's threads before the interpreter goes: left alone they now and then abort a process that is done."""
    if dist.is_initialized():
        dist.destroy_process_group()


def init_model_parallel(size: int) -> None:
    """Split the processes into groups of `size` that share one model.

    Raises:
        ConfigError: `size` does not divide the number of processes, or a different split is in force.
    """
    init_distributed()
    if mpu.model_parallel_is_initialized():
        if mpu.get_model_parallel_world_size() != size:
            raise ConfigError(
                f"model-parallel size {size} was asked for, but this process already runs with "
                f"{mpu.get_model_parallel_world_size()}; one process can hold one split"
            )
        return
    if size < 1 or world_size() % size:
        raise ConfigError(f"model-parallel size {size} does not divide the {world_size()} process(es) of this run")
    mpu.initialize_model_parallel(size)


def broadcast_object(value: Any, *, source: int = 0) -> Any:
    """The same Python object on every rank: what rank `source` passes in."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=source, device=collective_device())
    return box[0]


def collective_device() -> torch.device:
    """Device on which collectives of this run work."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def gather_objects(value: Any) -> list[Any]:
    """Every rank's Python object, by rank, on every rank."""
    if world_size() == 1:
        return [value]
    everyone: list[Any] = [None] * world_size()
    dist.all_gather_object(everyone, value)
    return everyone


def gather_errors(error: str | None) -> list[str]:
    """Every rank's error message (None = fine) on every rank, so that all agree whether a step failed."""
    return [message for message in gather_objects(error) if message]


def in_step(action: Callable[[], T]) -> T:
    """Do something that may fail for the user's reasons on all ranks, and go on only if none failed.

    Without this, one rank raises and the others wait for it in their next collective.

    Raises:
        ZooError: this rank's own error, or, where it had none, another rank's message.
    """
    result, failure = None, None
    try:
        result = action()
    except ZooError as error:
        failure = error
    messages = gather_errors(str(failure) if failure else None)
    if failure:
        raise failure
    if messages:
        raise ZooError(f"another process of this run failed: {messages[0]}")
    return result


def seed_everything(seed: int) -> None:
    """Seed Python and torch."""
    random.seed(seed)
    torch.manual_seed(seed)


class _RankZeroOnly(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return rank() == 0 or record.levelno >= logging.ERROR


def setup_logging(level: int | str = logging.INFO) -> None:
    """Log to stderr; ranks other than 0 only say errors."""
    handler = logging.StreamHandler()
    handler.addFilter(_RankZeroOnly())
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
