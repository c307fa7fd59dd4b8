"""The table of the zoo, `sat-zoo`: every model with its sizes, its licence and where its weights are."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence

import torch
from torch import nn

from sat_models import registry, runtime
from sat_models.config import read_json
from sat_models.errors import CheckpointError, ConfigError, run_script
from sat_models.model_spec import ModelSpec
from sat_models.models.build import build_model, make_config
from sat_models.models.common.quantisation import Quantisation, make_quantised
from sat_models.zoo.locate import find_named

_HEADER = ("name", "parameters", "picture", "version", "bf16", "int4", "weights", "licence", "what for")
_NOT_SIZES = ("text_processor_version", "tokenizer_type")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the zoo, columns aligned. Memory is that of the weights; pictures and text come on top.

    Returns:
        Exit code.
    """
    argparse.ArgumentParser(
        description="List the models of the zoo: sizes, prompt style, memory of the weights in bf16 and with linears "
        "of 4 bits, where the weights are on this machine (SAT_HOME), licence.",
        allow_abbrev=False,
    ).parse_args(argv)
    rows = [_HEADER, *map(_row, registry.specs())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def command() -> None:
    """The console command `sat-zoo`, and `python -m sat_models.zoo`."""
    run_script(main)


def _row(spec: ModelSpec) -> tuple[str, ...]:
    image = f"{spec.image_size}" + (f"+{spec.cross_image_size}" if spec.cross_image_size else "")
    count, bf16, int4 = figures(spec)
    return (
        spec.name, count, image, spec.default_version or "-", bf16, int4, where(spec), spec.licence, spec.summary,
    )  # fmt: skip


def figures(spec: ModelSpec) -> tuple[str, str, str]:
    """Parameters, memory in bf16, memory with linears of 4 bits; from the config, "-" where there is none."""
    if spec.runs_in:
        return _short(spec.parameters), f"{_short(2 * spec.parameters)}B", "-"
    try:
        config = read_json(registry.config_path(spec.name))
        sizes = {key: value for key, value in config.items() if key not in _NOT_SIZES}
        count, bf16, int4 = _measure(json.dumps(sizes, sort_keys=True))
    except ConfigError:
        return "-", "-", "-"
    return _short(count), f"{_short(bf16)}B", f"{_short(int4)}B"


@functools.cache
def _measure(config: str) -> tuple[int, int, int]:
    """Parameters and bytes of a model of these sizes, built without memory."""
    runtime.init_model_parallel(1)
    model = build_model(make_config(json.loads(config)), dtype=torch.bfloat16)
    count, bf16 = sum(p.numel() for p in model.parameters()), _bytes(model)
    make_quantised(model, Quantisation(bits=4))
    return count, bf16, _bytes(model)


def _bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def _short(count: int) -> str:
    for unit, name in ((10**9, "G"), (10**6, "M")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count}"


def where(spec: ModelSpec) -> str:
    """The path of a model's weights on this machine, or why there is none."""
    if not spec.available:
        return "not yet"
    try:
        path = find_named(spec)
    except CheckpointError:
        return "download"
    return "bundled" if path == registry.bundled_folder(spec.name) else str(path)
