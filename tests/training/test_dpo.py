"""DPO: the loss of TRL and of the formula, the reference without LoRA, runs that resume, a learned preference."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from data_helpers import GOLDEN, write_jsonl
from dpo_batch import model_and_batch
from finetune_runs import ENVIRONMENT, ROOT, command, finetune, losses, official
from torch import Tensor

from mixins.base import ZooModel
from mixins.lora import lora_layers, without_lora
from sat_models.checkpoint.adapter import read_adapter
from sat_models.errors import ConfigError
from sat_models.processing.inputs import VLMInputs
from sat_models.processing.layout import IGNORE
from sat_models.training.batches import batches
from sat_models.training.losses import NextTokens, Preference, answer_log_probs
from sat_models.training.pairs import PairDataset
from sat_models.training.records import Record
from sat_models.training.settings_files import make_parser, settings_from
from sat_models.training.trainable import apply_plan, plan_of
from sat_models.zoo import load_pretrained

TRL = json.loads((Path(__file__).parent / "dpo_trl.json").read_text())["cases"]


@pytest.fixture(scope="module")
def made() -> tuple[ZooModel, VLMInputs]:
    return model_and_batch()


def gradients(model: ZooModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("case", TRL, ids=lambda case: f"{case['trl']} {case['beta']} {case['label_smoothing']}")
def test_loss_rewards_and_gradients_are_those_of_trl(made: tuple[ZooModel, VLMInputs], case: dict[str, Any]) -> None:
    model, inputs = made
    found = Preference(case["beta"], case["label_smoothing"])(model, inputs)
    assert found.count == 2 and found.total.item() / 2 == pytest.approx(case["loss"], abs=1e-5)
    means = {name: found.sums[name] / 2 for name in case["metrics"]}
    assert means == pytest.approx(case["metrics"], abs=1e-5, rel=1e-5)
    lengths = {name: grad.norm().item() for name, grad in gradients(model, found.total / 2).items()}
    assert lengths == pytest.approx(case["gradients"], abs=1e-5, rel=1e-5)


def by_the_formula(model: ZooModel, inputs: VLMInputs, beta: float, smoothing: float) -> Tensor:
    """Equation 7 of arXiv 2305.18290 written out row by row, over all logits; smoothed as in conservative DPO."""

    def log_probs() -> list[Tensor]:
        found = model(**inputs.model_kwargs())[0].log_softmax(-1)
        rows = []
        for row, labels in enumerate(inputs.labels):
            targets = [(at - 1, token) for at, token in enumerate(labels.tolist()) if token != IGNORE]
            rows.append(sum(found[row, at, token] for at, token in targets))
        return rows

    with without_lora(model), torch.no_grad():
        before = log_probs()
    now, terms = log_probs(), []
    for chosen, rejected in ((0, 1), (2, 3)):
        margin = beta * ((now[chosen] - before[chosen]) - (now[rejected] - before[rejected]))
        terms.append(
            -(1 - smoothing) * torch.log(torch.sigmoid(margin)) - smoothing * torch.log(torch.sigmoid(-margin))
        )
    return sum(terms) / len(terms)


@pytest.mark.parametrize(("beta", "smoothing"), [(0.1, 0.0), (0.7, 0.2)])
def test_loss_and_gradients_are_those_of_the_formula(
    made: tuple[ZooModel, VLMInputs], beta: float, smoothing: float
) -> None:
    model, inputs = made
    found = Preference(beta, smoothing)(model, inputs)
    expected = by_the_formula(model, inputs, beta, smoothing)
    assert found.total.item() / 2 == pytest.approx(expected.item(), abs=1e-5)
    own, others = gradients(model, found.total / 2), gradients(model, expected)
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, others[name], atol=1e-5, rtol=1e-5)
    assert any(gradient.abs().max() > 1e-3 for gradient in own.values())


def test_without_lora_is_the_model_that_was_loaded(made: tuple[ZooModel, VLMInputs]) -> None:
    model, inputs = made
    plain = load_pretrained(ROOT / "tests" / "golden" / "cogvlm-mini", device="cpu", dtype="float32").model.train()
    with torch.no_grad():
        with without_lora(model):
            found = answer_log_probs(model, inputs)
            assert not any(layer.enabled for layer in lora_layers(model).values())
        assert found.equal(answer_log_probs(plain, inputs))
        assert (answer_log_probs(model, inputs) - found).abs().min() > 1e-3, "LoRA is back"


def test_pairs_without_targets_do_not_count(made: tuple[ZooModel, VLMInputs]) -> None:
    model, inputs = made
    whole = Preference()(model, inputs)
    muted = inputs.labels.clone()
    muted[2:] = IGNORE
    half = Preference()(model, VLMInputs(**{**vars(inputs), "labels": muted}))
    assert half.count == 1 and 0 < half.total.item() < whole.total.item()
    assert half.sums["logps/chosen"] > whole.sums["logps/chosen"]


def test_scores_of_an_evaluation() -> None:
    assert NextTokens().scores({"loss": 0.0}) == {"loss": 0.0, "perplexity": 1.0}
    means = {"loss": 0.5, **dict.fromkeys(Preference.names, 0.25)}
    assert Preference().scores(means) == means


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--lora_rank", "-1"], "LoRA alone may train. Give --lora_rank"),
        (["--train_also", "head"], "no --train_also"),
        (["--pre_seq_len", "4"], "no --pre_seq_len"),
        (["--pack"], "leave --pack out"),
        (["--dpo_beta", "0"], "--dpo_beta is 0.0"),
        (["--dpo_label_smoothing", "0.5"], "below 0.5"),
        (["--objective", "sft", "--dpo_beta", "0.2"], "belong to --objective dpo"),
        (["--objective", "sft", "--best_by", "rewards/accuracies"], "belong to --objective dpo"),
    ],
)
def test_settings_that_dpo_cannot_have(flags: list[str], said: str) -> None:
    given = [*command(Path("out"), objective="dpo")[2:], *flags]
    with pytest.raises(ConfigError, match=re.escape(said)):
        settings_from(make_parser().parse_args(given))


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("cogagent-mini", "chat"),
        ("visualglm-mini", "glm_en"),
        ("glm4v-mini", "glm4v"),
        ("internvl2-mini", "internlm2-chat"),
        ("xcomposer2-4khd-mini", "xcomposer2"),
    ],
)
def test_every_kind_of_family_learns_from_pairs(name: str, version: str) -> None:
    """Also one whose context sees itself, one with tiles, and one with a second branch for images."""
    own = {"local_tokenizer": GOLDEN / "cogvlm-mini"} if name == "visualglm-mini" else {}  # whose set has none
    vlm = load_pretrained(GOLDEN / name, device="cpu", dtype="float32", **own)
    apply_plan(vlm.model.train(), plan_of("all", 4, alpha=4.0))
    image = GOLDEN / "cogvlm-mini" / "image.png"
    records = [Record(str(n), (image,), (("What?", "a cat"),), f"x:{n}", rejected=f"no {n}") for n in range(2)]
    data = PairDataset(records, vlm.processor, version=version, max_length=480)
    inputs = next(batches(data, batch_size=2)).inputs
    made = Preference()(vlm.model, inputs)
    assert made.count == 2 and made.total.item() == pytest.approx(2 * math.log(2), abs=1e-5)
    before = gradients(vlm.model, made.total)
    with torch.no_grad():
        for parameter in (p for p in vlm.model.parameters() if p.requires_grad):
            parameter.sub_(parameter.grad, alpha=0.1 / parameter.grad.norm().clamp(min=1e-3))
    assert Preference()(vlm.model, inputs).total.item() < made.total.item() - 1e-4
    assert any(gradient.any() for gradient in before.values())


COLOURS = ("red", "blue", "green", "orange", "purple", "yellow")


def pairs_of(folder: Path, count: int, *, start: int = 0) -> Path:
    """About the bundled images: yes is better than no, whatever there is to see."""
    entries = []
    for number in range(start, start + count):
        image = str(ROOT / "examples" / f"{1 + number % 10}.png")
        asked = f"Is there a {COLOURS[number % 6]} shape?"
        entries.append({
            "messages": [{"role": "user", "content": f"<image>{asked}"}, {"role": "assistant", "content": "yes"}],
            "rejected_response": "no", "images": [image],
        })  # fmt: skip
    return write_jsonl(folder / f"pairs{start}.jsonl", entries)


@pytest.mark.slow
def test_a_run_reports_rewards_and_resumes_to_the_bit(tmp_path: Path) -> None:
    data = pairs_of(tmp_path, 4)
    settings = {
        "objective": "dpo", "train_data": data, "valid_data": pairs_of(tmp_path, 3, start=4), "trainable": "all",
        "learning_rate": 3e-3, "lora_alpha": 8, "lora_dropout": 0.1, "eval_interval": 4, "eval_samples": 1,
        "eval_tokens": 4, "best_by": "rewards/accuracies", "dpo_label_smoothing": 0.1,
    }  # fmt: skip
    straight = finetune(tmp_path / "straight", "--no-merge", **settings)
    assert straight.returncode == 0, straight.stderr[-3000:]
    assert "4 pair(s) of answers" in straight.stdout
    lines = [json.loads(line) for line in (tmp_path / "straight" / "metrics.jsonl").open()]
    trained = [line for line in lines if "loss" in line]
    assert trained[0]["loss"] == pytest.approx(0.6931472, abs=1e-6) and trained[0]["rewards/margins"] == 0
    assert {*Preference.names} <= trained[0].keys()
    (evaluated,) = (line for line in lines if "eval/loss" in line)
    assert 0 <= evaluated["eval/rewards/accuracies"] <= 1 and "eval/perplexity" not in evaluated
    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "straight", resumed)
    shutil.rmtree(resumed / "4")
    again = finetune(resumed, "--no-merge", **settings)
    assert again.returncode == 0 and "going on after step 2" in again.stderr, again.stderr[-3000:]
    assert losses(resumed) == losses(tmp_path / "straight")
    one, other = read_adapter(tmp_path / "straight").tensors, read_adapter(resumed).tensors
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    refused = finetune(resumed, "--no-merge", **{**settings, "objective": "sft", "dpo_label_smoothing": 0.0,
                       "best_by": "loss"})  # fmt: skip
    assert refused.returncode == 2 and "it has a rejected answer, which --objective dpo alone" in refused.stderr


@pytest.mark.slow
def test_two_ranks_of_one_model_learn_what_one_process_learns(tmp_path: Path) -> None:
    """By plain descent: AdamW's first step takes the sign of a gradient, and with it that of its rounding."""
    program, curves = str(Path(__file__).with_name("dpo_batch.py")), {}
    for launch in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]):
        file = tmp_path / f"{len(launch)}.json"
        run = subprocess.run(
            [sys.executable, *launch, program, str(file)], env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-3000:]
        size, curves[len(curves) + 1] = json.loads(file.read_text())
        assert size == len(curves)
    assert curves[2] == pytest.approx(curves[1], abs=1e-5) and curves[1][-1] < 0.5 < curves[1][0]


@pytest.mark.slow
def test_a_preference_is_learned_through_the_documented_command(tmp_path: Path) -> None:
    """On questions that were not trained on, too, the merged model answers as was preferred."""
    data, valid = pairs_of(tmp_path, 20), pairs_of(tmp_path, 10, start=21)
    out = tmp_path / "out"
    done = official(1, 1, "", "cogvlm-tiny", "vqa", 128, 8, data, 80, 80, 80, out, 4, "all", "--objective", "dpo",
                    "--device", "cpu", "--learning_rate", 4e-3, "--lora_alpha", 8, "--log_interval", 1,
                    VALID_DATA=str(valid))  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    (evaluated,) = (line for line in lines if "eval/loss" in line)
    assert evaluated["eval/rewards/accuracies"] == 1 and evaluated["eval/loss"] < 0.3
    merged, before = (load_pretrained(name, device="cpu") for name in (out / "merged", "cogvlm-tiny"))
    asked = [(str(ROOT / "examples" / f"{n}.png"), f"Is there a {COLOURS[n % 6]} shape?") for n in range(1, 11)]
    answers, former = (
        [vlm.generate(image, question, version="vqa", max_new_tokens=4).text for image, question in asked]
        for vlm in (merged, before)
    )
    said, before_said = ([text.split()[0] for text in each] for each in (answers, former))
    assert said.count("yes") >= 9 and before_said.count("yes") <= 6, (answers, former)
