"""The samples of the training that peers are compared in: random images and words, drawn the same each time."""

from __future__ import annotations

import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

from sat_models.processing.tokens import Tokenizer

WORDS = ("red", "green", "blue", "circle", "square", "triangle", "large", "small", "left", "above", "the", "and", "of")
_COUNT, _SIDE, _PROMPT, _TEXT = 64, 336, 20, 60


def write_samples(folder: Path, tokenizer: Tokenizer, tokenizer_file: Path) -> None:
    """Write `train` of `folder`: images, `data.jsonl` as we read it, `plan.json` with ids for everybody."""
    place = folder / "train"
    place.mkdir(parents=True, exist_ok=True)
    drawn, lines, samples = random.Random(3), [], []
    for number in range(_COUNT):
        image = Image.new("RGB", (_SIDE, _SIDE), tuple(drawn.randrange(256) for _ in range(3)))
        ImageDraw.Draw(image).ellipse((50, 50, 200, 200), fill="red")
        image.save(place / f"{number}.png")
        prompt, text = (" ".join(drawn.choices(WORDS, k=count)) for count in (_PROMPT, _TEXT))
        lines.append(json.dumps({"id": number, "prompt": prompt, "text": text, "image": f"{number}.png"}))
        ids = {"prompt": tokenizer.encode(prompt), "text": tokenizer.encode(text)}
        samples.append({"image": f"{number}.png", **ids})
    (place / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plan = {"tokenizer": str(tokenizer_file), "rank": 16, "batch": 2, "steps": 12, "samples": samples}
    (place / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
