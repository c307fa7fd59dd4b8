"""The command line demo on the golden miniature, in this process."""

from __future__ import annotations

import io
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from golden_set import each_case, reference

from sat_models.config import read_json
from sat_models.serving.cli import main, make_parser

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "cogvlm-mini"
IMAGE = GOLDEN / "image.png"
CASES = [case for case in reference(GOLDEN)["cases"] if not case["history"]]
DOCUMENTED = """
cli_demo_sat.py --from_pretrained cogagent-chat --version chat --bf16 --stream_chat
cli_demo_sat.py --from_pretrained cogvlm-grounding-generalist --version base --bf16 --stream_chat
cli_demo_sat.py --from_pretrained cogvlm-chat-v1.1 --fp16 --quant 4 --stream_chat
cli_demo_sat.py --from_pretrained cogagent-chat --version chat --bf16
cli_demo.py --from_pretrained PATH --version base --english --bf16 --no_prompt
cli_demo_sat.py --from_pretrained DIR --image FILE --query TEXT --version base --max_new_tokens 5 --top_k 1 --json
""".strip().splitlines()


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the demo on the miniature in an empty directory; gives code, out, err."""
    monkeypatch.chdir(tmp_path)

    def call(*flags: object, typed: str | None = None, model: object = GOLDEN) -> SimpleNamespace:
        if typed is not None:
            monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        code = main(["--from_pretrained", str(model), "--fp32", "--device", "cpu", *map(str, flags)])
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


@each_case("cogvlm", wanted=lambda case: not case["history"])
def test_json_is_one_line_and_right(run: Callable[..., Any], folder: Path, case: dict[str, Any]) -> None:
    said = case["generated"]
    flags = ["--version", case["version"], "--query", case["query"], "--max_new_tokens", len(said)]
    done = run("--image", folder / "image.png", "--json", *flags, model=folder)
    assert done.code == 0
    assert done.out.count("\n") == 1
    answer = json.loads(done.out)
    assert list(answer) == ["text", "token_ids", "finish_reason", "boxes"]
    end = read_json(folder / "model_config.json")["eos_token_id"]
    assert answer["token_ids"] == [token for token in said if token != end]
    assert answer["finish_reason"] == ("stop" if said[-1] == end else "length")
    assert answer["text"] == case["text"]
    assert answer["boxes"] == []


def test_plain_and_streamed_answers_are_the_same_text(run: Callable[..., Any]) -> None:
    flags = ["--version", "base", "--image", IMAGE, "--query", CASES[0]["query"], "--max-new-tokens", 20]
    assert run(*flags).out == CASES[0]["text"] + "\n"
    assert run(*flags, "--stream_chat").out == CASES[0]["text"] + "\n"


def test_text_only_and_the_empty_question(run: Callable[..., Any]) -> None:
    assert len(json.loads(run("--json", "--query", "Hello", "--max_new_tokens", 3).out)["token_ids"]) == 3
    flags = ["--version", "base", "--max_new_tokens", 3]
    assert len(json.loads(run("--json", "--image", IMAGE, "--no_prompt", *flags).out)["token_ids"]) == 3


def test_a_seed_reproduces(run: Callable[..., Any]) -> None:
    flags = ["--json", "--query", "Hello", "--max_new_tokens", 8, "--temperature", 2, "--top_k", 0, "--top_p", 1]
    first = run(*flags, "--seed", 3).out
    assert run(*flags, "--seed", 3).out == first
    assert run(*flags, "--seed", 4).out != first


def test_flags_of_precision_reach_the_model(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from sat_models import zoo
    from sat_models.errors import ConfigError

    def load(name: str, **given: object) -> None:
        raise ConfigError(" ".join(f"{key}={given[key]}" for key in ("dtype", "quant", "quant_skip", "rotary_table")))

    monkeypatch.setattr(zoo, "load_pretrained", load)
    flags = ["--query", "x", "--quant", 4, "--quant-skip", "a*", "b", "--rotary-table", "fp32"]
    assert run(*flags).err == "error: dtype=fp32 quant=4 quant_skip=['a*', 'b'] rotary_table=fp32\n"
    assert run("--query", "x").err == "error: dtype=fp32 quant=None quant_skip=() rotary_table=model\n"


def test_output_without_boxes_says_so(run: Callable[..., Any], tmp_path: Path) -> None:
    done = run("--image", IMAGE, "--query", "Hi", "--max_new_tokens", 2, "--output", tmp_path / "x.png")
    assert done.code == 0
    assert "no boxes drawn" in done.err
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--version", "chatt", "--query", "x"], "Unknown prompt version 'chatt'. Did you mean chat"),
        (["--image", "none.png", "--query", "x"], "Picture 'none.png' does not exist"),
        (["--image", "http://127.0.0.1:9/cat.png", "--query", "x"], "http://127.0.0.1:9/cat.png"),
        (["--image", str(GOLDEN / "latest"), "--query", "x"], "is not a picture"),
        (["--query", ""], "The question is empty"),
        (["--query", "word " * 300], "but the context is 256"),
        (["--query", "word " * 20, "--max_length", "20"], "max_length is 20"),
        (["--query", "x", "--temperature", "-1"], "temperature is -1.0"),
        (["--json"], "--json prints one answer"),
        (["--query", "x", "--local_tokenizer", "none/of/it"], "none/of/it"),
        (["--query", "a \udce9 b"], "The question holds half of a surrogate pair"),
        (["--query", "x", "--image", "\ud83d.png"], "Picture '\\ud83d.png'"),
        (["--query", "x", "--version", "\ud83d"], "Unknown prompt version '\\ud83d'"),
        (["--query", "x", "--output", "x.doc"], "does not end as an image"),
        (["--query", "x", "--output", "x"], "does not end as an image"),
        (["--query", "x", "--output", "no/such/folder/x.png"], "there is no folder 'no/such/folder'"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_code_2(run: Callable[..., Any], flags: list[str], message: str) -> None:
    done = run(*flags)
    assert done.code == 2
    assert done.out == ""
    (line,) = done.err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_an_output_that_cannot_be_is_found_before_the_answer(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sat_models import zoo

    monkeypatch.setattr(zoo, "load_pretrained", lambda *_, **__: pytest.fail("the model was loaded"))
    (tmp_path / "folder.png").mkdir()
    for output in (tmp_path / "folder.png", tmp_path / "x.xbm", tmp_path / "x.tar.gz"):
        done = run("--image", IMAGE, "--query", "x", "--output", output)
        assert (done.code, done.out) == (2, "") and str(output) in done.err


def test_a_missing_model_is_named(run: Callable[..., Any]) -> None:
    done = run("--query", "x", model="/no/such/folder")
    assert (done.code, done.out) == (2, "")
    assert "/no/such/folder" in done.err


def test_the_dialogue(run: Callable[..., Any]) -> None:
    lines = ["none.png", str(IMAGE), CASES[0]["query"], "", "clear", "", "Hello", "stop", "never read"]
    done = run("--version", "base", "--max_new_tokens", 20, typed="\n".join(lines))
    assert done.code == 0
    assert f"Model: {CASES[0]['text']}\n" in done.out
    assert done.out.count("Model: ") == 2
    assert done.out.count("Image path or URL") == 3
    assert "does not exist" in done.err
    assert "The question is empty" in done.err


def test_the_dialogue_starts_with_a_given_picture_and_ends_with_the_input(run: Callable[..., Any]) -> None:
    flags = ["--image", IMAGE, "--version", "base", "--max_new_tokens", 20, "--chinese", "--stream_chat"]
    done = run(*flags, typed=CASES[0]["query"] + "\n")
    assert done.code == 0
    assert f"模型：{CASES[0]['text']}\n" in done.out


def test_the_older_command_line(run: Callable[..., Any]) -> None:
    flags = ["--version", "base", "--english", "--no_prompt", "--max_new_tokens", 3]
    done = run(*flags, typed=f"{IMAGE}\nstop\n")
    assert done.code == 0
    assert done.out.count("Model: ") == 1


@pytest.mark.parametrize("command", DOCUMENTED)
def test_documented_commands_parse(command: str) -> None:
    make_parser().parse_args(shlex.split(command)[1:])


def test_defaults_and_spellings() -> None:
    args = make_parser().parse_args([])
    assert (args.top_p, args.top_k, args.temperature, args.max_length) == (0.4, 1, 0.8, None)
    assert (args.dtype, args.language, args.device) == ("auto", "english", "auto")
    spelt = make_parser().parse_args(["--max-length", "9", "--from-pretrained", "x", "--stream-chat", "--no-prompt"])
    assert (spelt.max_length, spelt.from_pretrained, spelt.stream_chat, spelt.no_prompt) == (9, "x", True, True)


@pytest.mark.parametrize("flags", [["--fp16", "--bf16"], ["--chinese", "--english"], ["--quant", "3"], ["--vers", "x"]])
def test_contradictions_and_unknown_flags_end_with_code_2(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        make_parser().parse_args(flags)
    assert ended.value.code == 2
