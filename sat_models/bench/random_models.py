"""Random-weight models of any size, prompts for them, and the floors that a machine sets to their speed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixins.base import ZooModel
from sat_models import registry, runtime
from sat_models.checkpoint.quantise import Quantiser
from sat_models.config import LanguageConfig, read_json
from sat_models.errors import ConfigError, InputError
from sat_models.models.build import build_model, computable_buffers, compute_buffer, make_config
from sat_models.models.cogvlm.config import CogVLMConfig
from sat_models.models.common.quantisation import Quantisation, linears_to_quantise
from sat_models.processing.example import example_inputs, image_that_fits, room_for_text
from sat_models.processing.inputs import VLMInputs

PATCH = 14
SEED = 0
_STD = 0.02


def config_of_sizes(
    *, layers: int, hidden_size: int, heads: int, inner_size: int, vocab_size: int, image_tokens: int,
    vision_layers: int, vision_hidden_size: int, vision_heads: int, vision_inner_size: int, max_length: int = 4096,
) -> LanguageConfig:  # fmt: skip
    """A CogVLM of these sizes.

    Raises:
        ConfigError: `image_tokens` is no square, or sizes that do not fit each other.
    """
    side = math.isqrt(image_tokens)
    if side * side != image_tokens:
        raise ConfigError(f"image_tokens is {image_tokens}; a square picture has n x n of them (64, 256, 1225, …)")
    return make_config({
        "model_class": "CogVLMModel", "num_layers": layers, "hidden_size": hidden_size, "num_attention_heads": heads,
        "inner_hidden_size": inner_size, "vocab_size": vocab_size, "max_sequence_length": max_length,
        "image_length": image_tokens,
        "eva_args": {
            "num_layers": vision_layers, "hidden_size": vision_hidden_size, "num_attention_heads": vision_heads,
            "inner_hidden_size": vision_inner_size, "image_size": [side * PATCH, side * PATCH], "patch_size": PATCH,
        },
    })  # fmt: skip


def config_of_name(name: str) -> LanguageConfig:
    """The sizes of a CogVLM or CogAgent of the zoo.

    Raises:
        UnknownNameError: no such model.
        InputError: a model of another kind.
    """
    spec = registry.resolve(name)
    config = _config_of(spec)
    if not isinstance(config, CogVLMConfig):
        names = ", ".join(spec.name for spec in registry.specs() if isinstance(_config_of(spec), CogVLMConfig))
        raise InputError(f"{name} cannot be measured, only a CogVLM or CogAgent: {names}")
    return config


def _config_of(spec: registry.ModelSpec) -> LanguageConfig:
    return make_config(read_json(registry.config_path(spec.name)))


@torch.no_grad()
def random_model(
    config: LanguageConfig, *, dtype: torch.dtype, device: torch.device, bits: int | None = None
) -> ZooModel:
    """A model with random weights, made on `device` (no copy passes through the CPU), in evaluation mode.

    Args:
        bits: of its linears, 8 or 4; each is quantised as it is drawn, so that the whole never exists in `dtype`.

    Raises:
        MissingPackageError: `bits`, and bitsandbytes is not installed.
    """
    runtime.init_distributed(device)
    runtime.init_model_parallel(1)
    model = build_model(config, dtype=dtype)
    generator = torch.Generator(device).manual_seed(SEED)
    if bits is not None:
        _quantise_random(model, bits, lambda like: _drawn(like, device, generator))
        model.quantised_head = True  # as `load_pretrained` decides unless told otherwise
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                value = _drawn(parameter, device, generator)
                if parameter.dim() < 2:
                    value.fill_(float(name.endswith("weight")))
                module._parameters[name] = nn.Parameter(value)
    for _, module, name in computable_buffers(model):
        module._buffers[name] = compute_buffer(module, name, device=device, dtype=dtype)
    return model.eval().requires_grad_(False)


def _drawn(like: Tensor, device: torch.device, generator: torch.Generator) -> Tensor:
    return torch.empty_like(like, device=device).normal_(std=_STD, generator=generator)


def _quantise_random(model: ZooModel, bits: int, draw: Callable[[Tensor], Tensor]) -> None:
    """Exchange the linears of a model on meta for quantised ones, in place, one after the other."""
    settings = Quantisation(bits=bits)
    quantiser = Quantiser(model, settings)
    for name in list(linears_to_quantise(model, settings)):  # names only: a linear that is exchanged is let go
        weight = draw(model.get_submodule(name).weight.detach())
        quantiser.place(model, f"{name}.weight", lambda rank, weight=weight: weight, 0, 1)


def prompt_of(config: Any, tokens: int, *, image: bool) -> VLMInputs:
    """A prompt of `tokens` tokens in all (at least one of text), with random text and a random picture or none."""
    images = [image_that_fits(config, tokens)] if image else 0
    return example_inputs(config, room_for_text(config, tokens, images=images), images=images, seed=SEED)


@dataclass(frozen=True)
class Floors:
    """The least time that a step can take: bytes over measured bandwidth, or operations over measured arithmetic.

    Attributes:
        bandwidth: bytes per second, the best of several ways to read much memory.
        arithmetic: operations per second of a large matrix product, in the best dtype that serves the model.
        token_bytes: weights that are read for each token of text (once for all rows of a step).
        token_flops: operations of one token, attention aside.
        head_flops: those of the output projection, which are for one token of a prompt only.
        layers, width: of the language model, for attention.
        kv_bytes: of the cache, per token of context.
        vision_flops: of one picture.
    """

    bandwidth: float
    arithmetic: float
    token_bytes: int
    token_flops: int
    head_flops: int
    layers: int
    width: int
    kv_bytes: int
    vision_flops: int

    @classmethod
    def measure(cls, model: ZooModel, device: torch.device, now: Callable[[], float] = time.perf_counter) -> Floors:
        """Measure the machine with the model's dtype, by the clock `now`; on a CPU in fp32 too."""
        dtype, config = next(p.dtype for p in model.parameters() if p.is_floating_point()), model.config
        ways = {dtype, torch.float32} if device.type == "cpu" else {dtype}
        language = language_weights(model)
        head, matrices = _values(model.get_mixin("lm").parameters()), _values(language)
        return cls(
            bandwidth=max(_bandwidth(device, way, now) for way in ways),
            arithmetic=max(_arithmetic(device, way, now) for way in ways),
            token_bytes=_bytes(language),
            token_flops=2 * (matrices - head),
            head_flops=2 * head,
            layers=config.num_layers,
            width=config.hidden_size,
            kv_bytes=2 * config.num_layers * config.heads.num_kv_heads * config.heads.head_dim * dtype.itemsize,
            vision_flops=_vision_flops(model),
        )

    def with_weights_of(self, model: ZooModel) -> Floors:
        """The same machine with a model whose weights take other room."""
        return replace(self, token_bytes=_bytes(language_weights(model)))

    @property
    def vision(self) -> float:
        """Seconds to encode one picture."""
        return self.vision_flops / self.arithmetic

    def prefill(self, tokens: int) -> float:
        """Seconds to compute a prompt."""
        attention = 2 * tokens**2 * self.width * self.layers  # causal: half of 4 S^2 D
        flops = tokens * self.token_flops + self.head_flops + attention
        return max(flops / self.arithmetic, self.token_bytes / self.bandwidth)

    def decode(self, context: int, rows: int = 1) -> float:
        """Seconds for one more token of each row, with `context` tokens in the cache of each."""
        read = (self.token_bytes + rows * context * self.kv_bytes) / self.bandwidth
        return max(read, rows * (self.token_flops + self.head_flops) / self.arithmetic)


def language_weights(model: ZooModel) -> list[Tensor]:
    """The bytes that one token of text reads: layers, gate projections, head; scales of quantised weights included."""
    parts: list[nn.Module] = [*model.transformer.layers, model.transformer.final_layernorm, model.get_mixin("lm")]
    parts.append(model.get_mixin("mlp").gate_proj)
    tensors: list[Tensor] = []
    for part in parts:
        named = [*part.named_parameters(), *part.named_buffers()]
        tensors += [tensor for name, tensor in named if "cross_attention.key_value" not in name]
    return tensors


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _values(tensors: Iterable[Tensor]) -> int:
    """Of matrices and convolutions: two in each byte where weights have 4 bits; scales, which are buffers, are none."""
    matrices = (tensor for tensor in tensors if isinstance(tensor, nn.Parameter) and tensor.dim() in (2, 4))
    return sum(matrix.numel() * (2 if matrix.dtype == torch.uint8 else 1) for matrix in matrices)


def _vision_flops(model: ZooModel) -> int:
    """Of the "eva" tower and its projector: products and attention."""
    mixin, tower = model.get_mixin("eva"), model.config.eva_args
    patches = tower.num_patches + 1
    return 2 * _values(mixin.parameters()) * patches + 4 * patches**2 * tower.hidden_size * tower.num_layers


def _best(action: Callable[[], Any], device: torch.device, now: Callable[[], float], repeats: int = 6) -> float:
    """Seconds of the fastest of several runs."""
    times = []
    for _ in range(repeats):
        start = now()
        action()
        runtime.wait_for(device)
        times.append(now() - start)
    return min(times)


def _bandwidth(device: torch.device, dtype: torch.dtype, now: Callable[[], float]) -> float:
    """Bytes per second: a sum, and a matrix times a vector, over memory much larger than any cache."""
    rows, columns = (65536, 16384) if device.type == "cuda" else (16384, 4096)
    matrix = torch.ones(rows, columns, device=device, dtype=dtype)
    vector = torch.ones(1, columns, device=device, dtype=dtype)
    seconds = min(_best(lambda: matrix.sum(), device, now), _best(lambda: F.linear(vector, matrix), device, now))
    return matrix.numel() * matrix.element_size() / seconds


def _arithmetic(device: torch.device, dtype: torch.dtype, now: Callable[[], float]) -> float:
    """Operations per second of a square matrix product."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _best(lambda: left @ right, device, now)
