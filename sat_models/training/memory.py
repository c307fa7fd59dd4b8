"""How much memory a rank needs for training, before it starts.

What DeepSpeed 0.19 keeps, with w bytes per weight, T trained weights of this rank and d data-parallel ranks:

| | ZeRO 0 | ZeRO 1 | ZeRO 2 | ZeRO 3 |
|---|---|---|---|---|
| weights | w each | w each | w each | w / d each, and what is gathered at the moment |
| fp32 copies | none in fp32, else 4 T | 4 T / d | 4 T / d | 4 T / d |
| Adam's moments | 8 T | 8 T / d | 8 T / d | 8 T / d |
| gradients at the end of a backward pass | w T, and a bucket | w T + w T / d | a bucket, and w T / d | as 2 |

ZeRO 1, 2 and 3 keep the fp32 copies in fp32 training, too: one model in fp32 takes less without ZeRO. Weights that do
not train cost their w bytes. A step of torch's AdamW makes temporary copies of what it updates at once.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sat_models.errors import ConfigError
from sat_models.processing.example import Images
from sat_models.training.activations import Activations, Probe, measure_pass, model_probe
from sat_models.training.engine import DTYPES
from sat_models.training.trainable import parameter_groups

logger = logging.getLogger(__name__)

BUCKET = 500_000_000
"""Elements of DeepSpeed's reduction bucket where its settings do not say."""
LIVE = 1_000_000_000
"""Elements that ZeRO 3 keeps gathered at most (`stage3_max_live_parameters`)."""
PARTS = ("weights", "optimizer", "gradients", "activations", "working")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one rank, without what Python and its packages take.

    Attributes:
        phases: by moment ("forward", "backward", "step"), the bytes of each of `PARTS` on the training device.
        host: bytes by part that offloading keeps in the memory of the host.
        note: what could not be counted; else empty.
    """

    phases: dict[str, dict[str, int]]
    host: dict[str, int] = field(default_factory=dict)
    note: str = ""

    @property
    def device_total(self) -> int:
        """The peak on the training device."""
        return max(sum(parts.values()) for parts in self.phases.values())

    @property
    def host_total(self) -> int:
        """The memory that offloading needs on the host."""
        return sum(self.host.values())

    @property
    def total(self) -> int:
        """Both."""
        return self.device_total + self.host_total

    @property
    def peak_phase(self) -> str:
        """When the device needs most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    def table(self) -> str:
        """Parts by moment in GB, with the peak marked."""
        rows = [("memory per process, GB", *self.phases)]
        rows += [(part, *(_gigabytes(parts[part]) for parts in self.phases.values())) for part in PARTS]
        peak = self.peak_phase
        sums = {name: _gigabytes(sum(parts.values())) for name, parts in self.phases.items()}
        rows.append(("sum", *(f"{'peak ' if name == peak else ''}{value}" for name, value in sums.items())))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join((row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))))
            for row in rows
        ]
        if self.host:
            parts = ", ".join(f"{name} {_gigabytes(count)}" for name, count in self.host.items())
            lines.append(f"on the host besides: {_gigabytes(self.host_total)} ({parts})")
        return "\n".join([*lines, self.note] if self.note else lines)


@dataclass(frozen=True)
class _Sizes:
    """Of this rank: bytes of all weights; trained weights, in all and of the largest optimiser group and parameter."""

    weights: int
    elements: int
    trained: int
    group: int
    parameter: int


def estimate_memory(
    model: nn.Module, config: Any, *, batch_size: int, length: int, images: Images = 1, **options: Any
) -> MemoryEstimate:
    """`estimate_pass` of text behind images.

    Args:
        config: the model's.
        batch_size, length: samples per pass, and tokens of each; every sample has images.
        images: of each sample, see `processing.example.Images`.
        options: the rest.
    """
    return estimate_pass(model, model_probe(model, config, batch_size, length, images), **options)


def estimate_pass(
    model: nn.Module,
    probe: Probe,
    *,
    precision: str,
    zero_stage: int,
    data_parallel: int,
    offload_optimizer: bool = False,
    offload_parameters: bool = False,
    checkpoint_language: bool = False,
    checkpoint_vision: bool = False,
    accumulate: int = 1,
    bucket: int = BUCKET,
    device: str | None = None,
) -> MemoryEstimate:
    """The memory of training at its peak on one rank; the model-parallel share is that of `model`.

    Args:
        model: this rank's part, with its plan applied; on any device, or on meta.
        probe: the pass with the most to keep.
        precision: fp32, bf16 or fp16.
        zero_stage, data_parallel: 0 to 3, and ranks that share optimiser state and gradients.
        offload_optimizer, offload_parameters: keep these on the host (ZeRO 1 to 3; ZeRO 3).
        checkpoint_language, checkpoint_vision: activation checkpointing.
        accumulate: passes per step; with several, gradients are there during the forward pass.
        bucket: elements of DeepSpeed's `reduce_bucket_size`.
        device: "cpu" or "cuda"; None: where the model is, and for meta what the machine has.

    Raises:
        ConfigError: a precision, stage or offloading that there is not.
    """
    _check(precision, zero_stage, offload_optimizer, offload_parameters)
    on_gpu = (device or _device_of(model)) == "cuda"
    sizes, width = _sizes(model, DTYPES[precision]), DTYPES[precision].itemsize
    activations, note = _activations(
        model, probe, dtype=DTYPES[precision], checkpoint_language=checkpoint_language,
        checkpoint_vision=checkpoint_vision,
    )  # fmt: skip
    ranks = data_parallel if zero_stage else 1
    share, group = -(-sizes.trained // ranks), -(-sizes.group // ranks)
    device_parts, host = _kept(sizes, width, share, zero_stage, data_parallel, offload_optimizer, offload_parameters)
    gathered = min(sizes.elements, LIVE) * width if zero_stage == 3 else 0
    gradients, reducing = _backward(sizes, width, share, zero_stage, bucket, on_gpu)
    if offload_optimizer:
        host |= {"gradients": 4 * share, "working": 8 * group + width * (share + sizes.parameter)}
        gradients, stepping = max(0, gradients - share * width), (0, 0)
    else:
        stepping = _step(sizes, width, share, group, zero_stage, on_gpu)
    phases = {
        "forward": (gradients if accumulate > 1 else 0, activations.kept, activations.loss + gathered),
        "backward": (gradients, activations.layer, reducing + gathered),
        "step": (stepping[0], 0, stepping[1]),
    }
    named = {name: dict(zip(PARTS[2:], parts, strict=True)) for name, parts in phases.items()}
    return MemoryEstimate({name: {**device_parts, **parts} for name, parts in named.items()}, host, note)


def _check(precision: str, stage: int, offload_optimizer: bool, offload_parameters: bool) -> None:
    if precision not in DTYPES:
        raise ConfigError(f"precision '{precision}' is unknown; use {', '.join(DTYPES)}")
    if stage not in range(4):
        raise ConfigError(f"ZeRO stage {stage} is unknown; the stages are 0, 1, 2 and 3")
    if offload_optimizer and stage == 0:
        raise ConfigError("the optimiser can be offloaded under ZeRO 1, 2 and 3, not 0")
    if offload_parameters and stage != 3:
        raise ConfigError(f"parameters can be offloaded under ZeRO 3 only, not {stage}")


def _device_of(model: nn.Module) -> str:
    kind = next(model.parameters()).device.type
    return ("cuda" if torch.cuda.is_available() else "cpu") if kind == "meta" else kind


def _sizes(model: nn.Module, dtype: torch.dtype) -> _Sizes:
    tensors = [*model.parameters(), *model.buffers()]
    weights = sum(t.numel() * (dtype.itemsize if t.is_floating_point() else t.element_size()) for t in tensors)
    groups = [[p.numel() for p in group["params"]] for group in parameter_groups(model, learning_rate=1.0)]
    return _Sizes(
        weights=weights,
        elements=sum(t.numel() for t in tensors),
        trained=sum(map(sum, groups)),
        group=max(map(sum, groups), default=0),
        parameter=max((max(group) for group in groups), default=0),
    )


def _activations(model: nn.Module, probe: Probe, **options: Any) -> tuple[Activations, str]:
    try:
        return measure_pass(model, probe, **options), ""
    except (NotImplementedError, RuntimeError, TypeError) as error:  # layers that know no tensors without memory
        logger.warning("the activations are not in the memory estimate: %s", str(error).splitlines()[0])
        return Activations(0, 0, 0), "activations are not counted: this model's layers cannot be followed without data"


def _kept(
    sizes: _Sizes, width: int, share: int, stage: int, ranks: int, offload_optimizer: bool, offload_parameters: bool
) -> tuple[dict[str, int], dict[str, int]]:
    """Weights and optimiser state, on the device and on the host."""
    weights = -(-sizes.weights // ranks) if stage == 3 else sizes.weights
    copies = 4 * share if stage or width < 4 else 0
    device, host = {"weights": weights, "optimizer": copies + 8 * share}, {}
    for part, moves in (("optimizer", offload_optimizer), ("weights", offload_parameters)):
        if moves:
            host[part], device[part] = device[part], 0
    return device, host


def _backward(sizes: _Sizes, width: int, share: int, stage: int, bucket: int, on_gpu: bool) -> tuple[int, int]:
    """Gradients, and what their reduction needs besides, when a backward pass ends. A CPU gives a bucket memory only
    where it is filled."""
    filled = min(bucket, sizes.trained)
    if stage == 0:
        return sizes.trained * width, filled * width
    if stage == 1:  # the gradients move into the bucket, then this rank's into a buffer of their own
        return (sizes.trained + share) * width, (bucket - filled) * width if on_gpu else 0
    return share * width, (bucket if on_gpu else filled) * width


def _step(sizes: _Sizes, width: int, share: int, group: int, stage: int, on_gpu: bool) -> tuple[int, int]:
    """Gradients, and temporary copies while AdamW runs. On a GPU it takes a group at once, on a CPU a tensor, and
    under ZeRO a group is one tensor."""
    copies = 4 if on_gpu else 8
    if stage:
        return share * width + group * 4, copies * group
    gradients = sizes.trained * (width if width == 4 else width + 4)
    return gradients, copies * (sizes.trained if on_gpu else sizes.parameter)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3f}"
