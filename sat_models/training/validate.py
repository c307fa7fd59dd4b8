"""Training data looked through before any training: what is wrong and where, how long samples are, what is trained."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
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
from sat_models.training.formats import detect_format, read_records
from sat_models.training.grounding.asking import Asking
from sat_models.training.grounding.drawn import draw_records
from sat_models.training.reading import SPLITS
from sat_models.training.records import PROBLEM_KINDS, ImageFile, Problem, Record, count_kinds

_NO_LIMIT = 2**31
"""A max_length at which nothing is cut."""
_BAR = 40


@dataclass
class Report:
    """The findings.

    Attributes:
        path, format: what was read, and as what.
        records: dialogues that can be used as far as reading goes.
        problems: in the order of the data, kind by kind.
        lengths: tokens of each sample before any cut, pictures included; empty where no model was named.
        max_length: the limit in tokens; None where no model was named.
        sample: (source, text) of one decoded sample; None where there is none or no model was named.
        with_images: how many of the records have a picture.
        drawn: files of drawings; None where none were asked for.
    """

    path: str
    format: str
    records: int
    problems: list[Problem] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    max_length: int | None = None
    sample: tuple[str, str] | None = None
    with_images: int = 0
    drawn: list[str] | None = None

    @property
    def ok(self) -> bool:
        """True if nothing is wrong."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ok": self.ok,
            "path": self.path,
            "format": self.format,
            "records": self.records,
            "with_pictures": self.with_images,
            "drawn": self.drawn,
            "warning": images_warning(self.records, self.with_images),
            "samples": len(self.lengths) if self.max_length else None,
            "problems": [asdict(problem) for problem in self.problems],
            "max_length": self.max_length,
            "lengths": _summary(self.lengths),
            "histogram": histogram(self.lengths),
            "sample": {"source": self.sample[0], "text": self.sample[1]} if self.sample else None,
        }


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
    for record in tqdm(records, desc="lengths", unit="record", disable=not progress):
        lengths, long = check_lengths(record, processor, version=version, max_length=report.max_length)
        report.lengths += lengths
        problems += long
    report.sample = first_sample(records, processor, version=version, max_length=report.max_length)
    return problems


def images_warning(count: int, with_images: int) -> str | None:
    """The warning where some or all of so many samples have no picture: mostly it was left out by mistake."""
    without = count - with_images
    if not without:
        return None
    return f"{'all' if without == count else without} of {count} have no picture; they are trained as text alone"


def duplicates(records: Sequence[Record]) -> Iterator[Problem]:
    """Records whose pictures, turns and boxes were there before."""
    seen: dict[Any, str] = {}
    for record in records:
        first = seen.setdefault((record.images, record.turns, record.boxes), record.source)
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
    """Source and text of the first sample that can be made."""
    for record in records:
        turns, system = record.said(processor.style(version).trained, processor.box_form)
        try:
            samples = processor.training_samples(
                list(record.images), turns, version=version, max_length=max_length, untrained=record.untrained,
                system=system,
            )  # fmt: skip
        except InputError:
            continue
        return printable(record.source), marked_text(samples[0], processor.tokenizer)
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


def histogram(lengths: Sequence[int], bins: int = 10) -> list[tuple[int, int, int]]:
    """(from, to, how many) with both ends in; bins of equal width."""
    if not lengths:
        return []
    low, high = min(lengths), max(lengths)
    width = max(1, -(-(high - low + 1) // bins))
    counts = [0] * (-(-(high - low + 1) // width))
    for length in lengths:
        counts[(length - low) // width] += 1
    return [(low + i * width, low + (i + 1) * width - 1, count) for i, count in enumerate(counts)]


def report_text(report: Report, *, most: int = 50) -> str:
    """A report for people; at most so many problems one by one."""
    lines = [f"data: {report.path}, read as {report.format}, {report.records} record(s)"]
    lines.append(f"pictures: {report.with_images} of {report.records} record(s) have one")
    if warning := images_warning(report.records, report.with_images):
        lines.append(f"warning: {warning}")
    if report.drawn is not None:
        lines.append(f"drawn: {len(report.drawn)} picture(s) with boxes" + "".join(f", {f}" for f in report.drawn[:1]))
    lines.append(f"problems: {count_kinds(report.problems) if report.problems else 'none'}")
    lines += [f"  {problem} [{problem.kind}]" for problem in report.problems[:most]]
    if len(report.problems) > most:
        lines.append(f"  ... and {len(report.problems) - most} more")
    if report.max_length is None:
        lines.append("lengths and trained tokens: name the model with --from_pretrained to see them")
    if report.lengths:
        summary = _summary(report.lengths)
        lines.append(f"{len(report.lengths)} sample(s), tokens with pictures, max_length {report.max_length}:")
        lines.append("  " + ", ".join(f"{name} {value}" for name, value in summary.items()))
        rows = histogram(report.lengths)
        peak = max(count for *_, count in rows)
        digits = len(str(rows[-1][1]))
        for low, high, count in rows:
            bar = "#" * -(-count * _BAR // peak)
            lines.append(f"  {low:>{digits}}-{high:<{digits}} {bar:<{_BAR}} {count}")
    if report.sample:
        lines += [f"a sample, {report.sample[0]}, trained tokens in « »:", f"  {report.sample[1]}"]
    return "\n".join(lines)


def _bytes_of(token: int, tokenizer: Tokenizer) -> bytes:
    special = {tokenizer.bos_id: b"<s>", **dict.fromkeys(tokenizer.eos_ids, b"</s>")}
    return special.get(token) or tokenizer.token_bytes(token)[0]


def _summary(lengths: Sequence[int]) -> dict[str, int]:
    if not lengths:
        return {}
    return {"shortest": min(lengths), "median": round(statistics.median(lengths)), "longest": max(lengths)}


def _image_fault(image: ImageFile) -> str | None:
    try:
        load_image(image)
    except InputError as error:
        return str(error)
    return None
