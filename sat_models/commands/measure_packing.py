"""What --pack saves: one optimiser step on the same questions about an image, in rows of their own and in one row.

python scripts/measure_packing.py                     # ten questions about an image of 490 pixels
python scripts/measure_packing.py --questions 4 --image_size 224

The model is a small CogVLM with random weights on the CPU, all of which train. The first step of each way is not timed.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from mixins.base import ZooModel
from mixins.packed_attention import PACKED_NAME, PackedLanesMixin
from sat_models import registry, runtime
from sat_models.config import read_json
from sat_models.errors import ConfigError, run_script
from sat_models.models.build import build_model, make_config
from sat_models.shapes.drawing import draw
from sat_models.shapes.questions import vqa
from sat_models.shapes.scenes import sample_scene
from sat_models.training.batches import batches
from sat_models.training.data import VLMDataset
from sat_models.training.losses import token_loss
from sat_models.training.packing import PackedDataset
from sat_models.training.records import Record
from sat_models.zoo import load_processor

PATCH = 14
SIZES = {"num_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "inner_hidden_size": 688}
TOWER = {"num_layers": 4, "hidden_size": 192, "num_attention_heads": 4, "inner_hidden_size": 768}


def measure(questions: int, image_size: int, steps: int) -> str:
    """A table of both ways."""
    runtime.init_model_parallel(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tiny = read_json(registry.config_path("cogvlm-tiny"))
        tower = {**tiny["eva_args"], **TOWER, "image_size": [image_size] * 2,
                 "max_sequence_length": (image_size // PATCH) ** 2 + 1}  # fmt: skip
        sizes = {**tiny, **SIZES, "image_length": (image_size // PATCH) ** 2, "eva_args": tower}
        (folder / "model_config.json").write_text(json.dumps(sizes))
        processor = load_processor(folder, local_tokenizer=registry.bundled_folder("cogvlm-tiny"))
        model = build_model(make_config(sizes), device="cpu")
        records = _records(folder, questions)
        lines = [f"{'':10} {'rows':>5} {'tokens':>7} {'s/step':>7} {'samples/s':>10} {'tokens/s':>9} {'loss':>8}"]
        for name, kind in (("separate", VLMDataset), ("packed", PackedDataset)):
            lines.append(f"{name:10} " + _row(model, kind(records, processor, version="vqa"), steps))
    return "\n".join(lines)


def _records(folder: Path, count: int) -> list[Record]:
    """So many questions of the bundled model's world about one drawn image."""
    rng = random.Random(0)
    scene = sample_scene(rng, min_objects=3, max_objects=3)
    image = folder / "image.png"
    draw(scene).save(image)
    asked = [vqa(scene, rng) for _ in range(count)]
    return [Record(str(n), (image,), ((qa.question, qa.answer),), f"made:{n}") for n, qa in enumerate(asked, 1)]


def _row(model: ZooModel, data: VLMDataset, steps: int) -> str:
    """One way: all samples in each step."""
    if isinstance(data, PackedDataset):
        model.add_mixin(PACKED_NAME, PackedLanesMixin())
    batch = next(batches(data, batch_size=len(data)))
    seconds = 0.0
    for step in range(steps + 1):
        model.zero_grad()
        began = time.perf_counter()
        total, count = token_loss(model, batch.inputs)
        (total / count).backward()
        seconds += (time.perf_counter() - began) * (step > 0)
    each, tokens = seconds / steps, batch.inputs.input_ids.numel()
    return (
        f"{len(data):5} {tokens:7} {each:7.2f} {data.samples / each:10.2f} {tokens / each:9.0f} "
        f"{total.item() / count:8.5f}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run it. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=10, help="about one image (10)")
    parser.add_argument("--image_size", type=int, default=490, help=f"side in pixels, a multiple of {PATCH} (490)")
    parser.add_argument("--steps", type=int, default=3, help="that are timed (3)")
    given = parser.parse_args(argv)
    for name, least in (("questions", 1), ("image_size", PATCH), ("steps", 1)):
        if getattr(given, name) < least:
            raise ConfigError(f"--{name} is {getattr(given, name)}; it must be at least {least}")
    if given.image_size % PATCH:
        raise ConfigError(f"--image_size is {given.image_size}; it must be a multiple of the patch, {PATCH}")
    torch.manual_seed(0)
    print(measure(given.questions, given.image_size, given.steps))
    return 0


def command() -> None:
    """The console command `sat-measure-packing`, and `scripts/measure_packing.py`."""
    run_script(main)
