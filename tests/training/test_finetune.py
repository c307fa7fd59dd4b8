"""Fine-tuning through its scripts, from the command to the merged model that answers."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from finetune_runs import ENVIRONMENT, ROOT, command, finetune, losses, official

from sat_models.checkpoint.adapter import read_adapter
from sat_models.checkpoint.find import find_checkpoint
from sat_models.errors import ZooError
from sat_models.training.finetune import finetune as finetune_here
from sat_models.training.merging import merge_step
from sat_models.training.settings_files import make_parser, settings_from


def follow(said: str, script: str, **given: str) -> subprocess.CompletedProcess[str]:
    """Run the printed next command of a script, its placeholders filled in."""
    line = next(line for line in said.splitlines() if script in line)
    words = [given.get(word, word) for word in shlex.split(line)]
    return subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, env=ENVIRONMENT, timeout=300
    )


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of four steps in one process: its folder and what it said."""
    folder = tmp_path_factory.mktemp("run")
    valid = folder / "valid.jsonl"
    entry = {"prompt": "Describe this image.", "text": "A red circle.", "image": str(ROOT / "examples" / "6.png")}
    valid.write_text(json.dumps(entry) + "\n")
    done = finetune(folder / "out", eval_interval=2, eval_samples=1, eval_tokens=8, valid_data=valid)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "out", done.stdout


def test_a_run_leaves_checkpoints_numbers_answers_and_a_curve(short: tuple[Path, str]) -> None:
    folder, said = short
    assert (folder / "latest").read_text() == "4" and (folder / "best").read_text() in ("2", "4")
    assert list(losses(folder)) == [1, 2, 3, 4]
    evaluated = [line for line in map(json.loads, (folder / "metrics.jsonl").open()) if "eval/loss" in line]
    assert [line["step"] for line in evaluated] == [2, 4]
    assert all(line["eval/perplexity"] > 1 and 0 <= line["eval/exact_match"] <= 1 for line in evaluated)
    (answer,) = map(json.loads, (folder / "predictions" / "4.jsonl").open())
    assert answer["expected"] == "A red circle." and answer["answer"]
    assert (folder / "loss_curve.png").stat().st_size > 5000
    assert list((folder / "tensorboard").iterdir())
    adapter = read_adapter(folder)
    assert adapter.base_model == "cogvlm-tiny" and adapter.lora.rank == 4 and adapter.extra["step"] == 4
    assert "vision_expert" in said and "LoRA" in said


def test_the_printed_commands_work(short: tuple[Path, str]) -> None:
    folder, said = short
    image = str(ROOT / "examples" / "6.png")
    answered = follow(said, "cli_demo_sat.py", PICTURE=image, QUESTION="Describe this image.")
    assert answered.returncode == 0 and "circle" in answered.stdout, answered.stderr
    merged = follow(said, "merge_lora.py")
    assert merged.returncode == 0, merged.stderr
    one, other = (find_checkpoint(folder / name).read()[0] for name in ("merged", "merged-4"))
    assert one.keys() == other.keys() and not any("matrix" in name for name in one)


def test_a_finished_run_is_not_run_again(short: tuple[Path, str]) -> None:
    folder, _ = short
    before = losses(folder)
    again = finetune(folder, valid_data=folder.parent / "valid.jsonl")
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stdout.count("nothing to do: step 4 of 4 was reached") == 1 and losses(folder) == before
    assert "choose another --save_path" in again.stdout and "loaded" not in again.stderr


def test_another_plan_may_not_go_on_in_the_folder(short: tuple[Path, str]) -> None:
    folder, _ = short
    other = finetune(folder, lora_rank=5, valid_data=folder.parent / "valid.jsonl")
    assert other.returncode == 2 and "lora_rank = 4, but this one has 5" in other.stderr
    config = (folder / "model_config.json").read_bytes()
    style = finetune(folder, version="vqa", valid_data=folder.parent / "valid.jsonl")
    assert style.returncode == 2 and "version = chat, but this one has vqa: the model has seen" in style.stderr
    assert (folder / "model_config.json").read_bytes() == config, "a refused run changes nothing"
    anew = finetune(folder, resume="none")
    assert anew.returncode == 2 and "Choose another folder" in anew.stderr


def test_a_merged_model_has_the_tokenizer_of_its_run(short: tuple[Path, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(short[0] / "4", run / "4")
    shutil.copy(ROOT / "tests" / "golden" / "cogvlm-mini" / "tokenizer.model", run)
    merge_step(run / "4", tmp_path / "merged", None)
    assert (tmp_path / "merged" / "tokenizer.model").read_bytes() == (run / "tokenizer.model").read_bytes()


@pytest.mark.slow
def test_a_run_that_gets_no_better_ends_and_its_best_step_is_merged(tmp_path: Path) -> None:
    flags = {"learning_rate": 1e-30, "train_iters": 9, "eval_interval": 2, "save_interval": 9, "patience": 2,
             "eval_samples": 0, "valid_data": ROOT / "examples"}  # fmt: skip
    done = finetune(tmp_path, best_by="loss", **flags)
    assert done.returncode == 0 and "no better score" in done.stdout, done.stderr[-2000:]
    before = losses(tmp_path)
    best = (tmp_path / "best").read_text()
    assert len(before) < 9 and int(best) < len(before)
    assert (tmp_path / "merged" / "latest").read_text() == best
    again = finetune(tmp_path, best_by="loss", **flags)
    assert again.returncode == 0 and losses(tmp_path) == before, "an ended run has ended"


@pytest.mark.parametrize("images", [0, pytest.param(4, marks=pytest.mark.slow)])
def test_text_alone_trains_too(tmp_path: Path, images: int) -> None:
    """A rank whose batch has no picture gives the visual expert a gradient of zero: the other rank waits for it."""
    lines = [{"prompt": f"Say {word}.", "text": word} for word in ("one", "two", "three", "four")]
    for number in range(images):
        lines.append(
            {"prompt": "What is it?", "text": "A shape.", "image": str(ROOT / "examples" / f"{number + 1}.png")}
        )
    data = tmp_path / "mixed.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)))
    flags = {"train_data": data, "trainable": "expert", "lora_rank": -1, "batch_size": 1, "train_iters": 6, "zero": 2}
    done = finetune(tmp_path / "out", processes=2, **flags)
    assert done.returncode == 0 and len(losses(tmp_path / "out")) == 6, done.stderr[-3000:]


def test_a_hostfile_starts_deepspeeds_launcher(tmp_path: Path) -> None:
    given = [2, 1, "/models", "cogvlm-tiny", "base", 128, 10, "examples", 40, 20, 20, tmp_path, 2, "expert"]
    said = official(*given, HOSTFILE="hosts", PYTHON="echo").stdout.split()
    assert said[:5] == ["-m", "deepspeed.launcher.runner", "--no_local_rank", "--hostfile", "hosts"]
    assert said[5:8] == ["--num_gpus", "2", str(ROOT / "scripts" / "finetune.py")]
    known = subprocess.run(
        [sys.executable, "-m", "deepspeed.launcher.runner", "--help"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert all(flag in known.stdout for flag in said[2:7:2] if flag.startswith("--"))


def test_a_dry_run_says_what_would_happen_and_leaves_nothing(tmp_path: Path) -> None:
    said = finetune(tmp_path / "out", "--dry-run", trainable="all", lora_rank=-1)
    assert said.returncode == 0, said.stderr[-2000:]
    assert "in full" in said.stdout and "optimizer" in said.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train_data": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"from_pretrained": "cogvlm-tinny"}, "cogvlm-tiny"),
        ({"save_path": "/proc/here"}, "/proc/here"),
        ({"mp": 3}, "model-parallel size 3"),
        ({"deepspeed": "zero9"}, "configs/deepspeed"),
        ({"precision": "fp16"}, "GPUs only"),
        ({"optimizer": "muon", "zero": 1}, "in fp32 with ZeRO 1"),
        ({"optimizer": "muon", "precision": "bf16"}, "--optimizer adamw"),
        ({"lora_targets": "nothing.*"}, "fits no linear"),
        ({"resume": "perhaps"}, "auto or none"),
        ({"pre_seq_len": 4, "lora_rank": -1, "trainable": "all"}, "for a model that stays as it is"),
    ],
)
def test_bad_input_is_refused_before_training(tmp_path: Path, settings: dict[str, str], said: str) -> None:
    flags = command(**{"save_path": tmp_path / "out", **settings})[2:]
    with pytest.raises(ZooError, match=re.escape(said)):
        finetune_here(settings_from(make_parser().parse_args(flags)))


def test_a_refusal_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = finetune(tmp_path / "out", train_data="/nowhere/at/all")
    assert done.returncode == 2 and "/nowhere/at/all" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_too_few_arguments_show_the_usage() -> None:
    done = official(2, 1, "/models")
    assert done.returncode == 2 and "NUM_GPUS_PER_WORKER" in done.stderr and "got 3" in done.stderr


@pytest.mark.slow
def test_lora_learns_on_quantised_weights_and_merges_into_the_full_ones(tmp_path: Path) -> None:
    done = finetune(tmp_path, quant=4, train_iters=12, save_interval=12, trainable="all", lora_alpha=8)
    assert done.returncode == 0, done.stderr[-3000:]
    curve = list(losses(tmp_path).values())
    assert sum(curve[-4:]) < 0.9 * sum(curve[:4])
    merged = find_checkpoint(tmp_path / "merged").read()[0]
    assert all(weight.is_floating_point() for weight in merged.values())


def test_a_diverged_run_names_its_samples(tmp_path: Path) -> None:
    done = finetune(tmp_path / "out", learning_rate=1e30, lora_rank=-1, clip=0, warmup=0, train_iters=8)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "is no number" in done.stderr and "example_inputs.jsonl:" in done.stderr


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    settings = {"train_iters": 400, "save_interval": 1000}
    process = subprocess.Popen(
        command(tmp_path, **settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    _wait_for(lambda: len(losses(tmp_path)) >= 2, process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    step = int((tmp_path / "latest").read_text())
    assert process.returncode == 0 and f"stopped: step {step} of 400" in said
    again = finetune(tmp_path, **{**settings, "train_iters": step + 1})
    assert again.returncode == 0 and f"going on after step {step}" in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("mp", "rank", "trainable"), [(1, 10, "expert"), (2, -1, "all"), (2, 10, "all")])
def test_the_documents_command_runs_as_typed(tmp_path: Path, mp: int, rank: int, trainable: str) -> None:
    out = tmp_path / "out"
    done = official(
        2, mp, tmp_path, "cogvlm-tiny", "base", 128, rank, "examples", 40, 20, 20, out, 2, trainable,
        "--log_interval", 1, "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    curve = list(losses(out).values())
    assert len(curve) == 40 and all(0 < loss < 5 for loss in curve)
    if rank == -1:
        assert sum(curve[-18:]) < sum(curve[:18]), "18 steps see each sample as often"
    else:  # at alpha 1 forty steps move the loss less than the choice of samples does
        assert any(tensor.any() for name, tensor in read_adapter(out).tensors.items() if "matrix_B" in name)
    answer = follow(done.stdout, "cli_demo_sat.py", PICTURE="examples/1.png", QUESTION="Describe this image.")
    assert answer.returncode == 0 and answer.stdout.strip(), answer.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [{"processes": 2} | more for more in ({"zero": 1}, {"zero": 2}, {"mp": 2}, {"optimizer": "muon"})],
    ids=lambda flags: str(flags),
)
def test_killed_and_resumed_is_bit_equal_to_straight(tmp_path: Path, flags: dict[str, int]) -> None:
    """k steps, `kill -9`, resume, k steps: the losses and weights of 2k steps without a break."""
    settings = {"train_iters": 12, "save_interval": 6, "trainable": "all", "lora_dropout": 0.1}
    straight = finetune(tmp_path / "straight", **settings, **flags)
    assert straight.returncode == 0, straight.stderr[-3000:]
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        command(killed, **settings, **flags), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT
    )
    _wait_for(lambda: (killed / "latest").is_file(), process)
    everyone = psutil.Process(process.pid).children(recursive=True)
    for one in [process, *everyone]:
        one.kill()
    process.wait(timeout=60)
    assert (killed / "latest").read_text() == "6", "killed after the first save and before the second"
    resumed = finetune(killed, **settings, **flags)
    assert resumed.returncode == 0 and "going on after step 6" in resumed.stderr, resumed.stderr[-3000:]
    assert losses(killed) == losses(tmp_path / "straight")
    one, other = read_adapter(tmp_path / "straight").tensors, read_adapter(killed).tensors
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_two_ranks_of_one_model_learn_what_one_process_learns(tmp_path: Path) -> None:
    """LoRA on language, vision-expert and vision-tower linears, fp32: the same loss curve."""
    settings = {"train_iters": 20, "save_interval": 20, "trainable": "all", "lora_rank": 8, "learning_rate": 3e-3}
    curves = []
    for size in (1, 2):
        done = finetune(tmp_path / str(size), processes=size, mp=size, **settings)
        assert done.returncode == 0, done.stderr[-3000:]
        curves.append(losses(tmp_path / str(size)))
    assert max(abs(curves[0][step] - curves[1][step]) for step in curves[0]) <= 1e-4


def _wait_for(there: Callable[[], object], process: subprocess.Popen, seconds: float = 240) -> None:
    limit = time.monotonic() + seconds
    while True:
        try:
            if there():
                return
        except FileNotFoundError:
            pass
        assert process.poll() is None, f"it ended: {process.communicate()}"
        assert time.monotonic() < limit, "nothing happened"
        time.sleep(0.2)
