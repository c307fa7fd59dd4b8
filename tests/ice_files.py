"""icetk's files in a tiny form, with random weights in the released layout."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from torch import Tensor

TEXTS = (
    "a red circle",
    "a blue square moves to the right",
    "一个红色的圆",
    "视频",
    "高清摄影 隔绝",
    "2.0秒 4.0秒 1.0秒 0.5秒",
)
WIDTH, GROUPS = 24, 32
"""Numbers of a code; channels of the first level (a norm has 32 groups)."""
MULTIPLES = {"enc": (1, 2, 4), "decs.0": (1, 1, 1, 2, 4), "decs.1": (1, 1, 2, 4), "decs.2": (1, 2, 4)}


class Weights(dict[str, Tensor]):
    """Random weights by name."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def conv(self, name: str, inside: int, out: int, kernel: int = 3) -> None:
        scale = (inside * kernel**2) ** -0.5
        self[f"{name}.weight"] = torch.randn(out, inside, kernel, kernel, generator=self._generator) * scale
        self[f"{name}.bias"] = torch.randn(out, generator=self._generator) * 0.1

    def norm(self, name: str, channels: int) -> None:
        self[f"{name}.weight"] = 1 + torch.randn(channels, generator=self._generator) * 0.1
        self[f"{name}.bias"] = torch.randn(channels, generator=self._generator) * 0.1

    def block(self, name: str, inside: int, out: int) -> None:
        self.norm(f"{name}.norm1", inside)
        self.conv(f"{name}.conv1", inside, out)
        self.norm(f"{name}.norm2", out)
        self.conv(f"{name}.conv2", out, out)
        if inside != out:
            self.conv(f"{name}.nin_shortcut", inside, out, 1)

    def attention(self, name: str, channels: int) -> None:
        self.norm(f"{name}.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            self.conv(f"{name}.{part}", channels, channels, 1)

    def middle(self, name: str, channels: int) -> None:
        self.block(f"{name}.mid.block_1", channels, channels)
        self.attention(f"{name}.mid.attn_1", channels)
        self.block(f"{name}.mid.block_2", channels, channels)

    def encoder(self, channels: list[int], out: int) -> None:
        self.conv("enc.conv_in", 3, GROUPS)
        for level, (before, here) in enumerate(itertools.pairwise((GROUPS, *channels))):
            self.block(f"enc.down.{level}.block.0", before, here)
            self.block(f"enc.down.{level}.block.1", here, here)
            if level < len(channels) - 1:
                self.conv(f"enc.down.{level}.downsample.conv", here, here)
        self.middle("enc", channels[-1])
        self.norm("enc.norm_out", channels[-1])
        self.conv("enc.conv_out", channels[-1], out)

    def decoder(self, name: str, channels: list[int]) -> None:
        self.conv(f"{name}.conv_in", WIDTH, channels[-1])
        self.middle(name, channels[-1])
        for level, here in reversed(list(enumerate(channels))):
            before = channels[min(level + 1, len(channels) - 1)]
            self.block(f"{name}.up.{level}.block.0", before, here)
            if name == "decs.0" and level == len(channels) - 1:  # 16 places on a side of the images it was trained with
                self.attention(f"{name}.up.{level}.attn.0", here)
            if level:
                self.conv(f"{name}.up.{level}.upsample.conv", here, here)
        self.norm(f"{name}.norm_out", channels[0])
        self.conv(f"{name}.conv_out", channels[0], 3)


def ice_weights(codes: int, seed: int = 0) -> Weights:
    """As `ice_image.pt` holds them under "module"."""
    weights = Weights(seed)
    for name, multiples in MULTIPLES.items():
        channels = [GROUPS * multiple for multiple in multiples]
        weights.encoder(channels, WIDTH) if name == "enc" else weights.decoder(name, channels)
    for number in range(2):
        weights.conv(f"down_samplers.{number}.conv_down_sampler.conv", WIDTH, WIDTH)
    weights.conv("quantize.proj", WIDTH, WIDTH, 1)
    weights["quantize.embed.weight"] = torch.randn(codes, WIDTH, generator=torch.Generator().manual_seed(seed))
    weights["quantize.cluster_size"] = torch.ones(codes)
    weights["quantize.embed_avg"] = weights["quantize.embed.weight"].clone()
    return weights


def write_ice_files(folder: Path, codes: int, *, clusters: int = 50) -> int:
    """All files of icetk and the clusters of both originals; how many pieces the text file has."""
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20), model_prefix=str(folder / "ice_text"), vocab_size=70, bos_id=-1, eos_id=-1,
        character_coverage=1.0, user_defined_symbols=["<n>"], hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "ice_text.vocab").unlink()
    torch.save({"module": dict(ice_weights(codes))}, folder / "ice_image.pt")
    labels = np.random.default_rng(0).integers(0, clusters, codes)
    for name in ("cluster_label.npy", "cluster_label2.npy"):
        np.save(folder / name, labels)
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "ice_text.model")).get_piece_size()
