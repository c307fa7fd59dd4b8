"""Flags that commands share are declared once, so that they cannot drift apart."""

from __future__ import annotations

import argparse
from types import SimpleNamespace

import pytest

from sat_models import flags
from sat_models.commands import caption, evaluate
from sat_models.errors import UnknownNameError
from sat_models.models.families import prompt_styles
from sat_models.serving import cli, server, web

TALKING = {
    "chat": cli.make_parser,
    "serve": server.make_parser,
    "web": web.make_parser,
    "evaluate": evaluate.make_parser,
    "caption": caption.make_parser,
}


@pytest.mark.parametrize("name", TALKING)
def test_every_door_has_all_flags_of_the_model(name: str) -> None:
    options = {option for action in TALKING[name]()._actions for option in action.option_strings}
    wanted = {"--" + flag for flag in flags.MODEL_FLAGS} | {"--fp16", "--bf16", "--fp32", "--from-pretrained"}
    assert wanted <= options
    if name in ("chat", "evaluate", "caption"):
        assert {"--" + flag for flag in flags.SAMPLING_FLAGS} <= options
    (version,) = (action for action in TALKING[name]()._actions if action.dest == "version")
    assert all(style in version.help for style in prompt_styles())


def parsed(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    flags.add_model_flags(parser)
    flags.add_sampling_flags(parser, max_new_tokens=8)
    return parser.parse_args(given)


def test_what_is_given_arrives() -> None:
    quantised = ("--quant", "4", "--quant-skip", "a.*", "--no-quant-head", "--cache", "bf16")
    args = parsed(*quantised, "--bf16", "--version", "chat_old", "--device", "cpu")
    assert flags.loading(args) == {
        "task": "dialogue", "device": "cpu", "dtype": "bf16", "local_tokenizer": None, "quant": 4,
        "quant_skip": ["a.*"], "quant_head": False, "cache": "bf16", "version": "chat_old",
    }  # fmt: skip
    assert flags.loading(parsed())["quant_head"] is None and flags.loading(parsed("--quant_head"))["quant_head"]
    assert flags.loading(parsed())["dtype"] == "auto" and flags.loading(parsed("--dtype", "fp32"))["dtype"] == "fp32"
    options = flags.sampling_options(parsed("--top_p", "0.5", "--repetition-penalty", "1.2", "--seed", "3"))
    assert (options.max_new_tokens, options.top_p, options.repetition_penalty, options.seed) == (8, 0.5, 1.2, 3)
    with pytest.raises(UnknownNameError, match="chat_older"):
        flags.loading(parsed("--version", "chat_older"))
    with pytest.raises(SystemExit):
        parsed("--bf16", "--fp32")


def test_evaluation_loads_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loaded(Exception):
        """Enough was seen."""

    def load(name: str, **given: object) -> None:
        seen.update(given, name=name)
        raise Loaded

    seen: dict[str, object] = {}
    monkeypatch.setattr("sat_models.zoo.load_pretrained", load)
    with pytest.raises(Loaded):
        evaluate.main(["--task", "shapes", "--quant", "8", "--device", "cpu"])
    assert seen["quant"] == 8 and seen["name"] == flags.DEFAULT_MODEL


def test_the_length_of_a_chat_is_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """2048 tokens are less than one image of some families."""
    vlm, engine = SimpleNamespace(), SimpleNamespace(max_length=8192)
    monkeypatch.setattr("sat_models.zoo.load_pretrained", lambda name, **_: vlm)
    monkeypatch.setattr("sat_models.serving.chat.shared_engine", lambda _: engine)
    monkeypatch.setattr("sat_models.serving.chat.ChatSession", lambda vlm, **given: SimpleNamespace(**given))
    monkeypatch.setattr("sat_models.runtime.setup_logging", lambda level: None)
    session, _ = cli._load(cli.make_parser().parse_args([]), {})
    assert session.options.max_length is None
