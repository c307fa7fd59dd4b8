"""Engines beside ours: asked in turn, compared, and named where they are not there or fail."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sat_models.bench.peers import driver
from sat_models.bench.peers.driver import KNOWN, Figures, Peer, table
from sat_models.bench.peers.samples import write_samples
from sat_models.commands import bench_peers
from sat_models.errors import ConfigError, ZooError
from sat_models.processing.tokens import SentencePieceTokenizer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TOKENIZER = ROOT / "sat_models" / "assets" / "cogvlm-tiny" / "tokenizer.model"


@pytest.fixture
def engines(tmp_path: Path) -> dict[str, str]:
    """Fake workers by name, each beside the protocol, as the real ones are; and a folder that has a model."""
    shutil.copy(ROOT / "sat_models" / "bench" / "peers" / "protocol.py", tmp_path)
    (tmp_path / "model" / "hf").mkdir(parents=True)
    names = ("ours", "quick", "slow", "broken", "absent", "transformers")
    for name in names:
        shutil.copy(HERE / "fake_peer.py", tmp_path / f"{name}.py")
    return {name: f"{name}={sys.executable},{tmp_path / name}.py" for name in names}


def run(tmp_path: Path, *flags: str) -> tuple[int, list[dict[str, Any]]]:
    output = tmp_path / "out.json"
    code = bench_peers.main(["--folder", str(tmp_path / "model"), "--output", str(output), "--threads", "1", *flags])
    return code, json.loads(output.read_text())


def test_engines_are_asked_in_turn_and_compared(
    tmp_path: Path, engines: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    peers = [engines[name] for name in ("ours", "slow", "broken", "absent")]
    code, rows = run(
        tmp_path, "--peers", *peers, "--forms", "int8", "--contexts", "30", "10", "--new_tokens", "6", "--repeats", "2"
    )
    assert code == 1, "not all could be measured"
    found = {(row["name"], row["tokens"]): row for row in rows}
    assert set(found) == {("absent", 0), *((name, n) for name in ("ours", "slow") for n in (10, 30)),
                          ("broken", 10), ("broken", 30)}  # fmt: skip
    slow = found["slow", 10]
    assert statistics.median(slow["times_ours"]) < 0.9 and len(slow["rates"]) == len(slow["first"]) == 2
    assert found["ours", 30]["times_ours"] == [1.0, 1.0] and found["ours", 30]["peak"] > 1e6
    assert found["broken", 10]["note"] == "" and found["broken", 30]["rates"] == []
    assert found["broken", 30]["note"] == "ended: RuntimeError: no kernel for so many"
    assert found["absent", 0]["note"] == f"not installed; {sys.executable} -m pip install what-brings-it"
    asked = (tmp_path / "model" / "asked.txt").read_text().splitlines()
    assert asked[:3] == [f"{name} int8 10 2 1" for name in ("broken", "slow", "ours")], "once, to warm up"
    assert asked[3:9] == [f"{name} int8 10 6 1" for name in ("ours", "slow", "broken", "broken", "slow", "ours")]
    said = capsys.readouterr().out
    assert "| int8, 10 tokens | slow | " in said and "what-brings-it" in said and " ms |" in said


def test_training_takes_turns_too(tmp_path: Path, engines: dict[str, str]) -> None:
    code, rows = run(
        tmp_path, "--train", "--repeats", "2", "--peers", *(engines[name] for name in ("ours", "transformers", "slow"))
    )
    assert code == 0
    assert [(row["name"], row["form"]) for row in rows] == [
        (name, form) for form in ("plain", "checkpointed") for name in ("ours", "transformers")
    ]
    assert rows[1]["rates"] == [50.0, 50.0] and rows[1]["times_ours"] == [0.5, 0.5]
    plan = json.loads((tmp_path / "model" / "train" / "plan.json").read_text())
    line = json.loads((tmp_path / "model" / "train" / "data.jsonl").read_text().splitlines()[3])
    assert SentencePieceTokenizer.from_file(TOKENIZER).decode(plan["samples"][3]["text"]) == line["text"]
    assert (tmp_path / "model" / "train" / line["image"]).is_file()


def test_painters_take_turns_and_draw_the_same(
    tmp_path: Path, engines: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = engines["slow"].partition("=")[2]
    flags = ["--draw", "--forms", "fp32", "int8", "--size", "64x32", "--steps", "4", "--repeats", "2"]
    code, rows = run(tmp_path, *flags, "--diffusers", theirs, "--peers", engines["ours"])
    assert code == 0 and [(row["name"], row["form"]) for row in rows] == [("ours", "fp32"), ("diffusers", "fp32")]
    ours, other = rows
    assert len(ours["step"]) == 6 and len(ours["whole"]) == 2, "of each image all steps but the first"
    assert other["difference"] == 2 and ours["times_ours"] == [1.0, 1.0]
    assert statistics.median(other["times_ours"]) > 1.2
    asked = (tmp_path / "model" / "asked.txt").read_text().splitlines()
    assert asked == [f"{name} fp32 {steps} 224 1" for name, steps in (
        ("slow", 2), ("ours", 2), ("ours", 4), ("slow", 4), ("slow", 4), ("ours", 4))]  # fmt: skip
    said = capsys.readouterr().out
    assert "| fp32 | diffusers | 0.0" in said and " GB | " in said
    for name in ("painter", "painter-ours"):
        assert (tmp_path / "model" / name / "tokenizer" / "spiece.model").read_bytes() == TOKENIZER.read_bytes()


def test_what_an_engine_reads_is_made_once(tmp_path: Path, engines: dict[str, str]) -> None:
    worker = tmp_path / "quick.py"
    peer = Peer("quick", worker, needs=("quick.made",))
    assert driver.make_what_is_missing({"quick": peer}, tmp_path / "model") == {}
    made = tmp_path / "model" / "quick.made"
    first = made.stat().st_mtime_ns
    assert driver.make_what_is_missing({"quick": peer}, tmp_path / "model") == {}
    assert made.stat().st_mtime_ns == first
    absent = Peer("absent", tmp_path / "nothing.py", needs=("other",))
    assert "can't open file" in driver.make_what_is_missing({"absent": absent}, tmp_path / "model")["absent"]


def test_without_transformers_no_model_is_made(tmp_path: Path) -> None:
    nobody = Peer("transformers", tmp_path / "nothing.py", "/nonexistent/python")
    with pytest.raises(ConfigError, match=r"transformers makes the model in .*cannot be started: No such file"):
        driver.make_what_is_missing({"transformers": nobody}, tmp_path / "new")


def test_ours_that_fails_ends_it(tmp_path: Path, engines: dict[str, str]) -> None:
    (tmp_path / "ours.py").write_text("raise SystemExit('no such model')\n")
    with pytest.raises(ZooError, match="this project could not be measured: ended: no such model"):
        run(tmp_path, "--peers", engines["ours"], "--forms", "fp32", "--contexts", "10")


@pytest.mark.parametrize(
    "flags, message",
    [(["--peers", "vllm"], "--peers names 'vllm'; known: ours, transformers, openvino, llama.cpp"),
     (["--contexts", "1"], "--contexts is 1; it must be at least 2")],
)  # fmt: skip
def test_flags_are_checked(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        bench_peers.parse_args(flags)
    assert message in str(raised.value)


def test_our_own_worker_answers_and_every_other_says_what_it_needs(tmp_path: Path) -> None:
    """A model of the house stands for `hf`; the prompt's ids are those of its small vocabulary."""
    (tmp_path / "hf").symlink_to(HERE.parent / "golden" / "cogvlm-mini")
    with driver.Worker.started(KNOWN["ours"], KNOWN["ours"].call("serve", tmp_path, "fp32", "1"), 1) as worker:
        assert worker.heard()["ready"].startswith("this project, ")
        answer = worker.ask(ids=[1, 40, 50, 60], new=5)
    assert len(answer["ids"]) == answer["new"] == 5 and min(answer["first"], answer["rest"]) > 0
    alone = [sys.executable, "-S", "-I"]  # without packages
    for name in ("transformers", "openvino", "llama.cpp"):
        code = (
            f"import sys, runpy; sys.path.insert(0, {str(KNOWN[name].script.parent)!r}); sys.argv = ['w', 'make', '.']"
        )
        code += f"; runpy.run_path({str(KNOWN[name].script)!r}, run_name='__main__')"
        done = subprocess.run([*alone, "-c", code], capture_output=True, text=True)
        assert json.loads(done.stdout)["missing"], done.stderr


def test_prompts_are_the_same_each_time() -> None:
    assert driver.prompt(300) == driver.prompt(300) and len(driver.prompt(300)) == 300
    assert driver.prompt(10)[0] == 1 and 300 <= min(driver.prompt(2000)[1:]) < max(driver.prompt(2000)) < 31300


def test_the_table_says_why_there_is_no_figure() -> None:
    good = Figures("ours", "bf16", 300, [10.0, 12.0, 11.0], [0.1, 0.3, 0.2], 2 * 10**9, [1.0, 1.0, 1.0])
    lines = table([good, Figures("other", "bf16", 0, note="not installed")]).splitlines()
    assert lines[2] == "| bf16, 300 tokens | ours | 11.0 (10.0 to 12.0) | 1.00 | 200 ms | 2.00 GB |"
    assert lines[3] == "| bf16 | other | not installed |  |  |  |"


def test_samples_need_no_package_of_a_peer(tmp_path: Path) -> None:
    write_samples(tmp_path, SentencePieceTokenizer.from_file(TOKENIZER), TOKENIZER)
    plan = json.loads((tmp_path / "train" / "plan.json").read_text())
    assert len(plan["samples"]) == 64 and plan["batch"] * plan["steps"] <= 64
