"""Drawn images with their objects in pixels, written as each tool writes its annotations: data to fine-tune on.

Images come from the random streams of `dataset.py`, so none is shared with training or evaluation of the bundled model.
"""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sat_models.errors import UnknownNameError
from sat_models.evaluation.samples import PixelBox
from sat_models.shapes.drawing import draw
from sat_models.shapes.scenes import sample_scene

IMAGES = "images"


@dataclass(frozen=True)
class BoxedImage:
    """One image.

    Attributes:
        number: from 1.
        size: width and height in pixels.
        things: names and corners in pixels, from left to right.
    """

    number: int
    size: tuple[int, int]
    things: tuple[tuple[str, PixelBox], ...]

    @property
    def file(self) -> str:
        """Its name, which is that of Visual Genome's publication."""
        return f"{self.number}.png"


def write_boxes(output: Path, *, form: str, count: int, seed: int = 0, max_objects: int = 3) -> Path:
    """Writes images and their annotations.

    Args:
        output: folder, made where missing; images go to `images/` in it.
        form: one of `BOX_FORMS`.
        count: images.
        seed: the same seed draws the same images.
        max_objects: most objects in an image.

    Returns:
        What fine-tuning reads.

    Raises:
        UnknownNameError: unknown `form`.
    """
    if form not in BOX_FORMS:
        raise UnknownNameError("form of boxes", form, BOX_FORMS, hint="Choose one with --boxes.")
    (output / IMAGES).mkdir(parents=True, exist_ok=True)
    images = []
    for number in range(1, count + 1):
        scene = sample_scene(random.Random(f"dataset/{seed}/{number}"), min_objects=1, max_objects=max_objects)
        things = tuple((f"the {obj.name}", tuple(map(float, obj.box))) for obj in scene.objects)
        images.append(BoxedImage(number, (scene.width, scene.height), things))
        draw(scene).save(output / IMAGES / images[-1].file, optimize=True)
    return BOX_FORMS[form](output, images)


def write_swift(output: Path, images: Sequence[BoxedImage]) -> Path:
    """ms-swift: a question in words, whose names and boxes stand in `objects`."""
    lines = []
    for image in images:
        for name, box in image.things:
            messages = [
                {"role": "user", "content": "<image>Where is <ref-object>? answer in [[x0,y0,x1,y1]] format."},
                {"role": "assistant", "content": "<bbox>"},
            ]
            objects = {"ref": [name], "bbox": [list(box)]}
            lines.append({"messages": messages, "images": [f"{IMAGES}/{image.file}"], "objects": objects})
    return _text(output / "train.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def write_coco(output: Path, images: Sequence[BoxedImage]) -> Path:
    """COCO: [x, y, width, height] and a category."""
    return _json(output / "annotations" / "instances_train.json", _instances(images))


def _instances(images: Sequence[BoxedImage]) -> dict[str, Any]:
    """The content of COCO's file."""
    names = _names(images)
    heads = [{"id": i.number, "width": i.size[0], "height": i.size[1], "file_name": i.file} for i in images]
    boxes = [(image, name, _corner_and_size(box)) for image in images for name, box in image.things]
    annotations = [
        {"id": number, "image_id": image.number, "category_id": names.index(name) + 1, "bbox": box,
         "area": box[2] * box[3], "iscrowd": 0, "segmentation": []}
        for number, (image, name, box) in enumerate(boxes, 1)
    ]  # fmt: skip
    categories = [{"id": number, "name": name, "supercategory": "shape"} for number, name in enumerate(names, 1)]
    return {"images": heads, "annotations": annotations, "categories": categories}


def write_refcoco(output: Path, images: Sequence[BoxedImage]) -> Path:
    """RefCOCO: pickled expressions, and `instances.json` with their boxes."""
    _json(output / "instances.json", _instances(images))
    refs, number = [], 0
    for image in images:
        for name, _ in image.things:
            number += 1
            sentence = {"sent_id": number, "sent": name, "raw": name, "tokens": name.split()}
            refs.append(
                {"ref_id": number, "ann_id": number, "image_id": image.number, "category_id": 1, "split": "train",
                 "file_name": image.file, "sent_ids": [number], "sentences": [sentence]}
            )  # fmt: skip
    path = output / "refs(unc).p"
    path.write_bytes(pickle.dumps(refs, protocol=2))
    return path


def write_visual_genome(output: Path, images: Sequence[BoxedImage]) -> Path:
    """Visual Genome: regions with a phrase each, in whole pixels."""
    entries, region = [], 0
    for image in images:
        regions = []
        for name, box in image.things:
            region += 1
            frame = dict(zip(("x", "y", "width", "height"), map(round, _corner_and_size(box)), strict=True))
            regions.append({"region_id": region, "image_id": image.number, "phrase": name, **frame})
        entries.append({"id": image.number, "regions": regions})
    return _json(output / "region_descriptions.json", entries)


def write_yolo(output: Path, images: Sequence[BoxedImage]) -> Path:
    """YOLO: the middle and size of each box as shares of the sides, and a data.yaml."""
    names = _names(images)
    for image in images:
        rows = []
        for name, (x0, y0, x1, y1) in image.things:
            width, height = image.size
            middle = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
            rows.append(f"{names.index(name)} {' '.join(f'{value:.6f}' for value in middle)}\n")
        _text(output / "labels" / f"{image.number}.txt", "".join(rows))
    listed = "".join(f"  {number}: {name}\n" for number, name in enumerate(names))
    return _text(output / "data.yaml", f"path: .\ntrain: {IMAGES}\nval: {IMAGES}\nnames:\n{listed}")


def write_labelme(output: Path, images: Sequence[BoxedImage]) -> Path:
    """LabelMe: a file per image, with two corners of each rectangle."""
    for image in images:
        shapes = [
            {"label": name, "points": [[x0, y0], [x1, y1]], "group_id": None, "shape_type": "rectangle", "flags": {}}
            for name, (x0, y0, x1, y1) in image.things
        ]
        named = {"imagePath": f"../{IMAGES}/{image.file}", "imageData": None}
        sides = {"imageHeight": image.size[1], "imageWidth": image.size[0]}
        path = output / "annotations" / f"{image.number}.json"
        _json(path, {"version": "5.4.1", "flags": {}, "shapes": shapes, **named, **sides})
    return output / "annotations"


def write_label_studio(output: Path, images: Sequence[BoxedImage]) -> Path:
    """Label Studio: a task per image, with boxes in per cent."""
    tasks = []
    for image in images:
        width, height = image.size
        sides = {"original_width": width, "original_height": height, "image_rotation": 0}
        results = []
        for number, (name, (x0, y0, x1, y1)) in enumerate(image.things):
            frame = {"x": x0 / width * 100, "y": y0 / height * 100}
            frame |= {"width": (x1 - x0) / width * 100, "height": (y1 - y0) / height * 100, "rotation": 0}
            result = {"id": f"r{number}", "type": "rectanglelabels", "from_name": "label", "to_name": "image"}
            results.append({**result, **sides, "value": {**frame, "rectanglelabels": [name]}})
        annotation = {"id": image.number, "was_cancelled": False, "ground_truth": False, "result": results}
        data = {"image": f"/data/upload/1/{image.number:08x}-{image.file}"}
        tasks.append({"id": image.number, "data": data, "annotations": [annotation], "predictions": []})
    return _json(output / "export.json", tasks)


def write_objects(output: Path, images: Sequence[BoxedImage]) -> Path:
    """ms-swift's `objects` without a question: what is asked is the trainer's choice."""
    lines = []
    for image in images:
        names, boxes = zip(*image.things, strict=True)
        objects = {"ref": list(names), "bbox": list(map(list, boxes))}
        lines.append({"image": f"{IMAGES}/{image.file}", "objects": objects})
    return _text(output / "train.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


BOX_FORMS: dict[str, Callable[[Path, Sequence[BoxedImage]], Path]] = {
    "swift": write_swift,
    "objects": write_objects,
    "coco": write_coco,
    "refcoco": write_refcoco,
    "visual-genome": write_visual_genome,
    "yolo": write_yolo,
    "labelme": write_labelme,
    "label-studio": write_label_studio,
}
"""By name."""


def _names(images: Sequence[BoxedImage]) -> list[str]:
    return sorted({name for image in images for name, _ in image.things})


def _corner_and_size(box: PixelBox) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box
    return x0, y0, x1 - x0, y1 - y0


def _json(path: Path, data: Any) -> Path:
    return _text(path, json.dumps(data) + "\n")


def _text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
