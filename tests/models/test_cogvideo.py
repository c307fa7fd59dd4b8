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

from sat_models import runtime
from sat_models.errors import ConfigError
from sat_models.models.build import build_model, make_config
from sat_models.sampling.codes import CodeChoice
from sat_models.sampling.frames import IN_BETWEEN, write_frames
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


def written(
    painter: TokenPainter, tokens: Tensor, begun: int, codes: int, order: tuple[int, ...], **how: Any
) -> Tensor:
    """What the loop with its memory makes of the text and the whole frames before `begun`, greedily: tokens."""
    size, start = painter.config.frame_size, how["start"]
    text = text_of(tokens, start)
    given = tokens[text + 1 : begun].unflatten(0, (-1, size))[None]
    painter.model.config.__dict__["image_codes"] = codes
    choice = CodeChoice(temperature=0)
    frames = write_frames(
        painter.model, tokens[:text], given, order=order, choice=choice, generator=torch.Generator(), **how
    )
    return torch.cat([frame[0] for frame in frames])


@pytest.mark.slow
@each_folder("cogvideo")
def test_the_loop_with_its_memory_makes_the_originals_tokens(folder: Path) -> None:
    golden, told = tensors(folder), reference(folder)
    start, codes = told["start_of_image"], told["sizes"]["n_image"]
    one, two = stage(folder, 1), stage(folder, 2)
    tokens = golden["stage1.gen.tokens"]
    begun = int((golden["stage1.gen.seq"] < 0).nonzero()[0])
    made = written(one, tokens, begun, codes, (0, 1), start=start, text_weight=1.4)
    assert made[: len(tokens) - begun].equal(tokens[begun:])
    guide, tokens = golden["stage1.guided.guider"], golden["stage1.guided.tokens"]
    begun = text_of(tokens, start) + one.config.frame_size + 1
    how = {"guide": guide[: text_of(guide, start)], "guidance": 3, "start": start, "text_weight": 0.0}
    made = written(one, tokens, begun, codes, (0, 1), **how)
    assert made[: len(tokens) - begun].equal(tokens[begun:])
    tokens, begun = golden["stage2.gen.tokens"], len(golden["stage2.ids"]) + 1
    made = written(two, tokens, begun, codes, IN_BETWEEN, start=start, text_weight=1.4)
    assert made[: len(tokens) - begun].equal(tokens[begun:])


@pytest.mark.parametrize("number", [1, 2])
def test_the_loop_is_the_forward_that_says_what_was_given(number: int) -> None:
    """In four layers: what was given keeps windows that go on at the other side, what is made has windows that end."""
    runtime.init_model_parallel(1)
    torch.manual_seed(number)
    config = make_config(
        {
            "model_class": "CogVideoModel", "num_layers": 4, "hidden_size": 32, "num_attention_heads": 2,
            "vocab_size": 60, "image_codes": 40, "layout": [8, 24, 88], "window_size": 2 if number == 2 else -1,
            "cogvideo_stage": number, "max_sequence_length": 64, "additional_seqlen": 80, "frame_start": 16,
        }
    )  # fmt: skip
    model = build_model(config, device="cpu").eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.3)
    order = IN_BETWEEN if number == 2 else (0, 1, 2)
    given = torch.randint(40, (2, 3 if number == 2 else 1, 16))
    text, choice = torch.tensor([41, 42, 43]), CodeChoice(temperature=0)
    frames = list(
        write_frames(
            model, text, given, order=order, start=59, choice=choice, generator=torch.Generator(), text_weight=1.4
        )
    )
    codes = torch.cat((given, torch.stack(frames, dim=1)), dim=1)
    ids = torch.cat((torch.full((*codes.shape[:2], 1), 59), codes[..., :-1]), dim=2).flatten(1)
    ids = torch.cat((text.expand(2, -1), ids), dim=1)
    positions = torch.cat((torch.arange(3), *(torch.arange(16) + 16 * (frame + 1) for frame in order)))
    count = 3 + given.shape[1] * 16
    with torch.inference_mode():
        logits = model(input_ids=ids, position_ids=positions[None], text_weight=1.4, given=count)[0]
    assert logits[:, count:].argmax(-1).equal(torch.cat(frames, dim=1))
    assert len(set(torch.cat(frames).flatten().tolist())) > 5, "a test of something"
