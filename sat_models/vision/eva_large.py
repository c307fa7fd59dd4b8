"""The EVA2-CLIP-L tower of CogAgent's high-resolution branch (`mixins.encoder.vit` in its checkpoints).

Released sizes: 24 blocks, width 1024, 16 heads of 64, 1120 px -> 6400 patches (EVA-CLIP, arXiv 2303.15389; CogAgent,
arXiv 2312.08914 section 3.2). Behaviour after the CogVLM repository at f7283b2: pre-norm blocks, SwiGLU, a LayerNorm
inside both sub-layers, 2-D rotary positions on the patches (not on the class token) besides the learned ones. The last
block, the final norm and the head are in the checkpoint and are never run: features come from the block before.
It is replicated on every model-parallel rank, as in the released checkpoints.

Legend: N images, T = 1 + P tokens, P patches, V width, A heads, H head width, I inner width of the MLP.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sat_models.config import CrossTowerConfig

_NORM_EPS = 1e-6

Rows = tuple[Tensor, Tensor]
"""cos and sin, each [T, H]."""


class PatchRotary(nn.Module):
    """2-D rotary table: the first half of a head turns with a patch's row, the second half with its column.

    Neighbouring values are pairs. Coordinates are stretched, so that the picture is `trained_side` patches wide
    whatever its resolution. The table is cast with the model, and its arithmetic is done in the model's dtype.

    Args:
        head_width: H, a multiple of 4.
        side: patches along one side of the picture.
        trained_side: the same at the resolution that CLIP was trained with (`pt_hw_seq_len`).
    """

    def __init__(self, head_width: int, side: int, trained_side: int, base: float = 10000.0) -> None:
        super().__init__()
        self.head_width, self.side, self.trained_side, self.base = head_width, side, trained_side, base
        self.register_buffer("freqs_cos", self.compute_freqs_cos())
        self.register_buffer("freqs_sin", self.compute_freqs_sin())

    def compute_freqs_cos(self, device: torch.device | str | None = None) -> Tensor:
        """[P, H] fp32."""
        return self._angles(device).cos()

    def compute_freqs_sin(self, device: torch.device | str | None = None) -> Tensor:
        """[P, H] fp32."""
        return self._angles(device).sin()

    def rows(self) -> Rows:
        """The table with a first row that leaves the class token as it is."""
        return F.pad(self.freqs_cos, (0, 0, 1, 0), value=1.0), F.pad(self.freqs_sin, (0, 0, 1, 0))

    def _angles(self, device: torch.device | str | None) -> Tensor:
        half, side = self.head_width // 2, self.side
        speed = 1.0 / self.base ** (torch.arange(0, half, 2, device=device).float() / half)
        place = torch.arange(side, device=device) / side * self.trained_side
        along = torch.outer(place, speed).repeat_interleave(2, dim=-1)
        row, column = along[:, None].expand(side, side, half), along[None].expand(side, side, half)
        return torch.cat((row, column), dim=-1).flatten(0, 1)


def rotate_pairs(x: Tensor, rows: Rows) -> Tensor:
    """Turn each pair of neighbours of x [N, A, T, H] by its angle."""
    cos, sin = rows
    quarter_turned = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return (x * cos + quarter_turned * sin).to(x.dtype)


class TowerAttention(nn.Module):
    """Every token sees every token; q and v have biases, k has none."""

    def __init__(self, config: CrossTowerConfig, rope: PatchRotary) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.inner_attn_ln = nn.LayerNorm(width, eps=_NORM_EPS)
        self.proj = nn.Linear(width, width)
        self.rope = rope  # one table for all blocks; checkpoints list it under each

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        """[N, T, V] -> [N, T, V]."""
        query = rotate_pairs(self._heads(F.linear(x, self.q_proj.weight, self.q_bias)), rows)
        key = rotate_pairs(self._heads(self.k_proj(x)), rows)
        value = self._heads(F.linear(x, self.v_proj.weight, self.v_bias))
        context = F.scaled_dot_product_attention(query, key, value)
        return self.proj(self.inner_attn_ln(context.transpose(1, 2).flatten(2)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class TowerMLP(nn.Module):
    """SwiGLU with a norm before its last projection."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, inner)
        self.w2 = nn.Linear(width, inner)
        self.ffn_ln = nn.LayerNorm(inner, eps=_NORM_EPS)
        self.w3 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, V] -> [N, T, V]."""
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))


class TowerBlock(nn.Module):
    """Pre-norm: `x + attn(norm1(x))`, `x + mlp(norm2(x))`."""

    def __init__(self, config: CrossTowerConfig, rope: PatchRotary) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=_NORM_EPS)
        self.attn = TowerAttention(config, rope)
        self.norm2 = nn.LayerNorm(config.width, eps=_NORM_EPS)
        self.mlp = TowerMLP(config.width, config.inner_width)

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        """[N, T, V] -> [N, T, V]."""
        x = x + self.attn(self.norm1(x), rows)
        return x + self.mlp(self.norm2(x))


class EVALargeTransformer(nn.Module):
    """The tower with its class token.

    Attributes:
        checkpoint_activations: in training, keep each block's input only and compute the rest again.
    """

    def __init__(self, config: CrossTowerConfig, image_size: int) -> None:
        super().__init__()
        side = image_size // config.patch_size
        self.checkpoint_activations = False
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(config.in_channels, config.width, config.patch_size, config.patch_size)}
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, config.width))
        self.rope = PatchRotary(config.head_width, side, config.pt_hw_seq_len)
        self.blocks = nn.ModuleList(TowerBlock(config, self.rope) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=_NORM_EPS)
        self.head = nn.Linear(config.width, config.embed_dim)
        for vector in (self.cls_token, self.pos_embed):
            nn.init.normal_(vector, std=0.02)

    @property
    def never_run(self) -> tuple[nn.Module, ...]:
        """Layers that the checkpoint holds and no forward reads."""
        return self.blocks[-1], self.norm, self.head

    def forward(self, image: Tensor) -> Tensor:
        """Pixels [N, 3, H, W] -> [N, T, V] after the last block but one."""
        patches = self.patch_embed["proj"](image).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(len(patches), -1, -1), patches), dim=1) + self.pos_embed
        rows = self.rope.rows()
        recompute = self.checkpoint_activations and torch.is_grad_enabled()
        for block in list(self.blocks)[:-1]:
            x = checkpoint(block, x, rows, use_reentrant=False) if recompute else block(x, rows)
        return x


class EVALargeEncoder(nn.Module):
    """Pixels [N, 3, H, W] -> features [N, P, V], class token dropped.

    Args:
        config: sizes of the tower.
        image_size: side of the square picture in pixels.
    """

    def __init__(self, config: CrossTowerConfig, image_size: int) -> None:
        super().__init__()
        self.image_size, self.in_channels = image_size, config.in_channels
        self.model = EVALargeTransformer(config, image_size)

    def forward(self, image: Tensor) -> Tensor:
        """Raises ValueError on another picture size."""
        if image.shape[1:] != (self.in_channels, self.image_size, self.image_size):
            raise ValueError(
                f"the high-resolution tower takes pictures [N, {self.in_channels}, {self.image_size}, "
                f"{self.image_size}], got {list(image.shape)}"
            )
        return self.model(image)[:, 1:]
