"""Pictures of an evaluation: a gallery of true and predicted boxes, and bars of the scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from sat_models.errors import InputError
from sat_models.evaluation.runner import PREDICTIONS_FILE, SCORES_FILE, read_predictions
from sat_models.evaluation.samples import read_json
from sat_models.figures import new_figure
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
