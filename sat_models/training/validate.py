"""Training data looked through before any training: what is wrong and where, how long samples are, what is trained."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sat_models.errors import InputError, UnknownNameError
from sat_models.processing.image import load_image
from sat_models.processing.layout import IGNORE, MIN_ANSWER_ROOM, TAIL_ROOM, VLMInputs
from sat_models.processing.processor import Processor
from sat_models.processing.tokens import Tokenizer
from sat_models.text import printable
from sat_models.training.data import too_long
from sat_models.training.data_report import Report
from sat_models.training.formats import detect_format, read_records
from sat_models.training.grounding.asking import Asking
from sat_models.training.grounding.drawn import draw_records
from sat_models.training.grounding.samples import tasks_of
from sat_models.training.reading import SPLITS
from sat_models.training.records import PROBLEM_KINDS, ImageFile, Problem, Record

_NO_LIMIT = 2**31
"""A max_length at which nothing is cut."""


def validate(
    path: str | os.PathLike[str],
    processor: Processor | None = None,
    *,
    version: str | None = None,
    max_length: int | None = None,
    format: str | None = None,
    prompt: str | None = None,
    image_root: str | os.PathLike[str] | None = None,
    asking: Asking | None = None,
    split: str = SPLITS[0],
    draw: Path | None = None,
    most_drawn: int = 50,
    ignore: Iterable[str] = (),
    decode_images: bool = True,
    workers: int | None = None,
    progress: bool = False,
) -> Report:
    """Looks through training data.

    Args:
        path, format, prompt, image_root, asking, split: see `formats.read_records`.
        processor: of the model to be trained; without one nothing that needs tokens is looked at.
        version: prompt style; None takes the processor's.
        max_length: longest sample in tokens; None takes the processor's.
        ignore: kinds of problems (`records.PROBLEM_KINDS`) to pass over.
        decode_images: read every picture to its end; else only that the files exist.
        workers: threads for that; None chooses.
        progress: show progress bars.
        draw: a folder for drawings of the boxes, in the form of the model's family where one is named.
        most_drawn: images to draw.

    Raises:
        InputError: the folder of the drawings cannot be written; the path is not there or holds nothing known.
        UnknownNameError: an unknown format, version or kind.
    """
    ignored = set(ignore)
    for kind in ignored - set(PROBLEM_KINDS):
        raise UnknownNameError("kind of problem", kind, PROBLEM_KINDS)
    found, place = (format, Path(path)) if format else detect_format(path)
    problems: list[Problem] = []
    records = read_records(
        place, format=found, prompt=prompt, image_root=image_root, asking=asking, split=split,
        on_problem=problems.append,
    )  # fmt: skip
    problems += duplicates(records)
    if decode_images:
        problems += unreadable_images(records, workers=workers, progress=progress)
    report = Report(printable(str(place)), found, len(records))
    report.with_images = sum(bool(record.images) for record in records)
    report.pairs = sum(record.rejected is not None for record in records)
    report.tasks = tasks_of(records)
    if draw is not None:
        form = processor.box_form if processor is not None else None
        report.drawn = list(map(str, draw_records(records, draw, form=form, most=most_drawn)))
    if processor is not None:
        report.max_length = max_length or processor.max_length
        problems += _count_tokens(report, records, processor, version or processor.version, progress)
    report.problems = [problem for problem in problems if problem.kind not in ignored]
    return report


def _count_tokens(
    report: Report, records: Sequence[Record], processor: Processor, version: str, progress: bool
) -> list[Problem]:
    """Lengths and a sample into a report that has its limit; what does not fit."""
    problems: list[Problem] = []
    rows = [row for record in records for row in record.rows()]
    for record in tqdm(rows, desc="lengths", unit="record", disable=not progress):
        lengths, long = check_lengths(record, processor, version=version, max_length=report.max_length)
        report.lengths += lengths
        problems += long
    report.sample = first_sample(records, processor, version=version, max_length=report.max_length)
    return problems


def duplicates(records: Sequence[Record]) -> Iterator[Problem]:
    """Records whose pictures, turns and boxes were there before."""
    seen: dict[Any, str] = {}
    for record in records:
        first = seen.setdefault((record.images, record.turns, record.boxes, record.rejected), record.source)
        if first is not record.source:
            yield Problem(record.source, "duplicate", f"is the same as {first}")


def unreadable_images(
    records: Sequence[Record], *, workers: int | None = None, progress: bool = False
) -> Iterator[Problem]:
    """Pictures that cannot be read to their end; each is read once."""
    sources: dict[ImageFile, str] = {}
    for record in records:
        for image in record.images:
            sources.setdefault(image, record.source)
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        faults = tqdm(
            pool.map(_image_fault, sources), total=len(sources), desc="pictures", unit="file", disable=not progress
        )
        for source, fault in zip(sources.values(), faults, strict=True):
            if fault:
                yield Problem(source, "image", fault)


def check_lengths(
    record: Record, processor: Processor, *, version: str, max_length: int
) -> tuple[list[int], list[Problem]]:
    """Tokens of each sample of a record before any cut, and what does not fit: what training would refuse or cut."""
    parts = [
        part for part in processor.split_turns(range(len(record.turns)), version) if part[-1] not in record.untrained
    ]
    lengths, problems, plans, style = [], [], processor.plans(record.images), processor.style(version).trained
    said, system = record.said(style, processor.box_form)
    for part in parts:
        turns = [said[place] for place in part]
        (*_, whole) = processor.training_layouts(turns, plans, version=version, max_length=_NO_LIMIT, system=system)
        lengths.append(whole.input_ids.numel())
        first = plans[: style.images_up_to(1, turns, len(plans))]
        question = processor.question_length(turns[0][0], first, version, system)
        if question > max_length - MIN_ANSWER_ROOM:
            message = too_long(question, max_length, len(first))
        else:
            (*_, kept) = processor.training_layouts(turns, plans, version=version, max_length=max_length, system=system)
            if kept.input_ids.numel() == lengths[-1]:
                continue
            message = (
                f"takes {lengths[-1]} tokens of the {max_length - TAIL_ROOM + 1} that max_length {max_length} leaves; "
                "its last turns or the end of the last answer will be cut off"
            )
        where = f"turn {part[0] + 1}: " if len(part) == 1 < len(record.turns) else ""
        problems.append(Problem(record.source, "too long", where + message))
    return lengths, problems


def first_sample(
    records: Sequence[Record], processor: Processor, *, version: str, max_length: int
) -> tuple[str, str] | None:
    """Source and text of the first sample that can be made; of a pair, both."""
    for record in records:
        texts = []
        try:
            for row in record.rows():
                turns, system = row.said(processor.style(version).trained, processor.box_form)
                samples = processor.training_samples(
                    list(row.images), turns, version=version, max_length=max_length, untrained=row.untrained,
                    system=system,
                )  # fmt: skip
                texts.append(marked_text(samples[0], processor.tokenizer))
        except InputError:
            continue
        return printable(record.source), "\n  and rejected: ".join(texts)
    return None


def marked_text(sample: VLMInputs, tokenizer: Tokenizer) -> str:
    """A sample as text, what is trained in « »; </s> is the end that the model learns to say.

    At the end of an earlier answer the target is </s>, although the input goes on with the next question.
    """
    ids, labels = sample.input_ids[0].tolist(), sample.labels[0].tolist()
    slots = sample.image_embed_mask[0].tolist()
    experts = slots if sample.vision_expert_mask is None else sample.vision_expert_mask[0].tolist()
    parts: list[tuple[bool, bytes]] = []
    for at, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if slots[at]:
            if experts[at] and (at == 0 or not experts[at - 1]):  # EOI, which no expert reads, parts two pictures
                parts.append((False, b"<picture>"))
            continue
        if label != IGNORE and label != token:
            parts.append((True, _bytes_of(label, tokenizer)))
        parts.append((label == token, _bytes_of(token, tokenizer)))
    text, trained = b"", False
    for is_trained, piece in parts:
        if is_trained != trained:
            text += "«".encode() if is_trained else "»".encode()
            trained = is_trained
        text += piece
    return (text + ("»".encode() if trained else b"")).decode("utf-8", "replace")


def _bytes_of(token: int, tokenizer: Tokenizer) -> bytes:
    special = {tokenizer.bos_id: b"<s>", **dict.fromkeys(tokenizer.eos_ids, b"</s>")}
    return special.get(token) or tokenizer.token_bytes(token)[0]


def _image_fault(image: ImageFile) -> str | None:
    try:
        load_image(image)
    except InputError as error:
        return str(error)
    return None
