"""The cost of quantisation: memory, logits, and answers about the synthetic world, against full precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sat_models.evaluation.runner import batched_by_version
from sat_models.generation.sampling import SamplingOptions
from sat_models.shapes.drawing import draw
from sat_models.shapes.held_out import held_out_items
from sat_models.shapes.scoring import evaluate_shapes
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM


@dataclass(frozen=True)
class QuantisationRow:
    """One model of the report.

    Attributes:
        bits: of the linears; None for full precision.
        megabytes: of the weights in memory, 10^6 bytes.
        logit_error: mean over questions of |logits - full| / |full| at the last position.
        same_first_token: share of questions with the same likeliest first token.
        right: share of answers that are right, over all questions.
        right_by_task: the same for each task.
    """

    bits: int | None
    megabytes: float
    logit_error: float
    same_first_token: float
    right: float
    right_by_task: dict[str, float]


def quantisation_report(
    name_or_path: str,
    *,
    count: int,
    seed: int = 0,
    quant_skip: Sequence[str] = (),
    device: str = "auto",
    max_new_tokens: int = 96,
    logit_questions: int = 32,
    batch_size: int = 32,
) -> Iterator[QuantisationRow]:
    """Full precision, 8 bits, 4 bits.

    Args:
        name_or_path: a model that knows the synthetic world.
        count: pictures to ask about, seven questions each.
        seed: of the pictures.
        quant_skip: see `load_pretrained`.
        max_new_tokens: of an answer.
        batch_size: questions answered together.
        logit_questions: questions for the comparison of logits.

    Raises:
        ZooError: as `load_pretrained`.
    """
    full: Tensor | None = None
    for bits in (None, 8, 4):
        skip = quant_skip if bits else ()
        vlm = load_pretrained(name_or_path, device=device, quant=bits, quant_skip=skip)
        logits = last_logits(vlm, count=logit_questions, seed=seed)
        full = logits if full is None else full
        answer = batched_by_version(vlm, options=SamplingOptions(max_new_tokens=max_new_tokens), batch_size=batch_size)
        predictions = evaluate_shapes(answer, count=count, seed=seed)["predictions"]
        tasks = sorted({prediction["task"] for prediction in predictions})
        yield QuantisationRow(
            bits=bits,
            megabytes=sum(value.nbytes for value in [*vlm.model.parameters(), *vlm.model.buffers()]) / 1e6,
            logit_error=((logits - full).norm(dim=1) / full.norm(dim=1)).mean().item(),
            same_first_token=(logits.argmax(dim=1) == full.argmax(dim=1)).float().mean().item(),
            right=_right(predictions),
            right_by_task={task: _right([p for p in predictions if p["task"] == task]) for task in tasks},
        )


def _right(predictions: Sequence[dict]) -> float:
    return sum(prediction["scores"]["right"] for prediction in predictions) / len(predictions)


@torch.inference_mode()
def last_logits(vlm: VLM, *, count: int, seed: int) -> Tensor:
    """Logits [questions, vocabulary] of the first token of each answer, fp32 on the CPU."""
    rows = []
    for item in list(held_out_items(count=count, seed=seed, versions=["chat"]))[:count]:
        inputs = vlm.processor(draw(item.scene), item.qa.question, version=item.version).to(vlm.device, vlm.dtype)
        rows.append(vlm.model(**inputs.model_kwargs())[0][0, -1].float().cpu())
    return torch.stack(rows)
