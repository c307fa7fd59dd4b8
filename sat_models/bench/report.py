"""A benchmark's rows as a table and as a plot."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sat_models.bench.random_models import Floors
from sat_models.errors import InputError
from sat_models.figures import new_figure
from sat_models.text import markdown_table

_COLUMNS = ("what", "ours", "stock", "times faster", "floor", "of the floor", "peak memory")


def surroundings(
    device: torch.device, dtype: torch.dtype, clock: str, parameters: int, floors: Floors, step: str
) -> dict[str, Any]:
    """Facts without which a figure means nothing; `step` is the way of `Stepper`."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": where,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "clock": clock,
        "dtype": str(dtype).removeprefix("torch."),
        "parameters": parameters,
        "decode_step": step,
        "bandwidth_gb_s": floors.bandwidth / 1e9,
        "arithmetic_gflop_s": floors.arithmetic / 1e9,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table."""
    lines = [_COLUMNS, ("---",) * len(_COLUMNS)]
    for row in rows:
        if row["value"] is None:
            lines.append((f"{row['case']}: {row['note']}", *[""] * (len(_COLUMNS) - 1)))
            continue
        name = f"{row['case']}, {row['what']}" + (f" ({row['note']})" if row["note"] else "")
        ours, stock, floor = (_figure(row[key], row["unit"]) for key in ("value", "stock", "floor"))
        times = f"{row['speedup']:.1f}" if row["speedup"] else ""
        share = f"{100 * row['share']:.0f} %" if row["share"] else ""
        memory = f"{row['memory'] / 1e9:.1f} GB" if row["memory"] else ""
        lines.append((name, ours, stock, times, floor, share, memory))
    return markdown_table(lines)


def _figure(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Decode speed over context, ours, stock and the floor; the ending of `path` chooses the format.

    Raises:
        InputError: fewer than two contexts were measured.
        MissingPackageError: matplotlib is not installed.
    """
    decoded = [row for row in rows if row["case"] == "decode" and row["value"] and not row["what"].startswith("int")]
    decoded = [row for row in decoded if "through" not in row["what"]]
    points = sorted(((int(re.search(r"(\d+) tokens", row["what"])[1]), row) for row in decoded), key=lambda p: p[0])
    if len(points) < 2:
        raise InputError("a plot over context needs at least two contexts (--contexts, --text-contexts)")
    figure = new_figure(7, 4)
    axes = figure.add_subplot()
    lines = (("value", "this repository", "o-"), ("stock", "stock SAT", "s-"), ("floor", "memory floor", "k--"))
    for key, label, style in lines:
        known = [(tokens, row[key]) for tokens, row in points if row[key]]
        if known:
            axes.plot(*zip(*known, strict=True), style, label=label)
    axes.set(xlabel="tokens in the cache", ylabel="tokens per second", title="Decoding one answer")
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
