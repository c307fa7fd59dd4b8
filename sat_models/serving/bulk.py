"""Answers for many pictures: a folder or a JSONL file in, a JSONL file out, gone on with after an interruption.

Under torchrun each group of model-parallel processes takes its share of the pictures. The first group writes to the
output itself, each other one to `<output>.<number>.part`; these are put into the output at the end, or by the next
run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from mixins.sat_compat import mpu
from sat_models import runtime
from sat_models.errors import InputError, ZooError
from sat_models.files import appended_records, kept_records, numbered_lines, write_jsonl
from sat_models.generation.answer import AnswerRow
from sat_models.generation.sampling import SamplingOptions
from sat_models.processing.image import kind_of

if TYPE_CHECKING:
    from sat_models.zoo.vlm import VLM

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))


@dataclass(frozen=True)
class Task:
    """One picture and one question.

    Attributes:
        record: what is copied to the output: `image` (as it was given), `query`, and whatever else the input line had.
        image: where the picture is; None for a question without one.
    """

    record: dict[str, Any]
    image: str | None

    @property
    def key(self) -> str:
        """The key that tells it from others: its `id` if it has one, else picture and question."""
        return _key(self.record)


def _key(record: dict[str, Any]) -> str:
    chosen = {"id": record["id"]} if "id" in record else {k: record.get(k) for k in ("image", "query")}
    return json.dumps(chosen, sort_keys=True, ensure_ascii=False)


def read_tasks(source: Path, query: str) -> list[Task]:
    """The questions of a folder or file.

    Args:
        source: a folder, whose pictures are taken from all its subfolders, or a file with a JSON object per line:
            `image` (a path from the file's folder, or a URL; null for none), and if wanted `query`, `id`, and others.
        query: the question of lines without one.

    Raises:
        InputError: nothing there, a bad line, or two lines that are the same.
    """
    if source.is_dir():
        found = sorted(path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        names = [path.relative_to(source).as_posix() for path in found]
        tasks = [Task({"image": name, "query": query}, str(source / name)) for name in names]
    elif source.is_file():
        tasks = [_task_of_line(line, source, number, query) for number, line in numbered_lines(source)]
    else:
        raise InputError(f"{source} does not exist; give a folder of pictures or a JSONL file.")
    if not tasks:
        raise InputError(f"{source} holds nothing to do; pictures end in {', '.join(sorted(IMAGE_SUFFIXES))}.")
    seen: set[str] = set()
    for task in tasks:
        if task.key in seen:
            raise InputError(f"{source} asks the same twice: {task.key}. Give such lines an 'id' of their own.")
        seen.add(task.key)
    return tasks


def _task_of_line(line: str, source: Path, number: int, query: str) -> Task:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}, line {number} is no JSON: {error}") from error
    if not isinstance(record, dict) or "image" not in record:
        raise InputError(f"{source}, line {number} must be a JSON object with an 'image' (null for none): {line:.80}")
    image = record["image"]
    if image is not None and not isinstance(image, str):
        raise InputError(f"{source}, line {number}: 'image' is {image!r:.80}; it must be a path, a URL or null")
    if image is not None and kind_of(image) == "path":
        image = str(source.parent / image)
    return Task({**record, "query": record.get("query", query)}, image)


def parts_of(output: Path) -> list[Path]:
    """The parts that other groups of processes have written."""
    return sorted(output.parent.glob(f"{output.name}.*.part"))


def gather_parts(output: Path) -> set[str]:
    """Put the parts into the output, and leave out failures and lines that were cut off: those are to be done again.

    Returns:
        The keys of what is done.
    """
    files = (output, *parts_of(output))
    records = [record for path in files for record in kept_records(path, whole=lambda record: "text" in record)]
    if output.exists() or records:
        write_jsonl(output, records)
    for path in parts_of(output):
        path.unlink()
    return {_key(record) for record in records}


def prepare(source: Path, output: Path, query: str) -> list[Task]:
    """The questions, and a place for the answers; called before weights are read, too. Raises as `caption`."""
    tasks = read_tasks(source, query)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        new = not output.exists()
        with output.open("a"):  # found out now, not behind the first answer
            pass
        if new:
            output.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"The output {output} cannot be written ({error.strerror or error}).") from error
    return tasks


def answers(
    vlm: VLM, tasks: Iterable[Task], *, options: SamplingOptions, version: str | None = None, max_rows: int = 16
) -> Iterator[dict[str, Any]]:
    """Records with `text` and `finish_reason`, or with `error`, in the order in which they are finished.

    A picture that cannot be read, or a prompt that is too long, is an error of its own line.
    """
    waiting, running = iter(tasks), {}

    def finish(task: Task, row: AnswerRow) -> dict[str, Any]:
        if row.error is not None:
            return {**task.record, "error": str(row.error)}
        result = row.result()
        return {**task.record, "text": result.text, "finish_reason": result.finish_reason}

    with vlm.engine().session(max_rows=max_rows) as session:
        while True:
            while len(running) < max_rows and (task := next(waiting, None)) is not None:
                try:
                    request = vlm.request(task.image, task.record["query"], (), version, options)
                    running[session.add(request)] = task
                except ZooError as error:
                    yield {**task.record, "error": str(error)}
            if not running:
                return
            session.step()
            for number in session.finished:
                yield finish(running.pop(number), session.remove(number))


def caption(
    vlm: VLM, source: Path, output: Path, *, query: str, options: SamplingOptions, version: str | None = None,
    max_rows: int = 16, progress: bool = True,
) -> tuple[int, int]:  # fmt: skip
    """Answer all that `source` asks and `output` does not hold yet. All processes of the run call it.

    Args:
        source, query: see `read_tasks`.
        output: JSONL; its folder is made if need be.
        options, version, max_rows: see `answers`.
        progress: show a bar on the first process.

    Returns:
        How many lines were written by this run, and how many of them are errors; on every process.

    Raises:
        InputError: see `read_tasks`; an output that cannot be written.
    """
    tasks = runtime.in_step(lambda: prepare(source, output, query))
    done = runtime.broadcast_object(gather_parts(output) if runtime.rank() == 0 else None)
    share, shares = mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size()
    mine = [task for task in tasks if task.key not in done][share::shares]
    if len(done) and runtime.rank() == 0:
        logger.info("%d of %d are done already", len(tasks) - sum(t.key not in done for t in tasks), len(tasks))
    counts = [0, 0]
    path = output if share == 0 else output.with_name(f"{output.name}.{share}.part")
    results = answers(vlm, mine, options=options, version=version, max_rows=max_rows)
    with appended_records(path if mpu.get_model_parallel_rank() == 0 else None) as write:
        for record in tqdm(results, total=len(mine), disable=not progress or runtime.rank() != 0, unit="picture"):
            write(record)
            counts[0] += 1
            counts[1] += "error" in record
    everybody = runtime.gather_objects(counts if mpu.get_model_parallel_rank() == 0 else [0, 0])
    if runtime.rank() == 0 and shares > 1:
        _append_parts(output)
    return sum(count[0] for count in everybody), sum(count[1] for count in everybody)


def _append_parts(output: Path) -> None:
    with output.open("a", encoding="utf-8") as file:
        for path in parts_of(output):
            file.write(path.read_text(encoding="utf-8"))
            path.unlink()
