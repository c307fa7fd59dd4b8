"""The way the originals run a CogVLM, on the weights of one of our models: what speed is compared with.

Generation is SAT's own (`filling_sequence`, `CachedAutoregressiveMixin`, `BaseStrategy`, its default attention).
Experts are chosen by boolean masks and rotary rows are looked up in every layer, as in the CogVLM repository (f7283b2);
logits are computed for every position. Only the rotation itself is ours, because the original's is a GPU kernel.

Legend: B batch, S tokens, D hidden.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mixins.rotary import choose_rotate
from mixins.sat_compat import HOOKS_DEFAULT, BaseMixin, BaseModel, split_tensor_along_last_dim, stock_generation
from sat_models.models.cogvlm.model import CogVLMModel
from sat_models.processing.inputs import VLMInputs

Expert = Callable[[Tensor], Tensor]


def by_boolean_mask(hidden: Tensor, mask: Tensor | None, language: Expert, vision: Expert) -> Tensor:
    """[B, S, D] -> [B, S, E]: gather each expert's tokens by a mask, run it, scatter; mask [B, S] or None."""
    if mask is None or not mask.any():
        return language(hidden)
    chosen = mask.bool()
    from_vision, from_language = vision(hidden[chosen]), language(hidden[~chosen])
    merged = hidden.new_empty(*hidden.shape[:2], from_vision.shape[-1])
    merged[chosen] = from_vision
    merged[~chosen] = from_language
    return merged


class _Borrowing(BaseMixin):
    """A mixin that uses the weights of one of ours without owning them."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "ours", ours)


class StockMLP(_Borrowing):
    """SwiGLU experts."""

    def mlp_forward(self, hidden_states: Tensor, *, vision_expert_mask: Tensor | None = None, **kw: Any) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        layer, ours = int(kw["layer_id"]), self.ours
        mlp = self.transformer.layers[layer].mlp

        def language(x: Tensor) -> Tensor:
            return mlp.dense_4h_to_h(mlp.activation_func(ours.gate_proj[layer](x)) * mlp.dense_h_to_4h(x))

        def vision(x: Tensor) -> Tensor:
            gate = mlp.activation_func(ours.vision_gate_proj[layer](x))
            return ours.vision_dense_4h_to_h_list[layer](gate * ours.vision_dense_h_to_4h_list[layer](x))

        return by_boolean_mask(hidden_states, vision_expert_mask, language, vision)


class StockAttention(_Borrowing):
    """Attention with projections by expert."""

    def attention_forward(
        self, hidden_states: Tensor, mask: Tensor, *, vision_expert_mask: Tensor | None = None, **kw: Any
    ) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        layer, ours = int(kw["layer_id"]), self.ours
        attention = self.transformer.layers[layer].attention
        mixed = by_boolean_mask(
            hidden_states, vision_expert_mask, attention.query_key_value, ours.vision_query_key_value_list[layer]
        )
        query, key, value = map(attention._transpose_for_scores, split_tensor_along_last_dim(mixed, attention.stride))
        rows = ours.rotary_emb.rows(kw["position_ids"], int(kw["position_ids"].max()))
        rotate = choose_rotate(query)
        query, key = rotate(query, rows), rotate(key, rows)
        attend = attention.hooks.get("attention_fn", HOOKS_DEFAULT["attention_fn"])
        context = attend(query, key, value, mask, None, **kw)
        context = context.permute(0, 2, 1, 3).contiguous().flatten(2)
        return by_boolean_mask(context, vision_expert_mask, attention.dense, ours.vision_dense_list[layer])


class StockHead(_Borrowing):
    """Logits of all positions."""

    def final_forward(self, logits: Tensor, **kw: Any) -> Tensor:
        """[B, S, D] -> [B, S, vocab]."""
        return self.ours.lm_head(logits)


class _NoPositions(BaseMixin):
    def position_embedding_forward(self, *args: Any, **kw: Any) -> None:
        """Nothing is added: positions enter through rotary."""


class _Image(_Borrowing):
    def word_embedding_forward(self, input_ids: Tensor, **kw: Any) -> Tensor:
        """As ours: [B, S] -> [B, S, D]."""
        return self.ours.word_embedding_forward(input_ids, **kw)


class StockModel(BaseModel):
    """A CogVLM as the originals wire it; transformer, tower and experts are those of `model`."""

    def __init__(self, model: CogVLMModel) -> None:
        super().__init__(model.config, transformer=model.transformer)
        self.add_mixin("eva", _Image(model.get_mixin("eva")))
        self.add_mixin("mlp", StockMLP(model.get_mixin("mlp")))
        self.add_mixin("rotary", StockAttention(model.get_mixin("rotary")))
        self.add_mixin("lm", StockHead(model.get_mixin("lm")))
        self.add_mixin("no positions", _NoPositions())

    def forward(
        self, input_ids: Tensor, vision_expert_mask: Tensor | None = None, image_embed_mask: Tensor | None = None,
        vision_image: Tensor | None = None, **kw: Any,
    ) -> list[Any]:  # fmt: skip
        """The picture and its masks are for forwards over more than one token."""
        if input_ids.shape[1] == 1:
            return super().forward(input_ids=input_ids, **kw)
        return super().forward(
            input_ids=input_ids, vision_expert_mask=vision_expert_mask, image_embed_mask=image_embed_mask,
            vision_image=vision_image, **kw,
        )  # fmt: skip


def stock_tokens(
    model: CogVLMModel, inputs: VLMInputs, count: int, now: Callable[[], float] = time.perf_counter
) -> tuple[list[int], list[float]]:
    """Greedy tokens the stock way.

    Args:
        model: ours; SAT's model around its weights lives for this call.
        inputs: one prompt on the model's device.
        count: tokens to generate.
        now: the clock.

    Returns:
        Token ids, and the time in seconds from the start to each of them.
    """
    stock, sat = StockModel(model), stock_generation()
    stock.add_mixin("auto-regressive", sat.CachedAutoregressiveMixin())
    times: list[float] = []

    class Timed(sat.BaseStrategy):
        def forward(self, *args: Any, **kw: Any) -> Any:
            result = super().forward(*args, **kw)
            times.append(now() - start)
            return result

    sequence = torch.cat((inputs.input_ids[0], inputs.input_ids.new_full((count,), -1)))

    def masks_and_positions(seq: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mask = torch.ones(1, 1, len(seq), len(seq), device=seq.device).tril_()
        further = inputs.position_ids[:, -1:] + torch.arange(1, count + 1, device=seq.device)
        return seq[None], mask, torch.cat((inputs.position_ids, further), dim=1)

    given = inputs.model_kwargs()
    images = {k: given[k] for k in ("vision_expert_mask", "image_embed_mask", "vision_image") if k in given}
    with torch.no_grad():
        start = now()
        # an end token that no vocabulary has: the strategy reads every token on the host, as in the demo
        strategy = Timed(temperature=1.0, top_k=1, end_tokens=[-5])
        output, _ = sat.filling_sequence(
            stock, sequence, batch_size=1, strategy=strategy, get_masks_and_position_ids=masks_and_positions, **images
        )
    return output[0, -count:].tolist(), times
