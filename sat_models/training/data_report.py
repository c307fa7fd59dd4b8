"""What was found in training data, for people and for programs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sat_models.training.records import Problem, count_kinds

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
        tasks: how often each question about boxes is asked.
        drawn: files of drawings; None where none were asked for.
        pairs: how many of them are pairs of answers.
    """

    path: str
    format: str
    records: int
    problems: list[Problem] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    max_length: int | None = None
    sample: tuple[str, str] | None = None
    with_images: int = 0
    tasks: dict[str, int] = field(default_factory=dict)
    drawn: list[str] | None = None
    pairs: int = 0

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
            "tasks": self.tasks,
            "drawn": self.drawn,
            "pairs": self.pairs,
            "warning": images_warning(self.records, self.with_images),
            "samples": len(self.lengths) if self.max_length else None,
            "problems": [asdict(problem) for problem in self.problems],
            "max_length": self.max_length,
            "lengths": _summary(self.lengths),
            "histogram": histogram(self.lengths),
            "sample": {"source": self.sample[0], "text": self.sample[1]} if self.sample else None,
        }


def images_warning(count: int, with_images: int) -> str | None:
    """The warning where some or all of so many samples have no picture: mostly it was left out by mistake."""
    without = count - with_images
    if not without:
        return None
    return f"{'all' if without == count else without} of {count} have no picture; they are trained as text alone"


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
    if report.tasks:
        lines.append(f"asked about boxes: {', '.join(f'{count} {task}' for task, count in report.tasks.items())}")
    if report.drawn is not None:
        lines.append(f"drawn: {len(report.drawn)} picture(s) with boxes" + "".join(f", {f}" for f in report.drawn[:1]))
    if report.pairs:
        which = "all are" if report.pairs == report.records else f"{report.pairs} of {report.records} are"
        lines.append(f"{which} pairs of answers, chosen and rejected, which --objective dpo reads, and nothing else")
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


def _summary(lengths: Sequence[int]) -> dict[str, int]:
    if not lengths:
        return {}
    return {"shortest": min(lengths), "median": round(statistics.median(lengths)), "longest": max(lengths)}
