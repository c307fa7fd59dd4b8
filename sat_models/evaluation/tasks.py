"""The tasks of the benchmarks: what is asked, and how an answer is scored.

Scores of one answer are averaged; scores of a corpus (CIDEr, POPE's F1) come from all answers together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sat_models.errors import ConfigError
from sat_models.evaluation import metrics
from sat_models.evaluation.captions import caption_metrics
from sat_models.evaluation.samples import PixelBox, Sample
from sat_models.processing.box_forms import BoxForm
from sat_models.processing.boxes import count_boxes, format_boxes, parse_boxes, strip_boxes

Size = tuple[int, int]
"""Width and height of a picture in pixels."""


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        prompt: what is asked; `{question}`, `{expression}` or `{box}` is filled in.
        score: sample, answer, the picture's size, and how the model writes boxes (None: any way) -> scores of the
            answer.
        corpus: all samples and answers -> scores of the corpus, if there are any.
        main: the score that tables show.
        right: the score that says whether one answer is right.
    """

    prompt: str
    score: Callable[..., dict[str, float]]
    corpus: Callable[[Sequence[Sample], Sequence[str]], dict[str, float]] | None
    main: str
    right: str


def question_of(prompt: str, sample: Sample, size: Size, form: BoxForm | None = None) -> str:
    """The question to the model: the sample's own prompt where it has one, else `prompt`, filled in.

    Args:
        form: how the model is told boxes; None is CogVLM's.

    Raises:
        ConfigError: the prompt names a word that samples of this task have not, or is no UTF-8.
    """
    words = {name: format_boxes([word], *size, form) if name == "box" else word for name, word in sample.words.items()}
    prompt = sample.prompt or prompt
    try:
        asked = prompt.format(**words)
        asked.encode()
        return asked
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        known = ", ".join(f"{{{name}}}" for name in sample.words) or "none"
        raise ConfigError(
            f"the prompt '{prompt}' of sample {sample.id} cannot be filled in ({error!r}). Words of this task: {known}."
        ) from error


def score_caption(sample: Sample, answer: str, size: Size, form: BoxForm | None = None) -> dict[str, float]:
    """Scores of an answer: it is one of the captions; it lists the same things as one, all of them, or none but
    them; the usual scores are the corpus'."""
    exact = any(metrics.exact_match(answer, reference) for reference in sample.references)
    listed = [metrics.caption_scores(answer, metrics.listed_names(reference)) for reference in sample.references]
    things = ("same_things", "every_object_named", "nothing_invented")
    return {"exact_match": float(exact), **{name: float(any(found[name] for found in listed)) for name in things}}


def score_vqa(sample: Sample, answer: str, size: Size, form: BoxForm | None = None) -> dict[str, float]:
    """Soft accuracy of the challenge, similarity in letters, and equality with the most frequent answer."""
    usual = max(sample.references, key=sample.references.count)
    return {
        "vqa_accuracy": metrics.vqa_soft_accuracy(answer, sample.references),
        "anls": metrics.anls(answer, sample.references),
        "exact_match": float(metrics.exact_match(answer, usual)),
    }


def score_rec(sample: Sample, answer: str, size: Size, form: BoxForm | None = None) -> dict[str, float]:
    """IoU of the first box of the answer, and whether it is at least one half."""
    boxes = _pixel_boxes(answer, size, form)
    overlap = metrics.iou(boxes[0], sample.boxes[0]) if boxes else 0.0
    return {"acc@0.5": float(overlap >= 0.5), "iou": overlap, "boxes": float(bool(boxes))}


def score_reg(sample: Sample, answer: str, size: Size, form: BoxForm | None = None) -> dict[str, float]:
    """As a caption, on the answer without boxes."""
    return score_caption(sample, strip_boxes(answer), size)


def score_grounded(sample: Sample, answer: str, size: Size, form: BoxForm | None = None) -> dict[str, float]:
    """Boxes of the answer against those of the phrases, at IoU 0.5.

    `box_*` look at boxes alone; `phrase_*` want a box and its phrase right. Precision is over the boxes that the model
    wrote (one without four values is wrong), recall over those of people. `right`: every phrase is there with a right
    box, and no other box.
    """
    said = [
        (metrics.bare_phrase(box.phrase), box.pixels) for box in parse_boxes(answer, *size, use_spacy=False, form=form)
    ]
    true = [(metrics.bare_phrase(p), box) for p, box in zip(sample.choices, sample.boxes, strict=True)]
    scores: dict[str, float] = {}
    for name, with_phrase in (("box", False), ("phrase", True)):
        hits = metrics.matched(said, true, with_phrase=with_phrase)
        precision, recall = hits / max(1, count_boxes(answer)), hits / max(1, len(true))
        scores |= {f"{name}_precision": precision, f"{name}_recall": recall}
        scores[f"{name}_f1"] = 2 * precision * recall / (precision + recall) if hits else 0.0
    scores["right"] = float(scores["phrase_precision"] == scores["phrase_recall"] == 1.0)
    return scores


def score_visual7w(sample: Sample, answer: str, size: Size, form: BoxForm | None = None) -> dict[str, float]:
    """Which choice the answer is nearest to: by overlap for boxes, by letters for text."""
    if sample.boxes:
        boxes = _pixel_boxes(answer, size, form)
        overlaps = [metrics.iou(boxes[0], choice) for choice in sample.boxes] if boxes else [0.0]
        right = overlaps[0] > 0 and overlaps[0] == max(overlaps)
        return {"accuracy": float(right), "acc@0.5": float(overlaps[0] >= 0.5), "iou": overlaps[0]}
    said = metrics.normalise(answer)
    nearness = [metrics.anls(said, [metrics.normalise(choice)], threshold=0.0) for choice in sample.choices]
    right = nearness[0] > 0 and nearness.count(max(nearness)) == 1 and nearness[0] == max(nearness)
    return {"accuracy": float(right), "exact_match": float(metrics.exact_match(answer, sample.choices[0]))}


def caption_corpus(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, float]:
    """CIDEr, BLEU and ROUGE-L, boxes left out of the answers."""
    return caption_metrics([strip_boxes(answer) for answer in answers], [sample.references for sample in samples])


def pope_corpus(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, float]:
    """POPE's scores, if the samples are POPE's."""
    if not all(sample.kind == "pope" for sample in samples):
        return {}
    scores = metrics.pope_scores(answers, [sample.references[0] for sample in samples])
    return {f"pope_{name}": value for name, value in scores.items()}


TASKS: dict[str, Task] = {
    "caption": Task("Describe this image.", score_caption, caption_corpus, "cider", "same_things"),
    "vqa": Task("{question}", score_vqa, pope_corpus, "vqa_accuracy", "exact_match"),
    "rec": Task("Where is {expression}? answer in [[x0,y0,x1,y1]] format.", score_rec, None, "acc@0.5", "acc@0.5"),
    "reg": Task(
        "Tell me what you see within the designated area {box} in the picture.", score_reg, caption_corpus, "cider",
        "same_things",
    ),
    "grounded-caption": Task(
        "Describe this image with a box for each object.", score_grounded, caption_corpus, "phrase_f1", "right"
    ),
    "visual7w": Task("{question}", score_visual7w, None, "accuracy", "accuracy"),
}  # fmt: skip
POINTING_PROMPT = "{question} answer in [[x0,y0,x1,y1]] format."
"""Of `visual7w` where the choices are boxes."""


def is_right(task: str, sample: Sample, answer: str, scores: Mapping[str, float]) -> float:
    """1 for a right answer, else 0; POPE's are judged as POPE does.

    Args:
        scores: of the answer, as the task's `score` gives them.
    """
    if sample.kind == "pope":
        return float(metrics.yes_or_no(answer) == sample.references[0])
    return scores[TASKS[task].right]


def right_boxes(task: str, sample: Sample, answer: str, size: Size, form: BoxForm | None = None) -> list[float]:
    """Of each box of an answer, whether it is a true one at IoU 0.5; nothing where no true ones are known."""
    true = sample.boxes[:1] if task == "visual7w" else sample.boxes  # there, the others are wrong choices
    said = _pixel_boxes(answer, size, form) if true else []
    return [float(any(metrics.iou(box, one) >= 0.5 for one in true)) for box in said]


def default_prompt(task: str, samples: Sequence[Sample]) -> str:
    """The question to the model unless the user says otherwise."""
    pointing = task == "visual7w" and samples and samples[0].boxes
    return POINTING_PROMPT if pointing else TASKS[task].prompt


def _pixel_boxes(answer: str, size: Size, form: BoxForm | None) -> list[PixelBox]:
    return [box.pixels for box in parse_boxes(answer, *size, use_spacy=False, form=form)]
