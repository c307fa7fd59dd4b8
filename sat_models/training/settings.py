"""Settings of a fine-tuning run: what there is to choose, and what contradicts itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sat_models.errors import ConfigError
from sat_models.models.families import version_help
from sat_models.training.grounding.asking import SHARES

SCHEDULES = ("cosine", "linear", "constant")
OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
OBJECTIVES = ("sft", "dpo")
USUAL = " ".join(f"{task}={share:g}" for task, share in SHARES.items())
SCORES = ("loss", "exact_match", "vqa_accuracy", "box_accuracy", "rewards/accuracies")
"""The scores that the best checkpoint may be chosen by; of the loss less is better, of the others more."""


def _setting(default: Any, text: str, kind: Any = str, **flag: Any) -> Any:
    """A field with what its flag needs. `many=True` takes several values; `choices` as in argparse; `task` is that of
    the models for which alone it means something."""
    return field(default=default, metadata={"help": text, "kind": kind, **flag})


_TALK, _DRAW = {"task": "dialogue"}, {"task": "drawing"}


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """One run. Counts of steps are optimiser steps; lengths are tokens; rates are per step."""

    from_pretrained: str = _setting("", "model to start from: a name of the zoo, a folder, a file")
    sat_home: str | None = _setting(None, "folder in which names are looked up; default: SAT_HOME")
    local_tokenizer: str | None = _setting(
        None, "tokenizer file or folder, where none lies beside the weights", **_TALK
    )
    version: str | None = _setting(None, version_help(), **_TALK)
    device: str = _setting("auto", "auto, cpu or cuda")
    mp: int = _setting(1, "processes that share one model", int)
    quant: int | None = _setting(None, "QLoRA: keep the weights that do not train in 4 or 8 bits", int, choices=(4, 8))
    precision: str = _setting("auto", "auto: bf16 on a GPU that has it, else fp16; fp32 on a CPU", choices=PRECISIONS)

    train_data: tuple[str, ...] = _setting((), "training data: files or folders, their form is seen", many=True)
    valid_data: tuple[str, ...] = _setting((), "validation data; default: valid/ beside, else a share", many=True)
    valid_share: float = _setting(0.05, "of the training data, where there is no validation data; 0: none", float)
    data_format: str | None = _setting(None, "force a data format", **_TALK)
    prompt: str | None = _setting(None, "question, where the data carry none (captchas, captions)", **_TALK)
    image_root: str | None = _setting(None, "folder that picture names are tried in first")
    box_tasks: Mapping[str, float] | None = _setting(
        None, f"TASK=SHARE of questions about boxes: {USUAL}", many=True, **_TALK
    )
    box_templates: str | None = _setting(None, "YAML with their wordings: docs/finetuning.md", **_TALK)
    image_size: tuple[int, ...] = _setting(
        (),
        "width and height that images are trained at; one number: a square; default: the model's usual size",
        int,
        many=True,
        **_DRAW,
    )
    aspect_buckets: bool = _setting(
        True, "sizes of as many pixels by each image's shape; off: --image_size alone", bool, **_DRAW
    )
    text_dropout: float = _setting(0.1, "share of samples that go without their text, for guidance", float, **_DRAW)
    latent_cache: str | None = _setting(
        None, "folder of latents and encoded texts; default: SAVE_PATH/latents", **_DRAW
    )
    quant_text: int | None = _setting(None, "the text encoder in 4 or 8 bits", int, choices=(4, 8), **_DRAW)
    on_bad_sample: str = _setting("error", "what a bad sample does", choices=("error", "skip"))
    max_length: int | None = _setting(None, "longest sample in tokens; default: the model's context", int, **_TALK)
    pack: bool = _setting(
        False, "samples about the same images share a row of up to --max_length tokens", bool, **_TALK
    )
    group_by_length: bool = _setting(True, "batches of samples of like length", bool, **_TALK)
    workers: int = _setting(2, "threads that load pictures ahead", int)

    trainable: str | None = _setting(
        None, "expert: the visual expert; attention: that of a painter's layers; all: everything; default: the first "
        "that the model has", choices=("expert", "attention", "all"),
    )  # fmt: skip
    lora_rank: int = _setting(10, "rank of LoRA; -1: no LoRA, train the weights themselves", int)
    lora_alpha: float | None = _setting(None, "the update is alpha / rank * B A; default 1, as the originals", float)
    lora_dropout: float = _setting(0.0, "on what goes into A", float)
    lora_targets: tuple[str, ...] = _setting((), "groups or patterns to adapt, instead of --trainable's", many=True)
    dora: bool = _setting(False, "DoRA: also learn the length of each row", bool)
    layer_range: tuple[int, ...] | None = _setting(None, "adapt these layers only", int, many=True)
    train_also: tuple[str, ...] = _setting((), "groups or patterns to train in full besides", many=True)
    pre_seq_len: int = _setting(0, "tokens of a p-tuning v2 prefix", int, **_TALK)
    rate_scales: Mapping[str, float] | None = _setting(None, "GROUP=FACTOR of the learning rate", many=True)

    objective: str = _setting(
        "sft", "sft: answers; dpo: pairs of answers, LoRA alone trains", choices=OBJECTIVES, **_TALK
    )
    dpo_beta: float = _setting(0.1, "of DPO: how dearly it pays for leaving the model as it was", float, **_TALK)
    dpo_label_smoothing: float = _setting(
        0.0, "of DPO: the share of pairs that are the wrong way round", float, **_TALK
    )
    train_iters: int = _setting(1000, "optimiser steps", int)
    batch_size: int = _setting(4, "samples per process and pass", int)
    accumulate: int = _setting(1, "passes per optimiser step", int)
    optimizer: str = _setting("adamw", "muon: for hidden matrices, AdamW for the rest; ZeRO 0", choices=OPTIMIZERS)
    learning_rate: float = _setting(1e-5, "highest rate", float)
    muon_rate: float = _setting(10.0, "Muon's learning rate, in multiples of --learning_rate", float)
    min_learning_rate: float = _setting(0.0, "rate at the end of the schedule", float)
    schedule: str = _setting("cosine", "after the warm-up", choices=SCHEDULES)
    warmup: float = _setting(0.02, "share of the steps with a rising rate", float)
    weight_decay: float = _setting(0.0, "of matrices", float)
    adam_betas: tuple[float, ...] = _setting((0.9, 0.95), "of AdamW", float, many=True)
    clip: float = _setting(1.0, "largest norm of the gradient; 0: no limit", float)
    seed: int = _setting(1234, "of the order of the data, new weights and dropout", int)
    on_nonfinite: str = _setting("stop", "what a loss that is no number does", choices=("stop", "skip"))

    zero: int | None = _setting(None, "ZeRO stage 0-3; default: what --deepspeed says, else 1", int)
    deepspeed: str | None = _setting(None, "DeepSpeed settings: a name of configs/deepspeed or a .json file")
    checkpoint_language: bool = _setting(True, "compute the transformer's layers again instead of keeping them", bool)
    checkpoint_vision: bool = _setting(True, "the same for vision towers, where they train", bool, **_TALK)

    save_path: str = _setting("", "folder for checkpoints, logs and the merged model")
    save_interval: int = _setting(200, "steps between checkpoints; the last step is always saved", int)
    keep_last: int = _setting(2, "checkpoints to keep besides the best", int)
    resume: str = _setting("auto", "auto: go on where SAVE_PATH stands; none: start anew in an empty folder")
    eval_interval: int = _setting(200, "steps between evaluations; 0: none", int)
    eval_samples: int = _setting(50, "validation samples that are answered in words; 0: the loss alone", int, **_TALK)
    eval_tokens: int = _setting(128, "longest answer there", int, **_TALK)
    sample_images: int = _setting(2, "images drawn at each evaluation; 0: none", int, **_DRAW)
    sample_prompts: tuple[str, ...] = _setting(
        (), "their prompts; default: the first of the validation data", many=True, **_DRAW
    )
    sample_steps: int | None = _setting(None, "of their sampler; default: the model's usual number", int, **_DRAW)
    best_by: str = _setting("loss", "what the best checkpoint is chosen by", choices=SCORES)
    patience: int = _setting(0, "evaluations without a better score before the run ends; 0: never", int)
    log_interval: int = _setting(10, "steps between lines of metrics.jsonl", int)
    tensorboard: bool = _setting(True, "write TensorBoard events to SAVE_PATH/tensorboard", bool)
    wandb: str | None = _setting(None, "project of Weights & Biases to report to")
    swanlab: str | None = _setting(None, "project of SwanLab to report to; SWANLAB_MODE=offline keeps it in SAVE_PATH")
    merge: bool = _setting(True, "write SAVE_PATH/merged at the end", bool)

    def __post_init__(self) -> None:
        for name in ("from_pretrained", "save_path"):
            if not getattr(self, name):
                raise ConfigError(f"--{name} is missing: {_help(name)}")
        if not self.train_data:
            raise ConfigError(f"--train_data is missing: {_help('train_data')}")
        at_least = {"mp": 1, "train_iters": 1, "batch_size": 1, "accumulate": 1, "save_interval": 1, "keep_last": 1,
                    "log_interval": 1, "eval_interval": 0, "eval_samples": 0, "eval_tokens": 1, "patience": 0,
                    "pre_seq_len": 0, "workers": 0, "clip": 0, "weight_decay": 0, "min_learning_rate": 0,
                    "sample_images": 0}  # fmt: skip
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} is {getattr(self, name)}; it must be at least {least}")
        self._check_ranges()
        if not self.learning_rate > 0 or self.min_learning_rate > self.learning_rate:
            raise ConfigError(
                f"--learning_rate is {self.learning_rate}, --min_learning_rate {self.min_learning_rate}: the first "
                "must be above 0 and not below the second"
            )
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"--warmup is {self.warmup}; it is a share of the steps: at least 0, below 1")
        if len(self.adam_betas) != 2 or not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ConfigError(f"--adam_betas is {self.adam_betas}; it takes two numbers in [0, 1)")
        if self.zero is not None and self.zero not in range(4):
            raise ConfigError(f"--zero is {self.zero}; the stages of ZeRO are 0, 1, 2 and 3")
        self._refuse_contradictions()

    def _check_ranges(self) -> None:
        for name, given in setting_fields().items():
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else [values]:
                if isinstance(value, float) and given.metadata["kind"] is float and not math.isfinite(value):
                    raise ConfigError(f"--{name} is {value}; it must be a finite number")
        if self.lora_rank != -1 and self.lora_rank < 1:
            raise ConfigError(f"--lora_rank is {self.lora_rank}; it must be at least 1, or -1 for no LoRA")
        if self.lora_alpha is not None and not self.lora_alpha > 0:
            raise ConfigError(f"--lora_alpha is {self.lora_alpha}; it must be above 0")
        if not self.muon_rate > 0:
            raise ConfigError(f"--muon_rate is {self.muon_rate}; it must be above 0")
        for name in ("lora_dropout", "valid_share", "text_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"--{name} is {getattr(self, name)}; it is a share: at least 0, below 1")
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError(
                f"--max_length is {self.max_length}; it must be at least 1 (leave it out for the context)"
            )
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed is {self.seed}; it must be at least 0 and below 2**63")

    def _refuse_contradictions(self) -> None:
        if self.lora_rank == -1:
            lora_only = {"lora_alpha": None, "lora_dropout": 0.0, "lora_targets": (), "dora": False,
                         "layer_range": None}  # fmt: skip
            given = [f"--{name}" for name, unset in lora_only.items() if getattr(self, name) != unset]
            if given:
                raise ConfigError(f"{', '.join(given)} belong to LoRA, which rank -1 switches off; drop one of the two")
        if self.pre_seq_len and self.lora_rank == -1 and self.trainable == "all":
            raise ConfigError("--pre_seq_len is for a model that stays as it is: give --lora_rank, or train the expert")
        if self.quant and self.lora_rank == -1:
            raise ConfigError("--quant keeps weights in a few bits, which cannot train themselves: give --lora_rank")
        if self.objective == "dpo":
            self._check_dpo()
        elif self.best_by == "rewards/accuracies" or (self.dpo_beta, self.dpo_label_smoothing) != (0.1, 0.0):
            raise ConfigError("--dpo_beta, --dpo_label_smoothing and rewards/accuracies belong to --objective dpo")
        if self.pack and self.pre_seq_len:
            raise ConfigError("--pack has attention of its own, in which --pre_seq_len is not: drop one of the two")
        if self.patience and not self.eval_interval:
            raise ConfigError("--patience counts evaluations, but --eval_interval 0 has none")
        if self.best_by != "loss" and not self.eval_samples:
            raise ConfigError(f"--best_by {self.best_by} needs answers, but --eval_samples is 0")

    def _check_dpo(self) -> None:
        if self.lora_rank == -1 or self.train_also or self.pre_seq_len:
            raise ConfigError(
                "--objective dpo compares the model with what it was, which is the model without its LoRA: LoRA alone "
                "may train. Give --lora_rank, and no --train_also and no --pre_seq_len"
            )
        if self.pack:
            raise ConfigError("--objective dpo trains pairs, which are rows of their own: leave --pack out")
        if not self.dpo_beta > 0 or not 0 <= self.dpo_label_smoothing < 0.5:
            raise ConfigError(
                f"--dpo_beta is {self.dpo_beta}, --dpo_label_smoothing {self.dpo_label_smoothing}: the first must be "
                "above 0, the second at least 0 and below 0.5"
            )

    def with_trainable(self, trainable: str) -> FinetuneSettings:
        """The same with this choice of what trains."""
        return dataclasses.replace(self, trainable=trainable)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        plain = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


def setting_fields() -> dict[str, dataclasses.Field]:
    """Every setting by name, with what its flag needs in `metadata`."""
    return {f.name: f for f in dataclasses.fields(FinetuneSettings)}


def _help(name: str) -> str:
    return setting_fields()[name].metadata["help"]
