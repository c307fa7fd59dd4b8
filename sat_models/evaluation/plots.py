"""Pictures of an evaluation: a gallery of true and predicted boxes, bars of the scores, and how far answers are as
right as they are sure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from sat_models.errors import InputError
from sat_models.evaluation.calibration import SURE, SURE_NAME, Judged, judged_kinds, reliability
from sat_models.evaluation.runner import PREDICTIONS_FILE, SCORES_FILE, read_predictions
from sat_models.evaluation.samples import read_json
from sat_models.figures import new_figure
from sat_models.files import kept_records
from sat_models.processing.box_forms import BOX_FORMS
from sat_models.processing.boxes import parse_boxes
from sat_models.processing.image import load_image

TRUE, SAID = "#2ca02c", "#d62728"
_SIDE, _TEXT = 240, 34
OUT_OF = {"cider": 10}
"""The highest possible scores, where that is not 1."""


def grounding_gallery(folder: Path, output: Path, *, count: int = 12, columns: int = 4) -> Path:
    """A grid of pictures with the true box in green and the predicted ones in red, the question and the IoU below.

    Args:
        folder: of an evaluation with boxes (`rec`, `grounded-caption`, `visual7w` pointing).
        output: picture to write; its ending chooses the format.
        count: pictures, spread evenly over the predictions.
        columns: pictures in a row.

    Raises:
        InputError: no predictions with boxes.
    """
    entries = [entry for entry in read_predictions(folder) if entry.get("boxes")]
    if not entries:
        raise InputError(f"'{folder}' holds no predictions with true boxes. Evaluate rec or grounded-caption into it.")
    step = max(1, len(entries) // count)
    chosen = entries[::step][:count]
    columns = min(columns, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    sheet = Image.new("RGB", (columns * _SIDE, rows * (_SIDE + _TEXT)), "white")
    for index, entry in enumerate(chosen):
        place = (index % columns * _SIDE, index // columns * (_SIDE + _TEXT))
        sheet.paste(_cell(entry), place)
    sheet.save(output)
    return output


def _cell(entry: dict[str, Any]) -> Image.Image:
    """One picture with its boxes and two lines of text."""
    cell = Image.new("RGB", (_SIDE, _SIDE + _TEXT), "white")
    image = load_image(entry["image"])
    scale = (_SIDE - 8) / max(image.size)
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    cell.paste(small, (4, 4))
    draw = ImageDraw.Draw(cell)
    said = _pixels_said(entry, image.size)
    pointing = "accuracy" in entry["scores"]  # there, the other boxes are wrong choices
    for boxes, colour in ((entry["boxes"][:1] if pointing else entry["boxes"], TRUE), (said, SAID)):
        for box in boxes:
            draw.rectangle([4 + value * scale for value in box], outline=colour, width=2)
    font = ImageFont.load_default(size=11)
    score = next(
        (f"{name} {entry['scores'][name]:.2f}" for name in ("iou", "phrase_f1") if name in entry["scores"]), ""
    )
    for line, text in enumerate((entry["question"], f"{score}  {entry['answer']}")):
        draw.text((4, _SIDE - 2 + 15 * line), _fitting(draw, text, font), fill="black", font=font)
    return cell


def _pixels_said(entry: dict[str, Any], size: tuple[int, int]) -> list[tuple[float, float, float, float]]:
    form = BOX_FORMS.get(entry.get("box_form", ""))
    return [box.pixels for box in parse_boxes(entry["answer"], *size, use_spacy=False, form=form)]


def _fitting(draw: ImageDraw.ImageDraw, text: str, font: Any) -> str:
    """One line that fits into a cell."""
    text = " ".join(text.split())
    while text and draw.textlength(text, font=font) > _SIDE - 8:
        text = text[:-2] + "\u2026"
    return text


def score_bars(folders: Sequence[Path], output: Path) -> Path:
    """One panel per task with the scores of each folder side by side; of CIDEr, which goes to 10, a tenth is drawn.

    Args:
        folders: of evaluations of one or several tasks and models.
        output: picture to write; its ending chooses the format.

    Raises:
        InputError: a folder without scores of a task.
        MissingPackageError: matplotlib is not installed.
    """
    by_task: dict[str, list[tuple[str, dict[str, float]]]] = {}
    for folder in folders:
        task, model, scores = _scores(folder)
        by_task.setdefault(task, []).append((f"{model} ({folder})", scores))
    columns = min(3, len(by_task))
    rows = math.ceil(len(by_task) / columns)
    figure = new_figure(5.2 * columns, 3.2 * rows)
    for number, (task, results) in enumerate(by_task.items(), 1):
        axes = figure.add_subplot(rows, columns, number)
        names = list(dict.fromkeys(name for _, scores in results for name in scores))
        width = 0.8 / len(results)
        for index, (label, scores) in enumerate(results):
            there = [place for place, name in enumerate(names) if name in scores]  # no bar for what was not scored
            places = [place + (index - (len(results) - 1) / 2) * width for place in there]
            values = [scores[names[place]] for place in there]
            heights = [value / OUT_OF.get(names[place], 1) for value, place in zip(values, there, strict=True)]
            bars = axes.bar(places, heights, width, label=label)
            axes.bar_label(bars, [f"{value:.2f}" for value in values], fontsize=7)
        ticks = [f"{name} / {OUT_OF[name]}" if name in OUT_OF else name for name in names]
        axes.set_xticks(range(len(names)), ticks, rotation=30, ha="right", fontsize=8)
        axes.set_ylim(0, 1.1)
        axes.set_title(task)
        axes.spines[["top", "right"]].set_visible(False)
        if len(results) > 1:
            axes.legend(fontsize=7)
    figure.savefig(output, dpi=110)
    return output


def reliability_plot(folders: Sequence[Path], output: Path) -> Path:
    """A panel for each kind of answers, a line for each folder: answers in ten parts of equal number by their score,
    the share of each part that is right above its mean score. On the grey diagonal scores are probabilities of being
    right; what matters more is that a line rises.

    Args:
        folders: of evaluations with `--scores`.
        output: picture to write; its ending chooses the format.

    Raises:
        InputError: a folder without scores.
    """
    by_kind: dict[str, list[tuple[str, list[Judged]]]] = {}
    for folder in folders:
        for kind, answers in _judged(folder).items():
            by_kind.setdefault(kind, []).append((str(folder), answers))
    columns = min(4, len(by_kind))
    rows = math.ceil(len(by_kind) / columns)
    figure = new_figure(3.2 * columns, 3.2 * rows)
    for number, (kind, lines) in enumerate(by_kind.items(), 1):
        axes = figure.add_subplot(rows, columns, number)
        _draw_reliability(axes, lines)
        axes.set_title(kind)
    figure.savefig(output, dpi=110)
    return output


def _draw_reliability(axes: Any, lines: Sequence[tuple[str, list[Judged]]]) -> None:
    """One panel; its scores stand on a logarithmic scale where most are small, as those of boxes are."""
    least = 1.0
    for label, answers in lines:
        means, shares, _ = zip(*reliability(answers), strict=True)
        axes.plot(means, shares, marker="o", markersize=4, label=label)
        least = min(least, sorted(means)[len(means) // 2])
    if least < 0.1:
        axes.set_xscale("log")
    else:
        axes.plot([0, 1], [0, 1], color="0.8", linewidth=1, zorder=0)
        axes.set_xlim(-0.03, 1.03)
    axes.set(ylim=(-0.03, 1.03), xlabel="mean score", ylabel="share right")
    axes.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        axes.legend(fontsize=7)


def _judged(folder: Path) -> dict[str, list[Judged]]:
    """Scores and truth of one evaluation by the names of its `calibration`."""
    task = read_json(folder / SCORES_FILE).get("task", "data")
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in kept_records(folder / PREDICTIONS_FILE):
        groups.setdefault(entry.get("task", task), []).append(entry)
    if not (kinds := judged_kinds(groups)):
        raise InputError(f"the predictions in '{folder}' have no scores. Evaluate with --scores into another folder.")
    return kinds


def calibration_table(folders: Sequence[Path]) -> str:
    """The `calibration` of evaluations as a Markdown table, a line for each kind of answers.

    Raises:
        InputError: a folder without one.
    """
    lines = []
    for folder in folders:
        found = read_json(folder / SCORES_FILE).get("calibration")
        if not found:
            raise InputError(
                f"'{folder / SCORES_FILE}' has no calibration. Evaluate with --scores into another folder."
            )
        lines += [_line(f"{folder.name}: {kind}" if len(folders) > 1 else kind, one) for kind, one in found.items()]
    names = ["", "count", "right", "AUROC", f"surest {SURE:.0%}: right", "coverage", "from score"]
    head = [f"| {' | '.join(names)} |", "|---|" + "---:|" * (len(names) - 1)]
    return "\n".join([*head, *lines])


def _line(name: str, figures: dict[str, Any]) -> str:
    """One line of the table; a dash stands for what cannot be said."""
    area, threshold = figures["auroc"], figures["threshold"]
    cells = [name.replace("_", " "), str(figures["count"]), f"{figures['accuracy']:.1%}"]
    cells += ["\u2013" if area is None else f"{area:.2f}", f"{figures[SURE_NAME]:.1%}"]
    cells += [f"{figures['coverage']:.0%} at {figures['wanted']:.0%}"]
    cells += ["\u2013" if threshold is None else f"{threshold:.2g}"]
    return f"| {' | '.join(cells)} |"


def _scores(folder: Path) -> tuple[str, str, dict[str, float]]:
    """Task, model and scores of one evaluation: of `shapes` the share right of each task, of `data` no loss."""
    data = read_json(folder / SCORES_FILE)
    if "task" in data:
        scores = {name: value for name, value in data["scores"].items() if name != "count"}
        return data["task"], str(data["settings"]["model"]), scores
    if "versions" in data:
        return "shapes", folder.name, {task: values["right"] for task, values in data["scores"].items()}
    if "scores" in data:
        shares = {name: value for name, value in data["scores"].items() if name not in ("loss", "perplexity")}
        return "data", folder.name, shares
    raise InputError(f"'{folder / SCORES_FILE}' is not what scripts/evaluate.py writes ({PREDICTIONS_FILE} beside it).")
