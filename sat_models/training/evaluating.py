"""Evaluation while training: loss and perplexity on every validation sample, and answers in words to some of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mixins.base import ZooModel
from mixins.packed_attention import PACKED_NAME
from mixins.sat_compat import mpu
from sat_models import runtime
from sat_models.errors import InputError
from sat_models.evaluation.metrics import box_iou, exact_match, grounded_phrases, vqa_soft_accuracy
from sat_models.files import write_jsonl
from sat_models.generation.answer import GenerationResult, Request
from sat_models.generation.engine import Engine
from sat_models.generation.model import evaluation_mode
from sat_models.generation.sampling import SamplingOptions
from sat_models.training.batches import evaluation_batches
from sat_models.training.data import VLMDataset
from sat_models.training.losses import NextTokens, Objective
from sat_models.training.reading import SPLITS
from sat_models.training.samples import TrainingData
from sat_models.training.split import read_usable
from sat_models.zoo.vlm import VLM

logger = logging.getLogger(__name__)

BOX_IOU = 0.5
PREDICTIONS_FOLDER = "predictions"


@dataclass(frozen=True)
class Evaluator:
    """Validation data and how much of it is answered in words.

    Attributes:
        dataset: the same on all ranks.
        batch_size: samples per rank and pass.
        samples: how many are answered; spread over the dataset.
        max_new_tokens: longest answer.
        scores: say how sure the model was of each answer.
        objective: the loss.
    """

    dataset: VLMDataset
    batch_size: int
    samples: int
    max_new_tokens: int
    scores: bool = False
    objective: Objective = field(default_factory=NextTokens)

    def evaluate(
        self, model: ZooModel, *, device: torch.device, dtype: torch.dtype, in_step: bool = False
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Scores and predictions, the same on all ranks; all ranks call it.

        Args:
            in_step: every rank must run every forward pass (ZeRO-3): all answer everything.

        Returns:
            The scores of the objective (`loss` per target token and `perplexity`), and where samples are answered
            `exact_match`, `vqa_accuracy` and, for answers with boxes, `box_accuracy` (first box, IoU at least 0.5), all
            in 0-1; and one dict per answer.
        """
        with evaluation_mode(model), model.without_mixin(PACKED_NAME), torch.no_grad():
            options = {"batch_size": self.batch_size, "device": device, "dtype": dtype}
            scores = validation_scores(model, self.dataset, self.objective, **options)
            predictions = self._answers(model, device, in_step)
        return {**scores, **_means(predictions)}, predictions

    def keep(self, made: list[dict[str, Any]], folder: Path, step: int) -> None:
        """The answers as `predictions/<step>.jsonl`. Raises OSError."""
        (folder / PREDICTIONS_FOLDER).mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / PREDICTIONS_FOLDER / f"{step}.jsonl", made)

    def _answers(self, model: ZooModel, device: torch.device, in_step: bool) -> list[dict[str, Any]]:
        made = {index: self._prediction(index, answer) for index, answer in self.results(model, device, in_step)}
        merged = {index: answer for one in runtime.gather_objects(made) for index, answer in one.items()}
        return [merged[index] for index in sorted(merged)]

    def results(
        self, model: ZooModel, device: torch.device, in_step: bool = False
    ) -> Iterator[tuple[int, GenerationResult]]:
        """The answers of this rank, each with the number of its row; of rows that cannot be asked it says so."""
        count = min(self.samples, len(self.dataset))
        wanted = [number * len(self.dataset) // count for number in range(count)]
        ranks = 1 if in_step else mpu.get_data_parallel_world_size()
        own = wanted[(0 if in_step else mpu.get_data_parallel_rank()) :: ranks]
        processor, tokenizer = self.dataset.processor, self.dataset.processor.tokenizer
        engine = Engine(
            model, eos_id=tokenizer.eos_ids, max_length=processor.max_length, device=device, tokenizer=tokenizer
        )
        options = SamplingOptions(max_new_tokens=self.max_new_tokens)
        for index in own:
            if (answer := self._answer(engine, options, index)) is not None:
                yield index, answer

    def _answer(self, engine: Engine, options: SamplingOptions, index: int) -> GenerationResult | None:
        record, turns = self.dataset.dialogue(index)
        *history, (question, _) = turns
        try:
            request = Request.of(
                self.dataset.processor, list(record.images), question, history=history, version=self.dataset.version,
                options=options, allow_empty_query=True, system=self.dataset.system_of(record), logprobs=self.scores,
            )  # fmt: skip
            return engine.answer(request)
        except InputError as error:
            logger.warning("validation sample %s was not answered: %s", record.source, error)
            return None

    def _prediction(self, index: int, answer: GenerationResult) -> dict[str, Any]:
        record, turns = self.dataset.dialogue(index)
        question, expected = turns[-1]
        return {
            "source": record.source,
            "images": [str(image) for image in record.images],
            "question": question,
            "expected": expected,
            "answer": answer.text,
            "finish_reason": answer.finish_reason,
            **_score(answer.text, expected),
            **(_sureness(answer, expected) if self.scores else {}),
        }


def validation_scores(
    model: ZooModel,
    dataset: TrainingData,
    objective: Objective,
    *,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, float]:
    """The scores of an objective over all samples, the same on all ranks; all ranks call it."""
    names = objective.names
    sums = torch.zeros(2 + len(names), dtype=torch.float64, device=device)
    ranks = {"rank": mpu.get_data_parallel_rank(), "world": mpu.get_data_parallel_world_size()}
    for batch in evaluation_batches(dataset, batch_size=batch_size, **ranks):
        made = objective(model, batch.inputs.to(device, dtype))
        own = [made.count, float(made.total), *(made.sums[name] for name in names)]
        sums += torch.tensor(own, dtype=torch.float64, device=device)
    dist.all_reduce(sums, group=mpu.get_data_parallel_group())
    means = (sums[1:] / sums[0].clamp(min=1)).tolist()
    return objective.scores(dict(zip(("loss", *names), means, strict=True)))


def _score(answer: str, expected: str) -> dict[str, float]:
    scores = {
        "exact_match": float(exact_match(answer, expected)),
        "vqa_accuracy": vqa_soft_accuracy(answer, [expected]),
    }
    boxes = grounded_phrases(expected)
    if boxes:
        scores["box_accuracy"] = float(box_iou(answer, boxes[0][1]) >= BOX_IOU)
    return scores


def _sureness(answer: GenerationResult, expected: str) -> dict[str, Any]:
    """How sure the model was, and whether it was right: of the first box where one is expected, else of the text."""
    judged = _score(answer.text, expected)
    right = judged.get("box_accuracy", judged["exact_match"])
    task = "boxes" if "box_accuracy" in judged else "text"
    return {"task": task, "score": answer.score, "box_scores": answer.box_scores, "right": right}


def _means(predictions: list[dict[str, Any]]) -> dict[str, float]:
    names = ("exact_match", "vqa_accuracy", "box_accuracy")
    values = {name: [p[name] for p in predictions if name in p] for name in names}
    return {name: sum(each) / len(each) for name, each in values.items() if each}


def evaluate_data(
    vlm: VLM,
    paths: Sequence[str],
    *,
    version: str | None = None,
    batch_size: int = 4,
    samples: int = 200,
    max_new_tokens: int = 128,
    on_bad: str = "error",
    scores: bool = False,
    **reading: Any,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Scores of a loaded model on data in any of the training formats, as `Evaluator.evaluate` gives them.

    Args:
        samples: how many are answered in words; the loss is of all.
        scores: say of each answer how sure the model was.
        reading: `format`, `prompt`, `image_root`, `asking` of `formats.read_records`; of splits, "val" is read.
    """

    reading = {**reading, "split": SPLITS[1]}
    records = [record for path in paths for record in read_usable(Path(path), on_bad, reading)]
    dataset = VLMDataset(records, vlm.processor, version=version, on_bad=on_bad)
    evaluator = Evaluator(dataset, batch_size, samples, max_new_tokens, scores)
    return evaluator.evaluate(vlm.model, device=vlm.device, dtype=vlm.dtype)
