"""The reports of a run: metrics.jsonl, TensorBoard, Weights & Biases, SwanLab, a curve as an image. By rank 0 alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sat_models.errors import CheckpointError, MissingPackageError
from sat_models.figures import new_figure
from sat_models.files import writing

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
CURVE_FILE = "loss_curve.png"


class Reporter:
    """Keeps one line of numbers per report. After a resume, lines of steps that are run again are dropped.

    Args:
        folder: of the run.
        step: the run goes on from here.
        tensorboard: write events too.
        wandb: project of Weights & Biases to report to.
        swanlab: project of SwanLab to report to.
        settings: shown beside the run there.
        active: False on ranks that say nothing.

    Raises:
        MissingPackageError: wandb or swanlab is asked for and not installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        step: int,
        tensorboard: bool = True,
        wandb: str | None = None,
        swanlab: str | None = None,
        settings: Mapping[str, Any] | None = None,
        active: bool = True,
    ) -> None:
        self._file, self._events = folder / METRICS_FILE, None
        self._online: list[Any] = []
        self._active = active
        if not active:
            return
        with writing(self._file, CheckpointError):
            folder.mkdir(parents=True, exist_ok=True)
            _forget_after(self._file, step)
        if tensorboard:
            self._events = _start_tensorboard(folder, step)
        if wandb:
            self._online.append(_start_wandb(wandb, folder, settings or {}))
        if swanlab:
            self._online.append(_start_swanlab(swanlab, folder, settings or {}))

    def report(self, step: int, values: Mapping[str, Any]) -> None:
        """One line: `step` and named numbers.

        Raises:
            CheckpointError: it cannot be written.
        """
        if not self._active:
            return
        with writing(self._file, CheckpointError), self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        if self._events is not None:
            for name, value in numbers.items():
                self._events.add_scalar(name, value, step)
        for run in self._online:
            run.log(numbers, step=step)

    def close(self) -> Path | None:
        """End the reports and draw the curve. Returns the picture, None where there is nothing to draw."""
        for run in self._online:
            run.finish()
        try:
            if self._events is not None:
                self._events.close()
            return plot_curve(self._file) if self._active else None
        except OSError as error:
            logger.warning("the events or the curve could not be written: %s", error.strerror or error)
        except MissingPackageError as error:  # the numbers are in the file, and the run is done
            logger.warning("no %s: %s", CURVE_FILE, error)
        return None


def read_metrics(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file; one that a kill cut short is left out."""
    if not file.is_file():
        return
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            yield json.loads(line)
        except ValueError:
            continue


def plot_curve(file: Path) -> Path | None:
    """Draw training and validation loss over the steps, beside the metrics file."""
    lines = list(read_metrics(file))
    train = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    valid = [(line["step"], line["eval/loss"]) for line in lines if "eval/loss" in line]
    match = [(line["step"], line["eval/exact_match"]) for line in lines if "eval/exact_match" in line]
    if not train:
        return None
    figure = new_figure(7, 4)
    axes = figure.add_subplot(xlabel="step", ylabel="loss per token")
    axes.plot(*zip(*train, strict=True), label="training", linewidth=1)
    if valid:
        axes.plot(*zip(*valid, strict=True), label="validation", marker="o", markersize=3)
    if match:
        right = axes.twinx()
        right.set(ylabel="exact match", ylim=(0, 1.02))
        right.plot(*zip(*match, strict=True), color="tab:green", marker="s", markersize=3, label="exact match")
        right.legend(loc="center right")
    axes.set_ylim(bottom=0)  # after plotting: before, it would fix the top as well
    axes.legend(loc="upper right")
    axes.grid(alpha=0.3)
    curve = file.with_name(CURVE_FILE)
    figure.savefig(curve, dpi=110)
    return curve


def _forget_after(file: Path, step: int) -> None:
    kept = [line for line in read_metrics(file) if line.get("step", 0) <= step]
    file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


def _start_tensorboard(folder: Path, step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:  # written unless said otherwise, and all of it is in metrics.jsonl, too: no reason to end
        logger.warning('no TensorBoard events: tensorboardX is not installed (pip install "cogvlm-sat-zoo[track]")')
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


def _start_wandb(project: str, folder: Path, settings: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise MissingPackageError("wandb", "track", "reporting to Weights & Biases") from error
    return wandb.init(project=project, dir=str(folder), config=dict(settings), resume="allow")


def _start_swanlab(project: str, folder: Path, settings: Mapping[str, Any]) -> Any:
    """A run of SwanLab, which has `log` and `finish` as wandb's has; SWANLAB_MODE=offline keeps it on this machine."""
    try:
        import swanlab
    except ImportError as error:
        raise MissingPackageError("swanlab", "track", "reporting to SwanLab") from error
    return swanlab.init(project=project, log_dir=str(folder / "swanlab"), config=dict(settings))
