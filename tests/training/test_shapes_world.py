"""The synthetic world: scenes, questions, packed batches."""

from __future__ import annotations

import dataclasses
import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch

import sat_models
from sat_models.models.cogvlm.prompts import STYLES
from sat_models.processing.prompts import build_prompt
from sat_models.processing.tokens import SentencePieceTokenizer, Tokenizer
from sat_models.shapes import questions
from sat_models.shapes.dataset import write_dataset
from sat_models.shapes.drawing import draw
from sat_models.shapes.packing import LaneShape, fit_into_lanes, make_lane_batch
from sat_models.shapes.questions import QA, TASKS, VQA_KINDS
from sat_models.shapes.samples import (
    TASK_ID,
    Segment,
    TaskMix,
    dense_targets,
    encode_qa,
    sample_questions,
    target_weights,
)
from sat_models.shapes.scenes import Background, Scene, ShapeObject, sample_scene

WHITE = Background("solid", ((255, 255, 255),))
HEAD = 67  # BOS, BOI, 64 image tokens, EOI
ANY = (1, 1, 1)  # as many pictures of one, two and three objects


def scene_of(*objects: ShapeObject, size: tuple[int, int] = (200, 100)) -> Scene:
    return Scene(*size, WHITE, objects, antialias=False)


RED_CIRCLE = ShapeObject("red", "circle", "large", (10, 20, 50, 60), (255, 0, 0))
BLUE_SQUARE = ShapeObject("blue", "square", "small", (120, 60, 140, 80), (0, 0, 255))
RED_SQUARE = ShapeObject("red", "square", "small", (60, 10, 80, 30), (220, 20, 40))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return SentencePieceTokenizer.from_file(
        Path(sat_models.__file__).parent / "assets" / "cogvlm-tiny" / "tokenizer.model"
    )


def test_scenes_keep_their_promises() -> None:
    rng = random.Random(0)
    repeated = 0
    for _ in range(300):
        scene = sample_scene(rng)
        assert 1 <= len(scene.objects) <= 3
        names = [obj.name for obj in scene.objects]
        assert len(set(names)) == len(names)
        repeated += len({obj.color for obj in scene.objects}) < len(names)
        assert [obj.center for obj in scene.objects] == sorted(obj.center for obj in scene.objects)
        for index, obj in enumerate(scene.objects):
            x0, y0, x1, y1 = obj.box
            assert 0 < x0 < x1 < scene.width and 0 < y0 < y1 < scene.height
            share = (x1 - x0) / min(scene.width, scene.height)
            low, high = {"small": (0.18, 0.26), "large": (0.34, 0.44)}[obj.size]
            assert low - 0.005 <= share <= high + 0.005
            for other in scene.objects[:index]:
                a = other.box
                assert x1 < a[0] or a[2] < x0 or y1 < a[1] or a[3] < y0
    assert repeated > 30, "pictures that need binding are common"


@pytest.mark.parametrize("form", ["circle", "square", "triangle"])
@pytest.mark.parametrize("antialias", [False, True])
def test_drawn_pixels_fill_the_box(form: str, antialias: bool) -> None:
    obj = ShapeObject("red", form, "large", (13, 27, 53, 62), (255, 0, 0))
    image = draw(Scene(120, 100, WHITE, (obj,), antialias=antialias))
    ys, xs = np.nonzero(np.asarray(image)[..., 1] < 250)
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == obj.box
    assert image.size == (120, 100) and image.getpixel((33, 50)) == (255, 0, 0)


def test_same_seed_same_picture() -> None:
    first, second = (draw(sample_scene(random.Random("a"))) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_box_text() -> None:
    scene = scene_of(RED_CIRCLE)
    assert scene.box_999(RED_CIRCLE) == (50, 200, 250, 600)
    assert questions.box_text(questions.rounded_box((54, 205, 249, 999))) == "[[050,210,250,990]]"


def test_answers_by_hand() -> None:
    scene, rng = scene_of(RED_CIRCLE, RED_SQUARE, BLUE_SQUARE), random.Random(0)
    assert questions.caption(scene, rng).answer == "A red circle, a red square and a blue square."
    assert questions.rec(scene, rng, BLUE_SQUARE, canonical=True).question == (
        "Where is the blue square? answer in [[x0,y0,x1,y1]] format."
    )
    assert questions.rec(scene, rng, BLUE_SQUARE).answer == "[[600,600,700,800]]"
    assert questions.reg(scene, rng, RED_SQUARE).answer == "A red square."
    assert questions.grounded_caption(scene_of(RED_CIRCLE, BLUE_SQUARE), rng).answer == (
        "A red circle [[050,200,250,600]] and a blue square [[600,600,700,800]]."
    )
    for _ in range(30):
        assert questions.vqa(scene, rng, kind="color").answer == "red"  # only the circle is unique
        assert questions.vqa(scene, rng, kind="form").answer == "square"  # only blue is unique


def test_vqa_answers_follow_from_the_scene() -> None:
    scene, rng = scene_of(RED_CIRCLE, RED_SQUARE, BLUE_SQUARE), random.Random(1)
    names = {obj.name: obj for obj in scene.objects}
    seen = set()
    for _ in range(400):
        qa = questions.vqa(scene, rng)
        words = qa.question.rstrip("?").replace(",", "").split()
        named = [f"{a} {b}" for a, b in itertools.pairwise(words) if b in ("circle", "square", "triangle")]
        if qa.kind == "exist":
            assert qa.answer == ("yes" if named[0] in names else "no")
        elif qa.kind == "left_right":
            a, b = (names[name].center[0] for name in named)
            assert qa.answer == ("left" if a < b else "right")
        elif qa.kind == "above_below":
            a, b = (names[name].center[1] for name in named)
            assert qa.answer == ("above" if a < b else "below") and abs(a - b) > 15
        elif qa.kind == "size":
            assert qa.answer == names[named[0]].size
        elif qa.kind == "count" and "red" in words:
            assert qa.answer == "2"
        seen.add(qa.kind)
    assert seen == set(VQA_KINDS)


def test_yes_and_no_are_balanced_and_hard() -> None:
    rng, scene = random.Random(2), scene_of(RED_CIRCLE, BLUE_SQUARE)
    asked = [questions.vqa(scene, rng, kind="exist") for _ in range(600)]
    no = [qa for qa in asked if qa.answer == "no"]
    assert 250 < len(no) < 350
    assert sum("red square" in qa.question or "blue circle" in qa.question for qa in no) > len(no) / 3


def test_tokenizer_pieces(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, 576)
    assert len(tokenizer.encode("[[080,540,400,760]]")) == 17
    for word in ("red", "purple", "circle", "triangle", "yes", "no", "left", "below", "small", "Describe", "Where"):
        assert len(tokenizer.encode(word)) == 1, word
    text = "Fußball 中文 {x}\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_patches() -> None:
    marked = dataclasses.replace(RED_CIRCLE, digit=0)
    classes, box = dense_targets(scene_of(marked, BLUE_SQUARE), 8)
    grid = classes.reshape(8, 8, 4)
    assert grid[3, 1].tolist() == [1, 1, 2, 1] and grid[0].sum() == 0  # the circle's centre is (0.15, 0.4)
    assert grid[5, 5].tolist() == [3, 2, 1, 0]
    assert box.reshape(8, 8, 4)[5, 5].tolist() == [600, 600, 700, 800]


def test_a_digit_changes_nothing_but_its_shape() -> None:
    asked, seen = 0, set()
    for number in range(60):
        plain, marked = (sample_scene(random.Random(number), digit_share=share) for share in (0.0, 1.0))
        assert (
            dataclasses.replace(marked, objects=tuple(dataclasses.replace(obj, digit=None) for obj in marked.objects))
            == plain
        )
        difference = np.asarray(draw(marked), int) - np.asarray(
            draw(dataclasses.replace(plain, jpeg_quality=None)), int
        )
        inside = np.zeros(difference.shape[:2], bool)
        for obj in marked.objects:
            assert (obj.digit is not None) == (obj.size == "large")
            if obj.digit is not None:
                x0, y0, x1, y1 = obj.box
                inside[y0:y1, x0:x1] = True
                seen.add(obj.digit)
                if marked.jpeg_quality is None:
                    assert np.abs(difference[y0:y1, x0:x1]).max() > 80, "the digit can be read"
        if marked.jpeg_quality is None:
            assert not difference[~inside].any(), "it stays inside"
        mix = TaskMix(chat=0)
        digits = [qa for qa, _ in sample_questions(marked, random.Random(0), mix) if qa.kind == "digit"]
        assert len(digits) == mix.digit * sum(obj.digit is not None for obj in marked.objects)
        for qa in digits:
            asked += 1
            assert any(obj.name in qa.question and str(obj.digit) == qa.answer for obj in marked.objects)
    assert seen == set(range(10)) and asked > 30


def test_batch_is_a_function_of_seed_and_step(tokenizer: Tokenizer) -> None:
    first, again, other = (
        make_lane_batch(tokenizer, seed=1, step=step, batch_size=2, object_weights=ANY, mix=TaskMix())
        for step in (5, 5, 6)
    )
    assert all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(again).values(), strict=True))
    assert not torch.equal(first.vision_image, other.vision_image)


def test_each_question_stands_alone(tokenizer: Tokenizer) -> None:
    shape = LaneShape(lanes=4, length=128)
    batch = make_lane_batch(tokenizer, seed=0, step=0, batch_size=3, object_weights=ANY, mix=TaskMix(), shape=shape)
    assert batch.position_ids[0, :HEAD].tolist() == [0, 1, *[2] * 64, 3]
    assert batch.vision_expert_mask[0, :HEAD].tolist() == [0, *[1] * 65, 0]
    assert batch.image_embed_mask.sum().item() == 3 * 66 and batch.labels[:, :HEAD].eq(-100).all()
    by_lane = {name: getattr(batch, name)[:, HEAD:].view(3, 4, 128) for name in ("input_ids", "position_ids", "labels")}
    questions_seen = 0
    for b in range(3):
        for lane in range(4):
            ids, positions, labels = (by_lane[name][b, lane] for name in ("input_ids", "position_ids", "labels"))
            look = batch.lane_mask[b, lane]
            starts = [t for t in range(128) if positions[t] == 4]
            ends = [*starts[1:], int((positions > 0).sum())][: len(starts)]
            questions_seen += len(starts)
            assert look.any(-1).all()
            for start, end in zip(starts, ends, strict=True):
                assert look[start:end, :HEAD].all()
                own = look[start:end, HEAD:]
                assert torch.equal(own[:, start:end], torch.ones(end - start, end - start).tril().bool())
                assert not own[:, :start].any() and not own[:, end:].any()
                assert positions[start:end].tolist() == list(range(4, 4 + end - start))
                assert labels[end - 1] == tokenizer.eos_id
                trained = (labels[start : end - 1] != -100) & (labels[start : end - 1] != tokenizer.eos_id)
                assert torch.equal(labels[start : end - 1][trained], ids[start + 1 : end][trained])
    assert questions_seen >= 18
    assert torch.equal(batch.task_ids >= 0, batch.labels != -100)


def test_lanes_hold_what_fits_longest_first(tokenizer: Tokenizer) -> None:
    segments = [Segment([7] * n, [1] * n, 0, [1.0] * n) for n in (30, 100, 60, 90, 20, 200)]
    lanes = fit_into_lanes(segments, LaneShape(lanes=2, length=128))
    assert [[len(s.ids) for s in lane] for lane in lanes] == [[100, 20], [90, 30]]


def test_prompt_and_answer_are_inferences_own(tokenizer: Tokenizer) -> None:
    qa = QA("vqa", "size", "Is the red circle small or large?", "large")
    for version in ("base", "chat", "chat_old", "vqa"):
        prompt, answer = tokenizer.encode(build_prompt(STYLES[version], qa.question)), tokenizer.encode("large")
        segment = encode_qa(tokenizer, qa, version)
        assert segment.ids == prompt + answer
        assert segment.labels == [-100] * (len(prompt) - 1) + answer + [tokenizer.eos_id]


@pytest.mark.parametrize("version", ["chat", "chat_old"])
def test_every_turn_of_a_conversation_is_trained(tokenizer: Tokenizer, version: str) -> None:
    turns = [QA("vqa", "color", f"What color is {n}?", a) for n, a in (("it", "red"), ("that", "blue"), ("this", "2"))]
    segment = encode_qa(tokenizer, QA("chat", "vqa", turns[-1].question, "2", {"turns": turns}), version)
    history = [(turn.question, turn.answer) for turn in turns[:-1]]
    assert segment.ids == tokenizer.encode(
        build_prompt(STYLES[version], turns[-1].question, history)
    ) + tokenizer.encode("2")
    answers = [[*tokenizer.encode(turn.answer), tokenizer.eos_id] for turn in turns]
    assert [label for label in segment.labels if label != -100] == list(itertools.chain(*answers))
    assert segment.task_id == TASK_ID["chat"]


def test_the_first_digits_of_a_box_count_most(tokenizer: Tokenizer) -> None:
    digits = frozenset(tokenizer.encode(f"0{digit}")[-1] for digit in range(10))
    labels = [-100, *tokenizer.encode("[[080,540,400,860]]"), tokenizer.eos_id]
    weights = [w for w, label in zip(target_weights(labels, digits), labels, strict=True) if label in digits]
    assert weights == [6.0, 2.0, 0.1, 2.0, 0.5, 0.1, 1.0, 0.3, 0.1, 1.0, 0.3, 0.1]
    assert target_weights(tokenizer.encode("3"), digits) == [1.0] * len(tokenizer.encode("3")), "a count is no box"


def test_mix_of_tasks(tokenizer: Tokenizer) -> None:
    only_rec = TaskMix(caption=0, grounded_caption=0, rec=2, reg=0, vqa=0, chat=0)
    batch = make_lane_batch(tokenizer, seed=0, step=0, batch_size=4, object_weights=ANY, mix=only_rec)
    assert set(batch.task_ids.unique().tolist()) == {-1, TASK_ID["rec"]}
    batch = make_lane_batch(tokenizer, seed=0, step=0, batch_size=40, object_weights=ANY, mix=TaskMix())
    assert set(batch.task_ids.unique().tolist()) == {-1, *range(len(TASKS))}


def test_dataset_on_disk(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "a", count=5, seed=3, image_prefix="a/")
    lines = path.read_text().splitlines()
    assert len(lines) == 5 and '"id": 1' in lines[0] and '"image": "a/1.png"' in lines[0]
    again = write_dataset(tmp_path / "b", count=5, seed=3, image_prefix="a/")
    assert again.read_text() == path.read_text()
    assert (tmp_path / "a" / "5.png").read_bytes() == (tmp_path / "b" / "5.png").read_bytes()
