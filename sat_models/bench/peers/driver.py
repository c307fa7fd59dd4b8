"""Asks the workers of several engines in turn, so that the machine's mood falls on all, and compares them with ours."""

from __future__ import annotations

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sat_models.errors import ConfigError
from sat_models.text import markdown_table

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
OURS = "ours"
FORMS = ("fp32", "bf16", "int8", "int4")


class PeerError(Exception):
    """Why an engine cannot be measured."""


@dataclass(frozen=True)
class Peer:
    """An engine and how it is asked.

    Attributes:
        name: in the table.
        script: its worker, see `protocol.py`.
        python: the interpreter that has its packages.
        forms: of `FORMS`, those that it has.
        needs: files of the model's folder that must be there; `{form}` stands for a form. What is missing is made.
    """

    name: str
    script: Path
    python: str = sys.executable
    forms: Sequence[str] = FORMS
    needs: Sequence[str] = ()

    def call(self, task: str, folder: Path, *given: str) -> list[str]:
        """The command of a worker."""
        return [self.python, str(self.script), task, str(folder), *given]


KNOWN = {
    peer.name: peer
    for peer in (
        Peer(OURS, HERE / "with_ours.py", needs=("hf",)),
        Peer("transformers", HERE / "with_transformers.py", forms=("fp32", "bf16"), needs=("hf", "lm")),
        Peer("openvino", HERE / "with_openvino.py", needs=("ov-f32", "ov-int8", "ov-int4")),
        Peer("llama.cpp", HERE / "with_llama_cpp.py", needs=("lm-f32.gguf", "lm-q4_0.gguf")),
    )
}


def environment(threads: int) -> dict[str, str]:
    """So many threads for everybody, and nobody looks for newer files."""
    count = str(threads)
    paths = [str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]  # a bare checkout works
    return {
        **os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": os.pathsep.join(paths),
    }  # fmt: skip


class Worker:
    """A running worker."""

    def __init__(self, peer: Peer, process: subprocess.Popen[str], errors: Any) -> None:
        self.peer, self._process, self._errors = peer, process, errors
        self.ready = ""

    @classmethod
    @contextmanager
    def started(cls, peer: Peer, command: Sequence[str], threads: int) -> Iterator[Worker]:
        """While the block runs."""
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                    env=environment(threads) if peer.name == OURS else _without_ours(environment(threads)),
                )  # fmt: skip
            except OSError as error:
                raise PeerError(f"{peer.python} cannot be started: {error.strerror}") from error
            try:
                yield cls(peer, process, errors)
            finally:
                process.stdin.close()
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                process.stdout.close()

    def heard(self) -> dict[str, Any]:
        """What it says next. Raises PeerError."""
        for line in self._process.stdout:
            if line.startswith("{"):
                said = json.loads(line)
                if "missing" in said:
                    raise PeerError(f"not installed; {self.peer.python} -m pip install {said['missing']}")
                return said
        self._errors.seek(0)
        last = self._errors.read().strip().splitlines()[-1:]
        raise PeerError(f"ended: {''.join(last) or 'it said nothing'}")

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request. Raises PeerError."""
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended, which its answer will say
        return self.heard()


def _without_ours(given: dict[str, str]) -> dict[str, str]:
    """Peers see their own packages only."""
    return {name: value for name, value in given.items() if name != "PYTHONPATH"}


def once(peer: Peer, task: str, folder: Path, *given: str, threads: int = 1) -> dict[str, Any]:
    """The one result of a worker that makes or trains. Raises PeerError."""
    with Worker.started(peer, peer.call(task, folder, *given), threads) as worker:
        return worker.heard()


def make_what_is_missing(peers: Mapping[str, Peer], folder: Path) -> dict[str, str]:
    """Let each engine write its files into `folder`.

    Returns:
        Those that could not, and why.

    Raises:
        ConfigError: there is no model, and no transformers to make it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    maker = peers.get("transformers", KNOWN["transformers"])
    if not (folder / "hf").is_dir():
        try:
            once(maker, "make", folder)
        except PeerError as error:
            raise ConfigError(f"transformers makes the model in {folder}, but: {error}") from error
    for name, peer in peers.items():
        if any(not (folder / need).exists() for need in peer.needs):
            try:
                once(peer, "make", folder)
            except PeerError as error:
                failed[name] = str(error)
    return failed


@dataclass
class Figures:
    """What was seen of one engine, in one form, after prompts of one length.

    Attributes:
        name, form, tokens: which.
        rates: tokens per second of each repeat.
        first: seconds to each first token.
        peak: bytes that the process has held at most.
        times_ours: each rate over ours of the same repeat.
        note: why there are none.
    """

    name: str
    form: str
    tokens: int
    rates: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    peak: int = 0
    times_ours: list[float] = field(default_factory=list)
    note: str = ""

    def add(self, answer: dict[str, Any]) -> None:
        """One repeat."""
        self.rates.append((answer["new"] - 1) / answer["rest"])
        self.first.append(answer["first"])
        self.peak = answer["peak"]


def prompt(tokens: int) -> list[int]:
    """Ids of a begin token and text, the same each time, of a vocabulary of 32000."""
    state, ids = 5, [1]
    while len(ids) < tokens:
        state = (1103515245 * state + 12345) % 2**31
        ids.append(300 + (state >> 8) % 31000)
    return ids


def compare(
    peers: Mapping[str, Peer], folder: Path, form: str, lengths: Sequence[int], *, new: int, repeats: int, threads: int,
) -> Iterator[Figures]:  # fmt: skip
    """All engines that have a form, side by side, one length of prompt after the other. Ours comes first.

    Raises:
        PeerError: ours fails.
    """
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name, peer in peers.items():
            if form not in peer.forms:
                continue
            try:
                call = peer.call("serve", folder, form, str(threads))
                worker = stack.enter_context(Worker.started(peer, call, threads))
                worker.ready = worker.heard()["ready"]
                workers[name] = worker
                logger.info("%s: %s", name, worker.ready)
            except PeerError as error:
                if name == OURS:
                    raise
                yield Figures(name, form, 0, note=str(error))
        for tokens in lengths:
            yield from _in_turns(workers, form, prompt(tokens), new=new, repeats=repeats)


def _in_turns(
    workers: dict[str, Worker], form: str, ids: Sequence[int], *, new: int, repeats: int
) -> Iterator[Figures]:
    found = {name: Figures(name, form, len(ids)) for name in workers}
    for turn in range(repeats + 1):
        for name in list(workers)[:: 1 if turn % 2 else -1]:
            try:
                answer = workers[name].ask(ids=list(ids), new=new if turn else 2)
            except PeerError as error:
                if name == OURS:
                    raise
                found[name].note = str(error)
                del workers[name]
                continue
            if turn:  # the first one warms it up
                found[name].add(answer)
    ours = found[OURS].rates
    for figures in found.values():
        figures.times_ours = [rate / own for rate, own in zip(figures.rates, ours, strict=False)]
        yield figures


def train(peers: Mapping[str, Peer], folder: Path, *, repeats: int, threads: int) -> Iterator[Figures]:
    """The same LoRA by us and by peft, with and without activation checkpointing; runs take turns."""
    for form in ("plain", "checkpointed"):
        found = {name: Figures(name, form, 0) for name in (OURS, "transformers") if name in peers}
        for _ in range(repeats):
            for name, figures in found.items():
                if figures.note:
                    continue
                try:
                    result = once(peers[name], "train", folder, form, str(threads), threads=threads)
                except PeerError as error:
                    figures.note = str(error)
                    continue
                figures.rates.append(result["tokens_per_s"])
                figures.peak = max(figures.peak, result["peak"])
        for figures in found.values():
            ours = found[OURS].rates
            figures.times_ours = [rate / own for rate, own in zip(figures.rates, ours, strict=False)]
            yield figures


def table(rows: Sequence[Figures]) -> str:
    """Markdown: a line for each engine, form and length."""
    lines = [("what", "engine", "tokens/s (least to most)", "times ours", "first token", "peak memory"), ("---",) * 6]
    for row in rows:
        what = f"{row.form}, {row.tokens} tokens" if row.tokens else row.form
        if not row.rates:
            lines.append((what, row.name, row.note, "", "", ""))
            continue
        rates = f"{statistics.median(row.rates):.1f} ({min(row.rates):.1f} to {max(row.rates):.1f})"
        rates += f"; {row.note}" if row.note else ""
        first = f"{1e3 * statistics.median(row.first):.0f} ms" if row.first else ""
        ratio = f"{statistics.median(row.times_ours):.2f}" if row.times_ours else ""
        lines.append((what, row.name, rates, ratio, first, f"{row.peak / 1e9:.2f} GB"))
    return markdown_table(lines)
