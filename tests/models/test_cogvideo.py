"""CogVideo's two stages beside the original's outputs: its whole forward and its loop, which differ."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from golden_set import each_folder, reference, tensors

from sat_models.errors import ConfigError
from sat_models.models.build import make_config
from sat_models.zoo import load_pretrained
from sat_models.zoo.token_painter import TokenPainter

TOLERANCE = 2e-5
ROWS = {1: range(6), 2: (0, 1, 5, 20, 199, 399, 400, 401, 430, 600)}
"""Of the generated tokens: those whose logits the set holds."""


def stage(folder: Path, number: int) -> TokenPainter:
    return load_pretrained(folder / f"cogvideo-stage{number}", device="cpu", dtype="float32")


def run(painter: TokenPainter, ids: Tensor, positions: Tensor, codes: int, **how: Any) -> Tensor:
    with torch.inference_mode():
        return painter.model(input_ids=ids[None], position_ids=positions[None], **how)[0][0, :, :codes]


def close(found: Tensor, golden: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(found, golden, atol=tolerance, rtol=0)


def shifted(tokens: Tensor, text: int, start: int, frame: int) -> Tensor:
    """What the model reads of text, `<start_of_image>` and codes: each frame begins with that id."""
    ids = tokens.clone()
    ids[text::frame] = start
    return ids


def text_of(tokens: Tensor, start: int) -> int:
    """Tokens of the text before the first `<start_of_image>`."""
    return int((tokens == start).nonzero()[0])


def in_order(length: int, text: int) -> Tensor:
    return torch.cat((torch.arange(text), torch.arange(512, 512 + length - text)))


@each_folder("cogvideo")
def test_stage_1_whole(folder: Path) -> None:
    one, golden, codes = stage(folder, 1), tensors(folder), reference(folder)["sizes"]["n_image"]
    ids, positions = golden["stage1.ids"], golden["stage1.position_ids"]
    for name, weight in (("plain", 0.0), ("text_1.4", 1.4)):
        close(run(one, ids, positions, codes, text_weight=weight)[::23], golden[f"stage1.logits.{name}"])
    first = text_of(ids, reference(folder)["start_of_image"]) + one.config.frame_size
    alone = run(one, ids[:first], positions[:first], codes, text_weight=1.4, second=False)
    close(alone[::23], golden["stage1.logits.first_frame_no_swin"])


@each_folder("cogvideo")
def test_stage_1_as_its_loop(folder: Path) -> None:
    one, golden, told = stage(folder, 1), tensors(folder), reference(folder)
    tokens, start, codes = golden["stage1.gen.tokens"], told["start_of_image"], told["sizes"]["n_image"]
    text = text_of(tokens, start)
    begun = int((golden["stage1.gen.seq"] < 0).nonzero()[0])  # the first token that was made
    ids = shifted(tokens, text, start, one.config.frame_size)
    found = run(one, ids, in_order(len(ids), text), codes, text_weight=1.4, given=begun - 1)[begun - 1 : -1]
    close(found[: len(ROWS[1])], golden["stage1.gen.logits"])
    assert found.argmax(-1).equal(tokens[begun:])


@each_folder("cogvideo")
def test_stage_1_with_guidance(folder: Path) -> None:
    """Towards the text and three times away from a shorter one, both without the text's weight."""
    one, golden, told = stage(folder, 1), tensors(folder), reference(folder)
    tokens, start, codes = golden["stage1.guided.tokens"], told["start_of_image"], told["sizes"]["n_image"]
    text, other = text_of(tokens, start), text_of(golden["stage1.guided.guider"], start)
    begun = int((golden["stage1.guided.guider"] < 0).nonzero()[0]) - other
    both = []
    for words, length in ((tokens[:text], text), (golden["stage1.guided.guider"][:other], other)):
        ids = shifted(torch.cat((words, tokens[text:])), length, start, one.config.frame_size)
        both.append(run(one, ids, in_order(len(ids), length), codes)[length + begun - 1 : -1])
    guided = both[1] + 3 * (both[0] - both[1])
    close(guided[: len(ROWS[1])], golden["stage1.guided.logits"], 5 * TOLERANCE)  # it carries both errors, three times
    assert guided.argmax(-1).equal(tokens[text + begun :])


@each_folder("cogvideo")
def test_stage_2_whole_and_as_its_loop(folder: Path) -> None:
    one, golden, told = stage(folder, 2), tensors(folder), reference(folder)
    start, codes, positions = told["start_of_image"], told["sizes"]["n_image"], golden["stage2.position_ids"]
    given = golden["stage2.ids"]
    close(run(one, given, positions[: len(given)], codes)[::41], golden["stage2.logits"])
    tokens = golden["stage2.gen.tokens"]
    ids = shifted(tokens, text_of(tokens, start), start, one.config.frame_size)
    found = run(one, ids, positions, codes, given=len(given))[len(given) : -1]
    close(found[list(ROWS[2])], golden["stage2.gen.logits"])
    assert found.argmax(-1).equal(tokens[len(given) + 1 :])


@each_folder("cogvideo")
@pytest.mark.parametrize("number", [1, 2])
def test_names_are_the_originals(folder: Path, number: int) -> None:
    state = stage(folder, number).model.state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == reference(folder)[f"stage{number}_names"]


@each_folder("cogvideo")
def test_sizes_that_cannot_be(folder: Path) -> None:
    sizes = stage(folder, 2).config.to_dict()
    for change, said in (
        ({"window_size": 7}, "the side of a frame = 20 is not divisible by 7"),
        ({"window_size": 5}, "windows are shifted by half"), ({"window_size": 0}, "a number of cells, or -1"),
        ({"cogvideo_stage": 3}, "it is 1 or 2"), ({"layout": "64,463,2064"}, "no square"),
        ({"layout": "64,464"}, "three ends of parts"), ({"layout": "a,b,c"}, "three ends of parts"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            make_config({**sizes, **change})
