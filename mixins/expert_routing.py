"""The one place that splits tokens by modality and merges the experts' outputs.

A token belongs to the vision expert where a mask (CogVLM's: `vision_expert_mask`) is 1, else to the language expert.
One image per sample at the same place in every row, which is the normal case, is routed by slices: no gather, no
scatter. Anything else goes through one index list per expert. Either way the plan is made once per forward and serves
every layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixins.linear import project
from mixins.sat_compat import RowParallelLinear, mpu, reduce_from_model_parallel_region

Expert = Callable[[Tensor], Tensor]


def _unchanged(tokens: Tensor) -> Tensor:
    return tokens


def _can_be_summed_later(linear: nn.Module) -> bool:
    """True if the ranks' products may be added after others are put beside them; not those of a wrapped linear."""
    if mpu.get_model_parallel_world_size() == 1 or not isinstance(linear, RowParallelLinear):
        return False
    known = type(linear).forward is RowParallelLinear.forward or hasattr(linear, "product")
    return known and linear.input_is_parallel and linear.bias is None


def _partial(linear: nn.Module) -> Expert:
    """This rank's share of a row-parallel product; quantised linears have a method for it."""
    if hasattr(linear, "product"):
        return lambda tokens: linear.product(tokens, None)
    return lambda tokens: F.linear(tokens, linear.weight)


@dataclass(frozen=True)
class ExpertRouting:
    """Where the vision tokens are.

    Attributes:
        span: (start, stop) of the vision tokens when it is the same in every row.
        language_index, vision_index: flat indices into [B * S] when it is not.
        With neither, every token is language.
    """

    span: tuple[int, int] | None = None
    language_index: Tensor | None = None
    vision_index: Tensor | None = None

    @classmethod
    def from_mask(cls, vision_mask_BS: Tensor | None) -> ExpertRouting:
        """Plan the routing; reads the mask on the host once. None means language only (decode, text-only input).

        Args:
            vision_mask_BS: 1 where a token is vision; which mask that is (`vision_expert_mask`, or `image_embed_mask`
                where all that comes from an image counts) is the model's choice.
        """
        if vision_mask_BS is None:
            return cls()
        mask = vision_mask_BS.bool()
        host = mask.cpu()
        if not host.any():
            return cls()
        first_row = host[0]
        places = first_row.nonzero().flatten()
        if len(places) and (host == first_row).all() and len(places) == int(places[-1] - places[0]) + 1:
            return cls(span=(int(places[0]), int(places[-1]) + 1))
        flat = mask.flatten()
        return cls(language_index=(~flat).nonzero().flatten(), vision_index=flat.nonzero().flatten())

    @property
    def has_vision(self) -> bool:
        """True if any token goes to the vision expert."""
        return self.span is not None or self.vision_index is not None

    def apply(self, hidden_BSD: Tensor, language: Expert, vision: Expert) -> Tensor:
        """Run each expert on its tokens and put the results back in place: [B, S, D] -> [B, S, E]."""
        if not self.has_vision:
            return language(hidden_BSD)
        if self.span is not None:
            return self._apply_span(hidden_BSD, language, vision)
        batch, tokens, _ = hidden_BSD.shape
        flat = hidden_BSD.flatten(0, 1)
        vision_out = vision(flat[self.vision_index])
        merged = vision_out.new_empty(batch * tokens, vision_out.shape[-1])
        merged = merged.index_copy(0, self.vision_index, vision_out)
        if self.language_index.numel():
            merged = merged.index_copy(0, self.language_index, language(flat[self.language_index]))
        return merged.view(batch, tokens, -1)

    def add_to_vision(self, output_BSE: Tensor, hidden_BSD: Tensor, product: Expert) -> Tensor:
        """`output_BSE` with `product` of the vision tokens' hidden states added in their places; it is not changed."""
        if self.span is not None:
            start, stop = self.span
            image = output_BSE[:, start:stop] + product(hidden_BSD[:, start:stop])
            return torch.cat((output_BSE[:, :start], image, output_BSE[:, stop:]), dim=1)
        tokens = hidden_BSD.flatten(0, 1)[self.vision_index]
        return output_BSE.flatten(0, 1).index_add(0, self.vision_index, product(tokens)).view_as(output_BSE)

    def apply_row_parallel(
        self,
        hidden_BSD: Tensor,
        language: nn.Module,
        vision: nn.Module,
        inner_language: Expert = _unchanged,
        inner_vision: Expert = _unchanged,
    ) -> Tensor:
        """`apply` for experts that end in a row-parallel linear: one sum over the ranks for both, instead of one each.

        Args:
            language, vision: the linears.
            inner_language, inner_vision: what comes before them.
        """
        if not self.has_vision:
            return project(language, inner_language(hidden_BSD))
        shared = all(map(_can_be_summed_later, (language, vision)))
        last_language, last_vision = (_partial(e) if shared else partial(project, e) for e in (language, vision))
        output = self.apply(
            hidden_BSD,
            lambda tokens: last_language(inner_language(tokens)),
            lambda tokens: last_vision(inner_vision(tokens)),
        )
        return reduce_from_model_parallel_region(output) if shared else output

    def _apply_span(self, hidden_BSD: Tensor, language: Expert, vision: Expert) -> Tensor:
        start, stop = self.span
        before, image, after = hidden_BSD[:, :start], hidden_BSD[:, start:stop], hidden_BSD[:, stop:]
        image_out = vision(image)
        if before.shape[1] + after.shape[1] == 0:
            return image_out
        text_out = language(torch.cat((before, after), dim=1))
        return torch.cat((text_out[:, :start], image_out, text_out[:, start:]), dim=1)
