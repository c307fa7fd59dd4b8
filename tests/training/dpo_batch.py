"""A miniature with a LoRA that has learned something, and two pairs of answers about an image for it. As a program, on
any number of processes that share the model: the losses of some steps of plain descent from a LoRA that has not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from mixins.base import ZooModel
from mixins.lora import lora_layers
from sat_models import runtime
from sat_models.errors import run_script
from sat_models.processing.inputs import VLMInputs
from sat_models.training.batches import batches
from sat_models.training.losses import Preference
from sat_models.training.pairs import PairDataset
from sat_models.training.records import Record
from sat_models.training.trainable import apply_plan, plan_of
from sat_models.zoo import load_pretrained

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "cogvlm-mini"
PAIRS = (("What is it?", "A red card.", "A blue cat on a mat."), ("Which colour?", "Grey, and a little green.", "Red."))


def model_and_batch(*, learned: bool = True) -> tuple[ZooModel, VLMInputs]:
    """The same each time; rows 0 and 2 hold the chosen answers."""
    vlm = load_pretrained(FOLDER, device="cpu", dtype="float32")
    apply_plan(vlm.model, plan_of("all", 4, alpha=4.0, seed=1))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in lora_layers(vlm.model).values() if learned else ():
            for matrix in layer.matrix_B:
                matrix.normal_(std=0.05, generator=generator)
    records = [
        Record(str(n), (FOLDER / "image.png",), ((question, chosen),), f"x:{n}", rejected=rejected)
        for n, (question, chosen, rejected) in enumerate(PAIRS)
    ]
    data = PairDataset(records, vlm.processor, version="chat")
    return vlm.model.train(), next(batches(data, batch_size=2, group_by_length=False)).inputs


def main() -> None:
    """Where rank 0 writes the losses."""
    torch.set_num_threads(1)
    model, inputs = model_and_batch(learned=False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=2.0)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        made = Preference(0.5)(model, inputs)
        (made.total / made.count).backward()
        optimizer.step()
        losses.append(made.total.item() / made.count)
    if runtime.rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps([runtime.world_size(), losses]))


if __name__ == "__main__":
    run_script(main)
