"""The grammar of boxes in the form of each family, on random weights: no answer holds a broken one."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sat_models import runtime
from sat_models.checkpoint.io import save_checkpoint
from sat_models.generation.sampling import SamplingOptions
from sat_models.models.build import build_model
from sat_models.processing.boxes import count_boxes, parse_boxes
from sat_models.zoo import Constraint, load_pretrained
from sat_models.zoo.vlm import VLM

sys.path.insert(0, str(Path(__file__).parent))
from miniatures import GOLDEN, MINIATURES, perturbed

TOKENIZER = GOLDEN / "cogvlm-mini" / "tokenizer.model"
THREE = r"(\d{3})"
SHARE = r"([01]\.\d\d)"
WHOLE = r"(\d{1,4})"
FORMS = {
    "cogvlm-mini": ",".join([THREE] * 4),
    "glm4v-mini": ",".join([THREE] * 4),
    "cogvlm2-mini": ",".join([THREE] * 4),
    "xcomposer2-mini": ",".join([THREE] * 4),
    "llava-tiny": r"\[" + ", ".join([SHARE] * 4) + r"\]",
    "minigpt4-tiny": r"\{<" + "><".join([WHOLE] * 4) + r">\}",
    "internvl-mini": ", ".join([WHOLE] * 4),
    "internvl3-mini": ", ".join([WHOLE] * 4),
}
"""How a box of each stands in its answers."""
FRAMES = {"thousand": r"\[\[(?:B;)*B\]\]", "thousand in tags": r"\[\[(?:B\], \[)*B\]\]", "hundred": r"(?:B<delim>)*B"}
SIDE = 1000


@pytest.fixture(scope="module", params=FORMS)
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VLM:
    """A tiny model of each family with a tokenizer."""
    if (GOLDEN / request.param).is_dir():
        return load_pretrained(GOLDEN / request.param, device="cpu", dtype="float32")
    mini = next(mini for mini in MINIATURES if mini.name == request.param)
    runtime.init_model_parallel(1)
    config = replace(mini.config, vocab_size=512, max_sequence_length=512)
    torch.manual_seed(1)
    model, folder = perturbed(build_model(config, device="cpu")), tmp_path_factory.mktemp("boxes") / mini.name
    save_checkpoint(model, folder, config, step=1, tokenizer_file=TOKENIZER)
    return load_pretrained(folder, device="cpu", dtype="float32")


def wild_answers(vlm: VLM, constraint: Constraint, count: int, most: int) -> list[str]:
    """So many texts at temperature 2."""
    options = SamplingOptions(temperature=2.0, max_new_tokens=most)
    asked = vlm.request(None, "Where is it?", (), None, options, constraint=constraint)
    requests = [replace(asked, options=replace(options, seed=seed)) for seed in range(count)]
    answers = vlm.engine().answers(requests, max_rows=32)
    assert all(answer.incomplete is None for answer in answers)
    return [answer.text for answer in answers]


def corners_in(text: str, pattern: str) -> list[tuple[float, ...]]:
    return [tuple(map(float, found)) for found in re.findall(pattern, text)]


def test_boxes_alone_are_never_broken(vlm: VLM, request: pytest.FixtureRequest) -> None:
    box = FORMS[request.node.callspec.params["vlm"]]
    frame = FRAMES.get(vlm.config.sequence_form.boxes, "(?:B, )*B").replace("B", box.replace("(", "(?:"))
    tags = vlm.processor.box_form.tags or ("", "")
    drawn = set()
    for text in wild_answers(vlm, Constraint.boxes(), 200, 90):
        assert re.fullmatch(frame, text.removeprefix(tags[0]).removesuffix(tags[1])), text
        corners = corners_in(text, box)
        assert all(a < c and b < d for a, b, c, d in corners), text
        assert len(parse_boxes(text, SIDE, SIDE, form=vlm.processor.box_form)) == len(corners) == count_boxes(text)
        drawn.add(text)
    assert len(drawn) > 100


def test_boxes_in_text_are_never_broken(vlm: VLM, request: pytest.FixtureRequest) -> None:
    box, found = FORMS[request.node.callspec.params["vlm"]], 0
    opening = vlm.processor.box_form.marks[0][0]
    for text in wild_answers(vlm, Constraint.boxes(in_text=True), 200, 60):
        corners = corners_in(text, box)
        if opening in text:
            boxes = parse_boxes(text, SIDE, SIDE, form=vlm.processor.box_form)
            assert len(corners) >= text.count(vlm.processor.box_form.marks[0]) > 0, text
            assert len(boxes) >= len(corners) and all(a < c and b < d for a, b, c, d in corners), text
        found += len(corners)
    assert found > 5, "random weights begin boxes, too"


def test_a_limit_never_cuts_a_box(vlm: VLM, request: pytest.FixtureRequest) -> None:
    box = FORMS[request.node.callspec.params["vlm"]]
    for most in (31, 40, 47):
        for text in wild_answers(vlm, Constraint.boxes(), 10, most):
            assert corners_in(text, box) and text[-1] in "]}>", text
