"""icetk's images: between pixels and the codes that CogView2 and CogVideo write.

`ice_image.pt` is a vector-quantised autoencoder with three decoders over one codebook, for codes of 16, 8 and 4 pixels
on a side. Its sizes are read from its weights, by their names.

Source: github.com/THUDM/icetk at 34f2677, `icetk/vqvae/`; the blocks are those of arXiv 2012.09841.
Legend: B images, C channels, h and w in codes, H and W in pixels, K codes, E width of a code.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from sat_models.errors import CheckpointError, InputError

_MEAN, _DEVIATION = (0.79093, 0.76271, 0.75340), (0.30379, 0.32279, 0.32800)
_GROUPS, _EPSILON = 32, 1e-6
DECODERS = {16: "decs.0", 8: "decs.1", 4: "decs.2"}
"""By the pixels on a side of a code."""
_NEEDED = (
    "enc.conv_in.weight",
    "quantize.proj.weight",
    "quantize.embed.weight",
    "down_samplers.0.conv_down_sampler.conv.weight",
)


class IceImage:
    """`ice_image.pt`.

    Args:
        weights: by the names of the file.
        device, dtype: to compute in.

    Raises:
        CheckpointError: weights of something else.
    """

    def __init__(self, weights: Mapping[str, Tensor], *, device: torch.device, dtype: torch.dtype) -> None:
        needed = [*_NEEDED, *(f"{decoder}.conv_in.weight" for decoder in DECODERS.values())]
        if missing := [name for name in needed if name not in weights]:
            raise CheckpointError(f"no weights of icetk's ice_image.pt: {', '.join(missing[:3])} is missing")
        self._weights = {name: value.to(device, dtype) for name, value in weights.items()}
        self._codebook = self._weights["quantize.embed.weight"]

    @property
    def codes(self) -> int:
        """K."""
        return len(self._codebook)

    @torch.inference_mode()
    def encode(self, pixels: Tensor, side: int = 8) -> Tensor:
        """[B, 3, H, W] in 0 … 1 -> codes [B, h, w].

        Args:
            side: pixels on a side of a code: 4, 8 or 16.

        Raises:
            InputError: H or W that `side` does not divide, or another `side`.
        """
        _decoder(side)
        if pixels.shape[-2] % side or pixels.shape[-1] % side:
            raise InputError(f"an image of {pixels.shape[-1]}x{pixels.shape[-2]} cannot be cut into {side}x{side}")
        mean, deviation = self._statistics()
        x = self._convolved((pixels.to(mean) - mean) / deviation, "enc.conv_in")
        levels = self._count("enc.down")
        for level in range(levels):
            name = f"enc.down.{level}"
            x = self._blocks(x, name)
            if level < levels - 1:
                x = self._halved(x, f"{name}.downsample.conv")
        x = self._ended(self._middle(x, "enc"), "enc")
        for number in range((side // 4).bit_length() - 1):
            pooled = F.avg_pool2d(x, 2)
            x = pooled + self._halved(x, f"down_samplers.{number}.conv_down_sampler.conv")
        x, codebook = self._convolved(x, "quantize.proj").movedim(1, -1).float(), self._codebook.float()
        scores = x @ codebook.T * 2 - codebook.square().sum(1)  # the largest is the nearest
        return scores.argmax(-1)

    @torch.inference_mode()
    def decode(self, codes: Tensor, side: int = 8) -> Tensor:
        """Codes [B, h, w] -> [B, 3, H, W], 0 … 1 and a little beyond, fp32 on the CPU; one image at a time.

        Raises:
            InputError: codes that the codebook does not have, or another `side`.
        """
        name = _decoder(side)
        if int(codes.min()) < 0 or int(codes.max()) >= self.codes:
            raise InputError(f"codes from {int(codes.min())} to {int(codes.max())}; this file has {self.codes}")
        return torch.cat([self._decoded(row, name) for row in codes.to(self._codebook.device).split(1)]).clone()

    def _decoded(self, codes: Tensor, name: str) -> Tensor:
        x = self._convolved(F.embedding(codes, self._codebook).movedim(-1, 1), f"{name}.conv_in")
        x = self._middle(x, name)
        for level in reversed(range(self._count(f"{name}.up"))):
            x = self._blocks(x, f"{name}.up.{level}")
            if level:
                x = self._convolved(F.interpolate(x, scale_factor=2.0), f"{name}.up.{level}.upsample.conv")
        mean, deviation = self._statistics()
        return (self._ended(x, name) * deviation + mean).float().cpu()

    def _statistics(self) -> tuple[Tensor, Tensor]:
        return tuple(self._codebook.new_tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _DEVIATION))

    def _count(self, name: str) -> int:
        """Of the numbered parts of a name."""
        begin = f"{name}."
        return len({key[len(begin) :].partition(".")[0] for key in self._weights if key.startswith(begin)})

    def _middle(self, x: Tensor, name: str) -> Tensor:
        x = self._block(x, f"{name}.mid.block_1")
        return self._block(self._attended(x, f"{name}.mid.attn_1"), f"{name}.mid.block_2")

    def _blocks(self, x: Tensor, name: str) -> Tensor:
        """The blocks of a level, each with attention behind it where the level has some."""
        for number in range(self._count(f"{name}.block")):
            x = self._block(x, f"{name}.block.{number}")
            if f"{name}.attn.{number}.norm.weight" in self._weights:
                x = self._attended(x, f"{name}.attn.{number}")
        return x

    def _block(self, x: Tensor, name: str) -> Tensor:
        inner = self._convolved(F.silu(self._normed(x, f"{name}.norm1")), f"{name}.conv1")
        inner = self._convolved(F.silu(self._normed(inner, f"{name}.norm2")), f"{name}.conv2")
        if f"{name}.nin_shortcut.weight" in self._weights:
            x = self._convolved(x, f"{name}.nin_shortcut")
        return x + inner

    def _attended(self, x: Tensor, name: str) -> Tensor:
        """Every place looks at all others, with one head."""
        normed = self._normed(x, f"{name}.norm")
        q, k, v = (self._convolved(normed, f"{name}.{part}").flatten(2).transpose(1, 2) for part in "qkv")
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self._convolved(seen, f"{name}.proj_out")

    def _ended(self, x: Tensor, name: str) -> Tensor:
        return self._convolved(F.silu(self._normed(x, f"{name}.norm_out")), f"{name}.conv_out")

    def _halved(self, x: Tensor, name: str) -> Tensor:
        """A convolution with steps of two, zeros on the right and below."""
        return F.conv2d(
            F.pad(x, (0, 1, 0, 1)), self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], stride=2
        )

    def _convolved(self, x: Tensor, name: str) -> Tensor:
        """A convolution that leaves the size as it is."""
        kernel = self._weights[f"{name}.weight"]
        return F.conv2d(x, kernel, self._weights[f"{name}.bias"], padding=kernel.shape[-1] // 2)

    def _normed(self, x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, _GROUPS, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], _EPSILON)


def _decoder(side: int) -> str:
    if side not in DECODERS:
        raise InputError(f"a code is {side!r} pixels on a side; allowed: {', '.join(map(str, sorted(DECODERS)))}")
    return DECODERS[side]
