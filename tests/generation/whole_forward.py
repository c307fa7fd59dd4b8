"""What a model says of an answer in one forward over prompt and answer, without cache, session or kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sat_models.generation.answer import GenerationResult
from sat_models.processing.inputs import VLMInputs
from sat_models.zoo.vlm import VLM

CLOSE = {"atol": 1e-4, "rtol": 0}


def distributions(vlm: VLM, inputs: VLMInputs, ids: Sequence[int]) -> Tensor:
    """Log probabilities [tokens of the answer, vocabulary]."""
    given, more = inputs.model_kwargs(), torch.tensor([list(ids)], dtype=torch.long)
    positions = inputs.position_ids
    for _ in ids:
        positions = torch.cat((positions, vlm.model.next_positions(positions)), dim=-1)
    for name in ("vision_expert_mask", "image_embed_mask"):
        if given.get(name) is not None:
            given[name] = torch.cat((given[name], torch.zeros_like(more)), dim=1)
    given |= {"input_ids": torch.cat((inputs.input_ids, more), dim=1), "position_ids": positions}
    with torch.inference_mode():
        logits = vlm.model(**given)[0][0]
    return logits[inputs.length - 1 : -1].float().log_softmax(dim=-1)


def check(vlm: VLM, inputs: VLMInputs, result: GenerationResult, top: int = 0) -> None:
    """Hold an answer's scores against one forward."""
    assert result.token_ids, "an answer without tokens shows nothing"
    whole = distributions(vlm, inputs, result.token_ids)
    chosen = whole.gather(1, torch.tensor(result.token_ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(result.logprobs), chosen, **CLOSE)
    torch.testing.assert_close(torch.tensor(result.score), chosen.sum().exp(), **CLOSE)
    assert (result.top_logprobs is None) == (top == 0)
    for said, row in zip(result.top_logprobs or [], whole, strict=False):
        values, ids = row.topk(top)
        torch.testing.assert_close(torch.tensor([value for _, value in said]), values, **CLOSE)
        torch.testing.assert_close(row[[token for token, _ in said]], values, **CLOSE)
        assert len({token for token, _ in said}) == len(ids)
