"""icetk's files: words, images by diffusers' blocks with the same weights, and what is said where one is absent."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ice_files import GROUPS, MULTIPLES, WIDTH, ice_weights, write_ice_files

from sat_models.checkpoint.ice_files import find_ice_file, open_ice_image, open_ice_text, read_clusters
from sat_models.errors import CheckpointError, InputError
from sat_models.models.build import make_config
from sat_models.processing.ice_image import IceImage

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
CODES = 300


def config(pieces: int, **change: int):
    sizes = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "image_codes": CODES}
    return make_config({"model_class": "CogLMModel", **sizes, "vocab_size": CODES + pieces + 3, **change})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("ice")
    return folder, write_ice_files(folder / "icetk", CODES)


def in_diffusers_names(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The weights of an encoder or decoder, as diffusers calls them."""
    levels, found = len(MULTIPLES[name]), {}
    for key, value in weights.items():
        if key.startswith(f"{name}."):
            key = key.removeprefix(f"{name}.").replace("nin_shortcut", "conv_shortcut")
            key = re.sub(r"^up\.(\d)", lambda n: f"up_blocks.{levels - 1 - int(n[1])}", key)
            key = re.sub(r"^down\.", "down_blocks.", key)
            key = re.sub(r"\.block\.", ".resnets.", key).replace(".attn.", ".attentions.")
            key = re.sub(r"\.(down|up)sample\.conv", r".\1samplers.0.conv", key).replace("norm_out", "conv_norm_out")
            key = re.sub(r"mid\.block_(\d)", lambda n: f"mid_block.resnets.{int(n[1]) - 1}", key)
            key = key.replace("mid.attn_1", "mid_block.attentions.0")
            if "attentions" in key:
                for ours, theirs in (
                    ("norm", "group_norm"),
                    ("proj_out", "to_out.0"),
                    *((n, f"to_{n}") for n in "qkv"),
                ):
                    key = re.sub(rf"\.{ours}\.", f".{theirs}.", key)
                value = value.flatten(1) if value.ndim == 4 else value
            found[key] = value
    return found


def theirs(name: str, weights: dict[str, Tensor]) -> torch.nn.Module:
    from diffusers.models.autoencoders.vae import Decoder, Encoder

    channels = tuple(GROUPS * multiple for multiple in MULTIPLES[name])
    if name == "enc":
        model = Encoder(
            out_channels=WIDTH, down_block_types=("DownEncoderBlock2D",) * len(channels), block_out_channels=channels,
            layers_per_block=2, double_z=False,
        )  # fmt: skip
    else:
        first = "AttnUpDecoderBlock2D" if name == "decs.0" else "UpDecoderBlock2D"
        blocks = (first, *("UpDecoderBlock2D",) * (len(channels) - 1))
        model = Decoder(
            in_channels=WIDTH, up_block_types=blocks, block_out_channels=channels, layers_per_block=0
        )  # fmt: skip
        if name == "decs.0":
            # In the level, too, attention has one head, as in the middle.
            for block in model.up_blocks[0].attentions:
                block.heads = 1
    model.load_state_dict(in_diffusers_names(weights, name))
    return model.eval()


def normal(pixels: Tensor) -> Tensor:
    mean, deviation = torch.tensor([0.79093, 0.76271, 0.75340]), torch.tensor([0.30379, 0.32279, 0.32800])
    return (pixels - mean.view(1, 3, 1, 1)) / deviation.view(1, 3, 1, 1)


@pytest.mark.parametrize("side", [16, 8, 4])
def test_pixels_of_codes_are_those_of_diffusers_blocks(side: int) -> None:
    weights = ice_weights(CODES)
    codes = torch.randint(CODES, (2, 3, 4), generator=torch.Generator().manual_seed(1))
    pixels = IceImage(weights, **CPU).decode(codes, side)
    assert pixels.shape == (2, 3, 3 * side, 4 * side)
    name = {16: "decs.0", 8: "decs.1", 4: "decs.2"}[side]
    with torch.inference_mode():
        expected = theirs(name, weights)(weights["quantize.embed.weight"][codes].movedim(-1, 1))
    torch.testing.assert_close(normal(pixels), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("side", [16, 8, 4])
def test_codes_of_pixels_are_the_nearest_of_what_diffusers_blocks_give(side: int) -> None:
    weights = ice_weights(CODES)
    pixels = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(2))
    codes = IceImage(weights, **CPU).encode(pixels, side)
    assert codes.shape == (2, 48 // side, 64 // side)
    with torch.inference_mode():
        x = theirs("enc", weights)(normal(pixels))
        for number in range({4: 0, 8: 1, 16: 2}[side]):
            name = f"down_samplers.{number}.conv_down_sampler.conv"
            padded = torch.nn.functional.pad(x, (0, 1, 0, 1))
            means = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
            moved = torch.nn.functional.conv2d(padded, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=2)
            x = means + moved
        kernel, bias = weights["quantize.proj.weight"][:, :, 0, 0], weights["quantize.proj.bias"]
        vectors = torch.einsum("bchw,ec->bhwe", x, kernel) + bias
        distances = torch.cdist(vectors.flatten(0, 2), weights["quantize.embed.weight"])
    assert codes.flatten().equal(distances.argmin(1))


def test_words(home: tuple[Path, int]) -> None:
    folder, pieces = home
    words = open_ice_text(folder / "coglm" / "1", config(pieces))
    assert words.start_of_image == CODES + pieces
    ids = words.ids("a red circle 高清摄影")
    assert min(ids) >= CODES and max(ids) < CODES + pieces and words.text(ids) == "a red circle 高清摄影"
    assert words.text([3, *words.ids("视频"), words.start_of_image]) == "视频"
    typed = words.ids("a<n>b<start_of_image>")
    assert words.new_line not in typed and words.start_of_image not in typed


def test_files_lie_beside_the_weights_or_in_sat_home(
    home: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, pieces = home
    step = tmp_path / "coglm" / "432000"
    step.mkdir(parents=True)
    monkeypatch.setenv("SAT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, source in (("ice_image.pt", "ae2cd37af814429d875d"), ("cluster_label2.npy", "THUDM/CogVideo")):
        with pytest.raises(CheckpointError, match=rf"{name} is missing.*{source}.*coglm or .*home/icetk"):
            find_ice_file(step, name)
    monkeypatch.setenv("SAT_HOME", str(folder))
    assert find_ice_file(step, "ice_image.pt") == folder / "icetk" / "ice_image.pt"
    for place in (tmp_path / ".icetk_models", tmp_path, tmp_path / "coglm"):
        place.mkdir(exist_ok=True)
        (place / "cluster_label.npy").touch()
    assert find_ice_file(step, "cluster_label.npy") == tmp_path / "coglm" / "cluster_label.npy"
    assert open_ice_image(step, config(pieces), **CPU).codes == CODES
    assert read_clusters(folder / "coglm" / "1", "cluster_label2.npy", CODES).shape == (CODES,)


def test_files_of_something_else(home: tuple[Path, int], tmp_path: Path) -> None:
    folder, pieces = home
    step = tmp_path / "coglm" / "1"
    with pytest.raises(InputError, match=rf"has {pieces} pieces.*this model knows {pieces - 1}: it is another file"):
        open_ice_text(folder / "coglm" / "1", config(pieces, vocab_size=CODES + pieces + 2))
    with pytest.raises(CheckpointError, match="has 300 codes; this model writes 299"):
        open_ice_image(folder / "coglm" / "1", config(pieces, image_codes=CODES - 1), **CPU)
    (tmp_path / "icetk").mkdir()
    weights = {name: value for name, value in ice_weights(CODES).items() if not name.startswith("decs.2")}
    for content, said in (({"model": weights}, "no weights under 'module'"), ({"module": weights}, "decs.2.conv_in")):
        torch.save(content, tmp_path / "icetk" / "ice_image.pt")
        with pytest.raises(CheckpointError, match=said):
            open_ice_image(step, config(pieces), **CPU)
    for labels, said in (
        (np.zeros(5, int), r"int64 \[5\]"),
        (np.zeros(CODES), "float64"),
        (-np.ones(CODES, int), "one"),
    ):
        np.save(tmp_path / "icetk" / "cluster_label.npy", labels)
        with pytest.raises(CheckpointError, match=said):
            read_clusters(step, "cluster_label.npy", CODES)
    (tmp_path / "icetk" / "cluster_label.npy").write_text("no array")
    with pytest.raises(CheckpointError, match="is damaged"):
        read_clusters(step, "cluster_label.npy", CODES)
    image = IceImage(ice_weights(CODES), **CPU)
    with pytest.raises(InputError, match="codes from 0 to 300; this file has 300"):
        image.decode(torch.tensor([[[0, 300]]]))
    with pytest.raises(InputError, match="is 5 pixels on a side; allowed: 4, 8, 16"):
        image.decode(torch.zeros(1, 2, 2, dtype=torch.long), 5)
    with pytest.raises(InputError, match="an image of 20x16 cannot be cut into 8x8"):
        image.encode(torch.zeros(1, 3, 16, 20))
