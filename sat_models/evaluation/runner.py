"""Runs a task: questions in batches, over several processes, resumable; predictions as JSONL, scores as JSON.

Every process answers its share and writes `predictions.<process>.jsonl`; what is there already is not asked again. At
the end the first process puts all together, in the order of the annotations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm import tqdm

from sat_models import runtime
from sat_models.checkpoint.lock import FolderLock
from sat_models.errors import ConfigError
from sat_models.evaluation import metrics
from sat_models.evaluation.calibration import calibrations
from sat_models.evaluation.captions import tokenizer_name
from sat_models.evaluation.identity import differences, images_digest, model_identity, questions_digest
from sat_models.evaluation.samples import Sample, read_json
from sat_models.evaluation.tasks import TASKS, is_right, question_of, right_boxes
from sat_models.files import appended_records, kept_records, write_json, write_jsonl, writing
from sat_models.generation.sampling import SamplingOptions
from sat_models.processing.box_forms import BOX_FORMS
from sat_models.processing.image import load_image

if TYPE_CHECKING:
    from sat_models.zoo.vlm import VLM

SETTINGS_FILE, PREDICTIONS_FILE, SCORES_FILE = "settings.json", "predictions.jsonl", "scores.json"

AnswerFn = Callable[[Sequence[tuple[Image.Image, str]]], list[dict[str, Any]]]
"""Pictures with questions -> for each `text`, `tokens` and `finish_reason`, and where asked for `SCORES`."""
SCORES = ("score", "box_scores")
"""What a prediction says of how sure the model was; see `generation.scores`."""


def batched_answers(
    vlm: VLM, *, options: SamplingOptions, version: str | None = None, batch_size: int = 8, scores: bool = False
) -> AnswerFn:
    """Answers of a model, `batch_size` at a time; with `scores` how sure it was."""
    engine = vlm.engine()

    def answer(asked: Sequence[tuple[Image.Image, str]]) -> list[dict[str, Any]]:
        requests = [vlm.request(image, question, (), version, options, logprobs=scores) for image, question in asked]
        results = engine.answers(requests, max_rows=batch_size)
        return [
            {"text": r.text, "tokens": len(r.token_ids), "finish_reason": r.finish_reason}
            | ({name: getattr(r, name) for name in SCORES} if scores else {})
            for r in results
        ]

    return answer


def batched_by_version(
    vlm: VLM, *, options: SamplingOptions, batch_size: int = 8, scores: bool = False
) -> Callable[[list[tuple[Image.Image, str, str]]], list[dict[str, Any]]]:
    """Answers of a model to (picture, question, prompt version), in order: what `evaluate_shapes` asks."""
    answers: dict[str, AnswerFn] = {}
    how = {"options": options, "batch_size": batch_size, "scores": scores}

    def answer(asked: list[tuple[Image.Image, str, str]]) -> list[dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        for version in sorted({version for *_, version in asked}):  # ranks that share a model ask alike
            ask = answers.setdefault(version, batched_answers(vlm, version=version, **how))
            places = [place for place, each in enumerate(asked) if each[2] == version]
            found |= zip(places, ask([asked[place][:2] for place in places]), strict=True)
        return [found[place] for place in range(len(asked))]

    return answer


def run(
    task: str,
    samples: Sequence[Sample],
    output: Path,
    *,
    settings: dict[str, Any],
    prompt: str,
    options: SamplingOptions,
    version: str | None = None,
    model_parallel_size: int = 1,
    batch_size: int = 8,
    loading: dict[str, Any] | None = None,
    accuracy: float = 0.95,
) -> dict[str, Any] | None:
    """Loads `settings["model"]` on all processes, answers all samples, and scores them.

    Args:
        settings: of `settings_of`.
        model_parallel_size: processes that share one model.
        loading: further arguments of `load_pretrained`.
        accuracy: see `summarise`.

    Returns:
        What `summarise` gives, on the first process; None on the others.
    """
    from sat_models.zoo import load_pretrained

    device = runtime.choose_device((loading or {}).get("device", "auto"))
    runtime.init_distributed(device)
    lock = runtime.in_step(lambda: _take_folder(output, settings) if runtime.rank() == 0 else None)
    runtime.init_model_parallel(model_parallel_size)
    vlm = load_pretrained(settings["model"], **(loading or {}))
    settings = runtime.in_step(lambda: _with_model(output, settings, vlm) if runtime.rank() == 0 else settings)
    share = (runtime.rank() // model_parallel_size, runtime.world_size() // model_parallel_size)
    how = {"options": options, "version": version, "batch_size": batch_size, "scores": settings["scores"]}
    answer = batched_answers(vlm, **how)
    writes = runtime.rank() % model_parallel_size == 0
    runtime.in_step(
        lambda: predict(
            task, samples, answer, output, prompt=prompt, share=share, writes=writes, batch_size=batch_size,
            progress=runtime.rank() == 0, boxes=vlm.processor.form.boxes,
        )
    )  # fmt: skip
    if lock is None:
        return None
    result = summarise(task, samples, output, settings, accuracy=accuracy)
    lock.release()
    return result


def _take_folder(output: Path, settings: dict[str, Any]) -> FolderLock:
    """The folder for this run alone, if what is known before any weight is read agrees with what it holds."""
    lock = FolderLock(output, "another evaluation")
    check_folder(output, settings)
    return lock


def _with_model(output: Path, settings: dict[str, Any], vlm: VLM) -> dict[str, Any]:
    """The settings with the model's fingerprint, written into the folder."""
    settings = {**settings, **model_identity(vlm, settings["model"])}
    open_folder(output, settings)
    return settings


def write_result(output: Path, result: dict[str, Any], predictions: Sequence[dict[str, Any]]) -> None:
    """`scores.json` and `predictions.jsonl`."""
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        write_jsonl(output / PREDICTIONS_FILE, predictions)
        write_json(output / SCORES_FILE, result)


def settings_of(
    task: str, samples: Sequence[Sample], *, model: str, prompt: str, version: str | None, options: SamplingOptions,
    scores: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """All that predictions depend on but the model's fingerprint (`identity.model_identity`): kept beside them, so
    that a folder never mixes two runs. What is right is no part of it: scores are made anew each time."""
    return {
        "task": task,
        "model": model,
        "prompt": prompt,
        "version": version,
        "decoding": asdict(options),
        "scores": scores,
        "samples": len(samples),
        "samples_sha256": questions_digest(samples),
        "pictures_sha256": images_digest(samples),
    }


def check_folder(output: Path, settings: dict[str, Any]) -> None:
    """Sees that what a folder holds was made with the same settings.

    Raises:
        ConfigError: it was not.
    """
    path = output / SETTINGS_FILE
    before = read_json(path) if path.exists() else settings
    if changed := differences(before, settings):
        raise ConfigError(
            f"'{output}' holds predictions of other settings ({changed}). Give another --output, or remove that folder."
        )


def open_folder(output: Path, settings: dict[str, Any]) -> None:
    """Makes the folder, or checks that what it holds was made with the same settings; see `check_folder`."""
    check_folder(output, settings)
    output.mkdir(parents=True, exist_ok=True)
    if not (output / SETTINGS_FILE).exists():
        write_json(output / SETTINGS_FILE, settings)


def predict(
    task: str,
    samples: Sequence[Sample],
    answer: AnswerFn,
    output: Path,
    *,
    prompt: str,
    share: tuple[int, int] = (0, 1),
    writes: bool = True,
    batch_size: int = 8,
    progress: bool = True,
    boxes: str = "thousand",
) -> None:
    """Answers what is not answered yet.

    Args:
        share: (number of this process, number of processes): it takes one sample in so many.
        writes: False on the processes that only help another with its share of the model.
        batch_size: questions asked at a time; each is written as soon as its batch is done.
        boxes: how the model writes boxes, a name of `BOX_FORMS`.
    """
    done = {entry["id"] for entry in read_predictions(output)}
    todo = [sample for sample in samples[share[0] :: share[1]] if sample.id not in done]
    path = output / f"predictions.{share[0]}.jsonl"
    bar = tqdm(total=len(todo), desc=task, unit="question", disable=not (progress and writes))
    with bar, appended_records(path if writes else None) as write:
        for start in range(0, len(todo), batch_size):
            some = todo[start : start + batch_size]
            images = [load_image(sample.image) for sample in some]
            questions = [question_of(prompt, s, p.size, BOX_FORMS[boxes]) for s, p in zip(some, images, strict=True)]
            answers = answer(list(zip(images, questions, strict=True)))
            sizes = [image.size for image in images]
            entries = [_entry(task, *each, boxes) for each in zip(some, sizes, questions, answers, strict=True)]
            for entry in entries:
                write(entry)
            bar.update(len(some))


def _entry(
    task: str, sample: Sample, size: Sequence[int], question: str, answer: dict[str, Any], boxes: str
) -> dict[str, Any]:
    """The record that is kept of an answer.

    Args:
        size: of the picture.
        answer: `text`, `tokens` and `finish_reason`, and `SCORES` where asked for.
    """
    text, shape, form = answer["text"], (size[0], size[1]), BOX_FORMS[boxes]
    scores = TASKS[task].score(sample, text, shape, form)
    sure = {name: answer[name] for name in SCORES if name in answer}
    if sure:
        sure["right"] = is_right(task, sample, text, scores)
        sure["boxes_right"] = right_boxes(task, sample, text, shape, form)
    return {
        "id": sample.id,
        "image": str(sample.image),
        "size": list(size),
        "question": question,
        "answer": text,
        "tokens": answer["tokens"],
        "finish_reason": answer["finish_reason"],
        "references": list(sample.references),
        "boxes": [list(box) for box in sample.boxes],
        "box_form": boxes,
        "kind": sample.kind,
        "scores": scores,
        **sure,
    }


def _scored_anew(task: str, sample: Sample, kept: dict[str, Any]) -> dict[str, Any]:
    """A kept answer with what is right today."""
    names = ("tokens", "finish_reason", *SCORES)
    answer = {"text": kept["answer"], **{name: kept[name] for name in names if name in kept}}
    return _entry(task, sample, kept["size"], kept["question"], answer, kept["box_form"])


def read_predictions(output: Path) -> list[dict[str, Any]]:
    """All predictions of a folder, finished or not; a last line that was cut off is left out, and asked again."""
    files = sorted(output.glob("predictions*.jsonl"))
    entries = {entry["id"]: entry for path in files for entry in kept_records(path)}
    return list(entries.values())


def summarise(
    task: str, samples: Sequence[Sample], output: Path, settings: dict[str, Any], *, accuracy: float = 0.95
) -> dict[str, Any]:
    """Puts the processes' predictions together, scores them by what the samples say today, and writes the scores.

    Args:
        accuracy: the one that `calibration` says the coverage of.

    Returns:
        `task`, `main` (name of the score that tables show), `scores`, `by_kind` where there are kinds, `settings`, and
        where answers have scores `calibration`.

    Raises:
        ConfigError: a sample was not answered.
    """
    entries = {entry["id"]: entry for entry in read_predictions(output)}
    missing = [sample.id for sample in samples if sample.id not in entries]
    if missing:
        raise ConfigError(
            f"{len(missing)} samples have no prediction, the first '{missing[0]}'. Run the command again."
        )
    ordered = [_scored_anew(task, sample, entries[sample.id]) for sample in samples]
    scores = _means(ordered)
    if (corpus := TASKS[task].corpus) is not None:
        scores |= corpus(samples, [entry["answer"] for entry in ordered])
    kinds = sorted({entry["kind"] for entry in ordered} - {""})
    by_kind = {kind: [entry for entry in ordered if entry["kind"] == kind] for kind in kinds}
    result = {
        "task": task,
        "main": "pope_f1" if "pope_f1" in scores else TASKS[task].main,
        "scores": scores,
        "by_kind": {kind: _means(group) for kind, group in by_kind.items()},
        "settings": {**settings, **({"tokenizer": tokenizer_name()} if "cider" in scores else {})},
    }
    if settings["scores"]:
        result["calibration"] = calibrations({task: ordered}, accuracy=accuracy)
    write_result(output, result, ordered)
    for path in output.glob("predictions.[0-9]*.jsonl"):
        path.unlink()
    return result


def _means(entries: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {"count": len(entries), **metrics.means([entry["scores"] for entry in entries])}
