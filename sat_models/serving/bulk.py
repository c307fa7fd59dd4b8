"""Answers for many pictures: a folder or a JSONL file in, a JSONL file out, gone on with after an interruption.

Under torchrun each group of model-parallel processes takes its share of the pictures. The first group writes to the
output itself, each other one to `<output>.<number>.part`; these are put into the output at the end, or by the next
run.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from mixins.sat_compat import mpu
from sat_models import runtime
from sat_models.digests import digest_of_files
from sat_models.errors import ConfigError, InputError, ZooError
from sat_models.evaluation.identity import differences
from sat_models.files import appended_records, kept_records, numbered_lines, write_json, write_jsonl, writing
from sat_models.generation.answer import AnswerRow
from sat_models.generation.sampling import SamplingOptions
from sat_models.generation.strict.constraint import Constraint
from sat_models.processing.image import kind_of
from sat_models.text import DoubleKeyError, unique_keys

if TYPE_CHECKING:
    from sat_models.zoo.vlm import VLM

logger = logging.getLogger(__name__)

OWN_FIELDS = frozenset(("text", "finish_reason", "incomplete", "score", "box_scores", "error", "image_sha256"))
"""Fields of a line that are written here; an input's own of these names are not copied."""
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

    def line(self, **made: Any) -> dict[str, Any]:
        """A line of the output: what was given, and what was made of it."""
        return {name: value for name, value in self.record.items() if name not in OWN_FIELDS} | made

    def digest(self) -> str | None:
        """SHA-256 of the image's file, so that one replaced in place is told; None where it is no file."""
        if self.image is None or kind_of(self.image) != "path":
            return None
        try:
            return digest_of_files([Path(self.image)])
        except (InputError, ValueError):  # reading it says why
            return None

    def answered_by(self, line: dict[str, Any]) -> bool:
        """True if a line of an earlier run, which has the key of this task, answers it as it is asked today."""
        asked = all(line.get(name) == self.record.get(name) for name in ("image", "query"))
        return asked and ("image_sha256" not in line or line["image_sha256"] == self.digest())


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
        record = json.loads(line, object_pairs_hook=unique_keys)
    except DoubleKeyError as error:
        raise InputError(f"{source}, line {number}: {error}. Keep one of them.") from error
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


def gather_parts(output: Path, tasks: Sequence[Task]) -> set[str]:
    """Put the parts into the output, and leave out what is to be done again: failures, lines that were cut off, and
    answers to another question or image than `tasks` has today. Fields that are only copied are those of today.

    Returns:
        The keys of what is done.
    """
    asked = {task.key: task for task in tasks}
    kept, changed = [], 0
    for path in (output, *parts_of(output)):
        for line in kept_records(path, whole=lambda record: "text" in record and "error" not in record):
            task = asked.get(_key(line))
            if task is None or task.answered_by(line):
                made = {name: line[name] for name in OWN_FIELDS & line.keys()}
                kept.append(line if task is None else task.line(**made))
            else:
                changed += 1
    if changed:
        logger.warning("%d line(s) of %s are of another image or question by now; they are done again", changed, output)
    if output.exists() or kept:
        write_jsonl(output, kept)
    for path in parts_of(output):
        path.unlink()
    return {_key(line) for line in kept}


def settings_file(output: Path) -> Path:
    """Where it stands what made the answers of `output`."""
    return output.with_name(f"{output.name}.settings.json")


def check_settings(output: Path, settings: dict[str, Any]) -> None:
    """See that the answers which `output` holds were made as `settings` say, as far as these go.

    Raises:
        ConfigError: they were not, or nothing says how they were made.
    """
    if not any(path.exists() and path.stat().st_size for path in (output, *parts_of(output))):
        return
    remedy = "Give another output, or remove that file."
    try:
        before = json.loads(settings_file(output).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    if not isinstance(before, dict):
        raise ConfigError(
            f"'{output}' holds lines, but no {settings_file(output).name} beside it says what made them. {remedy}"
        )
    if differ := differences(before, settings):
        raise ConfigError(f"'{output}' holds answers of other settings ({differ}). {remedy}")


def decoding_of(
    options: SamplingOptions, version: str | None, *, scores: bool = False, constraint: Constraint | None = None
) -> dict[str, Any]:
    """What lines depend on beside the model and what is asked, as JSON has it; known before weights are read."""
    form = None if constraint is None else [constraint.kind, json.loads(json.dumps(constraint.source))]
    return {"decoding": asdict(options), "version": version, "scores": scores, "constraint": form}


def prepare(source: Path, output: Path, query: str, settings: dict[str, Any]) -> list[Task]:
    """The questions, and a place for the answers; called before weights are read, too. Raises as `caption`."""
    tasks = read_tasks(source, query)
    if output.exists() and not output.is_file():
        raise InputError(f"The output {output} cannot be written (it is no file). Name a file, such as out.jsonl.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("a") if output.exists() else tempfile.TemporaryFile(dir=output.parent):
            pass  # found out now, not behind the first answer
    except OSError as error:
        raise InputError(f"The output {output} cannot be written ({error.strerror or error}).") from error
    check_settings(output, settings)
    return tasks


def answers(
    vlm: VLM, tasks: Iterable[Task], *, options: SamplingOptions, version: str | None = None, max_rows: int = 16,
    scores: bool = False, constraint: Constraint | None = None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Records with `text` and `finish_reason`, and with `scores` those of the answer and its boxes, or with `error`, in
    the order in which they are finished. `incomplete` is there where an answer was cut off before it fitted its
    constraint.

    A picture that cannot be read, or a prompt that is too long, is an error of its own line.
    """
    waiting, running = iter(tasks), {}

    def finish(task: Task, digest: str | None, row: AnswerRow) -> dict[str, Any]:
        if row.error is not None:
            return task.line(error=str(row.error))
        result = row.result()
        more = {"score": result.score, "box_scores": result.box_scores} if scores else {}
        more |= {"incomplete": result.incomplete} if result.incomplete else {}
        more |= {"image_sha256": digest} if digest else {}
        return task.line(text=result.text, finish_reason=result.finish_reason, **more)

    with vlm.engine().session(max_rows=max_rows) as session:
        while True:
            while len(running) < max_rows and (task := next(waiting, None)) is not None:
                digest = task.digest()
                try:
                    how = {"logprobs": scores, "constraint": constraint}
                    request = vlm.request(task.image, task.record["query"], (), version, options, **how)
                    running[session.add(request)] = (task, digest)
                except ZooError as error:
                    yield task.line(error=str(error))
            if not running:
                return
            session.step()
            for number in session.finished:
                yield finish(*running.pop(number), session.remove(number))


def caption(
    vlm: VLM, source: Path, output: Path, *, query: str, options: SamplingOptions, version: str | None = None,
    max_rows: int = 16, progress: bool = True, scores: bool = False, constraint: Constraint | None = None,
    made_by: Mapping[str, Any],
) -> tuple[int, int]:  # fmt: skip
    """Answer all that `source` asks and `output` does not hold yet. All processes of the run call it.

    Args:
        source, query: see `read_tasks`.
        output: JSONL; its folder is made if need be.
        options, version, max_rows, scores, constraint: see `answers`.
        progress: show a bar on the first process.
        made_by: fingerprints of `vlm`, as of `evaluation.identity.model_identity`; those of the first process count.

    Returns:
        How many lines were written by this run, and how many of them are errors; on every process.

    Raises:
        InputError: see `read_tasks`; an output that cannot be written.
        ConfigError: the output holds answers of another model, or of other settings.
    """
    how = {"scores": scores, "constraint": constraint}
    settings = decoding_of(options, version, **how)
    tasks = runtime.in_step(lambda: prepare(source, output, query, settings))
    done = runtime.in_step(
        lambda: _open_output(output, tasks, {**settings, **made_by}) if runtime.rank() == 0 else None
    )
    done = runtime.broadcast_object(done)
    share, shares = mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size()
    mine = [task for task in tasks if task.key not in done][share::shares]
    if len(done) and runtime.rank() == 0:
        logger.info("%d of %d are done already", len(tasks) - sum(t.key not in done for t in tasks), len(tasks))
    counts = [0, 0]
    path = output if share == 0 else output.with_name(f"{output.name}.{share}.part")
    results = answers(vlm, mine, options=options, version=version, max_rows=max_rows, **how)
    with appended_records(path if mpu.get_model_parallel_rank() == 0 else None) as write:
        for record in tqdm(results, total=len(mine), disable=not progress or runtime.rank() != 0, unit="picture"):
            write(record)
            counts[0] += 1
            counts[1] += "error" in record
    everybody = runtime.gather_objects(counts if mpu.get_model_parallel_rank() == 0 else [0, 0])
    if runtime.rank() == 0 and shares > 1:
        _append_parts(output)
    return sum(count[0] for count in everybody), sum(count[1] for count in everybody)


def _open_output(output: Path, tasks: Sequence[Task], settings: dict[str, Any]) -> set[str]:
    """The keys of what is done; what the rest will be made with is written beside the output."""
    check_settings(output, settings)
    done = gather_parts(output, tasks)
    with writing(settings_file(output)):
        write_json(settings_file(output), settings)
    return done


def _append_parts(output: Path) -> None:
    with output.open("a", encoding="utf-8") as file:
        for path in parts_of(output):
            file.write(path.read_text(encoding="utf-8"))
            path.unlink()
