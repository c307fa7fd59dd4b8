"""SAT's RMSNorm as one operator."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mixins.sat_compat import RMSNorm as SATRMSNorm


class RMSNorm(SATRMSNorm):
    """`(weight * x / rms(x))`, multiplied in fp32 and then cast, as SAT's: bit for bit in fp32, bf16 and fp16."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[…, D] -> […, D]."""
        return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)
