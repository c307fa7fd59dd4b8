"""Prove that a model answers alike wherever it is asked: by training's evaluation, by `generate`, and through a running
server of OpenAI's API (ours, started here, or one at --url).

The questions are those of training data (--data); each is answered greedily in the three ways, and the answers must be
equal token by token. The first difference of each question is printed. Exit code 0; 1 if any answer differs.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sat_models.commands.bench_server import started
from sat_models.errors import ConfigError, InputError, run_script
from sat_models.flags import add_model_flags, check_numbers, flag, loading

if TYPE_CHECKING:
    from sat_models.training.data import VLMDataset
    from sat_models.training.records import Record
    from sat_models.zoo.vlm import VLM

_TO_SERVER = ("local_tokenizer", "version", "quant", "quant_skip", "cache", "device", "dtype")
_SHOWN = 24


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read and check the flags. Raises ConfigError."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_model_flags(parser)
    flag(parser, "data", nargs="+", required=True, metavar="PATH", help="files or folders in a training format")
    flag(parser, "data_format", metavar="FORMAT", help="force a data format, as in fine-tuning")
    flag(parser, "image_root", metavar="PATH", help="folder that image names are tried in first")
    flag(parser, "limit", type=int, default=20, help="questions, spread over the data (default: %(default)s)")
    flag(parser, "max_new_tokens", type=int, default=64, help="longest answer (default: %(default)s)")
    flag(parser, "url", help="of a server that runs already, such as http://127.0.0.1:8000/v1 (default: start ours)")
    flag(parser, "model", help="its name on that server (default: that of --from_pretrained)")
    flag(parser, "api_key", default="none", help="of that server")
    args = parser.parse_args(argv)
    check_numbers(args, {"limit": 1, "max_new_tokens": 1})
    return args


@dataclass(frozen=True)
class Asked:
    """One question, answered.

    Attributes:
        source: where it stands in the data.
        answers: way -> tokens, as the API writes them: what each spells, bytes that are no character escaped.
    """

    source: str
    answers: dict[str, list[str]]

    def difference(self) -> str | None:
        """The first token that is not the same for all, in words; None where there is none."""
        longest = max(map(len, self.answers.values()))
        for place in range(longest):
            found = {way: tokens[place] if place < len(tokens) else None for way, tokens in self.answers.items()}
            if len(set(found.values())) > 1:
                words = ", ".join(f"{way} {'ends' if text is None else repr(text)}" for way, text in found.items())
                before = "".join(self.answers["generate"][max(0, place - _SHOWN) : place])
                return f"{self.source}: token {place + 1} differs behind {before!r}: {words}"
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Ask, compare, print. Exit code 0; 1 if answers differ."""
    args = parse_args(argv)
    from sat_models import runtime
    from sat_models.bench.server_load import open_client
    from sat_models.training.data import VLMDataset
    from sat_models.training.split import read_usable
    from sat_models.zoo import load_pretrained

    if runtime.world_size() > 1:
        raise ConfigError("prove_served is the work of one process: start it without torchrun")
    vlm = load_pretrained(args.from_pretrained, **loading(args))
    reading = {"format": args.data_format, "image_root": args.image_root, "split": "val"}
    records = [record for path in args.data for record in read_usable(Path(path), "error", reading)]
    dataset = VLMDataset(records, vlm.processor, version=args.version, on_bad="error")
    with _server(args) as url:
        client = open_client(url, args.api_key)
        name = args.model or client.models.list().data[0].id
        asked = list(_ask_all(vlm, dataset, client, name, args))
    differences = [text for one in asked if (text := one.difference())]
    for text in differences:
        print(text)
    tokens = sum(len(one.answers["generate"]) for one in asked)
    verdict = f"{len(differences)} answers differ" if differences else "all answers are the same"
    print(f"{len(asked)} questions, {tokens} tokens, by evaluation, generate and server: {verdict}")
    return 1 if differences else 0


@contextlib.contextmanager
def _server(args: argparse.Namespace) -> Iterator[str]:
    """The address of the server that is asked."""
    if args.url:
        yield args.url
        return
    given = {name: getattr(args, name) for name in _TO_SERVER}
    flags = [(f"--{name}", value) for name, value in given.items() if value not in (None, (), "auto")]
    words = [str(word) for name, value in flags for word in (name, *(value if isinstance(value, list) else [value]))]
    if args.quant_head is not None:
        words.append("--quant_head" if args.quant_head else "--no-quant_head")
    with started(args.from_pretrained, words) as url:
        yield url


def _ask_all(vlm: VLM, dataset: VLMDataset, client: Any, name: str, args: argparse.Namespace) -> Iterator[Asked]:
    """Answers of all questions in the three ways.

    Raises:
        InputError: data whose questions are empty, which no server can be asked.
    """
    from sat_models.serving.logprobs import logprobs_body
    from sat_models.training.evaluating import Evaluator

    evaluator = Evaluator(dataset, 1, args.limit, args.max_new_tokens, scores=True)
    tokenizer, mark = vlm.processor.tokenizer, vlm.processor.style(dataset.version).trained.mark
    for index, result in list(evaluator.results(vlm.model, vlm.device)):
        record, turns = dataset.dialogue(index)
        *history, (question, _) = turns
        if not question.strip():
            raise InputError(f"{record.source} asks nothing, which no server can be asked; give the data a --prompt")
        system = dataset.system_of(record)
        alone = vlm.generate(
            list(record.images), question, history=history, version=args.version, system=system,
            max_new_tokens=args.max_new_tokens,
        )  # fmt: skip
        reply = client.chat.completions.create(
            model=name, messages=messages(record, history, question, system, mark), temperature=0,
            max_tokens=args.max_new_tokens, logprobs=True,
        )  # fmt: skip
        found = reply.choices[0].logprobs
        own = {
            way: logprobs_body(answer.token_scores, tokenizer, first=True)["content"]
            for way, answer in (("evaluation", result), ("generate", alone))
        }
        served = [entry.model_dump() for entry in (found.content if found else None) or []]
        all_three = {**own, "server": served}
        yield Asked(record.source, {way: [entry["token"] for entry in content] for way, content in all_three.items()})


def messages(
    record: Record, history: Sequence[tuple[str, str]], question: str, system: str | None, mark: str
) -> list[dict[str, Any]]:
    """A dialogue as OpenAI's API takes it: images where marks say so, else in front of the first question."""
    images = iter([_image_part(image) for image in record.images])
    told: list[dict[str, Any]] = [] if not system else [{"role": "system", "content": system}]
    questions = [*(asked for asked, _ in history), question]
    marked = any(mark in asked for asked in questions)
    for number, asked in enumerate(questions):
        parts = [] if marked or number else list(images)
        for place, text in enumerate(asked.split(mark) if marked else [asked]):
            parts += [next(images)] if place else []
            parts += [{"type": "text", "text": text}] if text else []
        told.append({"role": "user", "content": parts})
        if number < len(history):
            told.append({"role": "assistant", "content": history[number][1]})
    return told


def _image_part(image: Any) -> dict[str, Any]:
    from sat_models.processing.image import load_image

    buffer = io.BytesIO()
    load_image(image).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def command() -> None:
    """The console command `sat-prove-served`."""
    run_script(main)
