"""Where the time of a decode step goes: the kernels of a GPU, or torch's operators on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from sat_models import runtime

_LONGEST_NAME = 70


@dataclass(frozen=True)
class Part:
    """One kind of kernel in a step: its name, how often it runs, seconds of all its runs."""

    name: str
    calls: float
    seconds: float


def profiled(step: Callable[[], object], steps: int, device: torch.device) -> list[Part]:
    """Run `step` so often under torch's profiler; what one step consists of, the longest part first.

    Kernels that a CUDA graph launches count too. What runs outside of torch (C kernels, Python) is not seen.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as found:
        for _ in range(steps):
            step()
        runtime.wait_for(device)
    parts = []
    for event in found.key_averages():
        if (event.device_type == DeviceType.CUDA) == on_gpu:
            micros = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            parts.append(Part(_short(event.key), event.count / steps, 1e-6 * micros / steps))
    return sorted((part for part in parts if part.seconds > 0), key=lambda part: -part.seconds)


def _short(name: str) -> str:
    name = name.removeprefix("void ").replace("|", " ")
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
