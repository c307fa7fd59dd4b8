"""The text encoder and the image codec that lie beside a painter's transformer.

Beside a SAT folder, its step folder, or a transformer folder of diffusers: in the folder itself or in the one that
holds it. Of T5 all painters of a machine may share one folder in SAT_HOME.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from sat_models.checkpoint.few_bits import load_in_few_bits
from sat_models.checkpoint.huggingface import read_shard_file, weight_files
from sat_models.checkpoint.pickles import load_file
from sat_models.config import LatentModelConfig, read_json
from sat_models.config.thin import FlowConfig
from sat_models.errors import CheckpointError
from sat_models.models.common.film_vae_keys import FILM_VAE, film_vae_config, film_vae_to_diffusers, is_film_vae
from sat_models.models.common.kl_keys import kl_config, kl_to_diffusers
from sat_models.processing.film_codec import FilmCodec
from sat_models.processing.glm_encoder import GLMTextEncoder
from sat_models.processing.image_codec import ImageCodec, KLCodec, require_diffusers
from sat_models.processing.text_encoder import T5_TOKENIZERS, T5TextEncoder, TextEncoder, require_transformers

VAE_FOLDER, ENCODER_FOLDER, TOKENIZER_FOLDER = "vae", "text_encoder", "tokenizer"


_READ_BY_T5 = ("*.wo",)
"""T5 looks at the dtype of these weights and casts to it, unless it is int8."""


def places_around(step: Path) -> Iterator[Path]:
    """Folders where other parts may lie, from a folder of weights outwards."""
    step = step.resolve()
    yield from (step, step.parent, step.parent.parent)


def _home() -> Path:
    return Path(os.environ.get("SAT_HOME") or "~/.sat_models").expanduser()


def find_text_encoder(step: Path, config: LatentModelConfig) -> tuple[Path, Path]:
    """The folder of the text encoder and the file of its tokenizer.

    Raises:
        CheckpointError: neither beside the weights nor in SAT_HOME; the message says what to fetch.
    """
    home = _home()
    own = config.TEXT_FOLDER
    folders = [place / name for place in places_around(step) for name in (ENCODER_FOLDER, own)] + [home / own]
    for folder in folders:
        if (folder / "config.json").is_file():
            files = [place / name for name in T5_TOKENIZERS for place in (folder, folder.parent / TOKENIZER_FOLDER)]
            if file := next((file for file in files if file.is_file()), None):
                return folder, file
            raise CheckpointError(f"{folder} has no tokenizer: put {T5_TOKENIZERS[0]} or {T5_TOKENIZERS[1]} there")
    words = T5_TOKENIZERS[1 if isinstance(config, FlowConfig) else 0]
    raise CheckpointError(
        f"the text encoder is missing: fetch https://huggingface.co/{config.text_model} "
        f"(config.json, weights, {words}) into {_places_named(step)}/{own} or {home / own}"
    )


def find_vae(step: Path, config: LatentModelConfig) -> Path:
    """The SAT file of the image autoencoder, or its folder in diffusers' form.

    Raises:
        CheckpointError: there is none; the message says what to fetch.
    """
    own, *shared = config.VAE_FOLDERS
    for place in places_around(step):
        folders = [place / name for name in config.VAE_FOLDERS]
        for found in (folder / config.VAE_FILE for folder in (*folders, place)):
            if found.is_file():
                return found
        if diffusers := next((folder for folder in folders if (folder / "config.json").is_file()), None):
            return diffusers
        if len(others := sorted((place / own).glob(f"*{Path(config.VAE_FILE).suffix}"))) == 1:
            return others[0]
    for found in (_home() / name / config.VAE_FILE for name in shared):
        if found.is_file():
            return found
    also = "".join(f" or {_home() / name}" for name in shared)
    raise CheckpointError(
        f"the image decoder is missing: put {config.VAE_FILE} of the release into {_places_named(step)}/{own}{also}, "
        "or the folder 'vae' of the release for diffusers"
    )


def _places_named(step: Path) -> Path:
    return step.resolve().parent


def check_parts(step: Path, config: LatentModelConfig) -> None:
    """See, before any work, that both parts are there and can be opened.

    Raises:
        CheckpointError: one is missing, with what to fetch.
        MissingPackageError: a package is, with what to install.
    """
    find_text_encoder(step, config)
    find_vae(step, config)
    require_transformers()
    require_diffusers()


def open_text_encoder(
    step: Path, config: LatentModelConfig, *, device: torch.device, dtype: torch.dtype, bits: int | None = None
) -> TextEncoder:
    """The text encoder beside the weights in `step`.

    Args:
        bits: 8 or 4 per weight of its linears; None leaves them in `dtype`.

    Raises:
        CheckpointError, MissingPackageError: as `find_text_encoder` and `T5TextEncoder.open`, or no bitsandbytes.
    """
    folder, tokenizer = find_text_encoder(step, config)
    width, length = config.text_hidden_size, config.text_length
    few = functools.partial(load_in_few_bits, folder=folder, bits=bits, in_8_bits=_READ_BY_T5, dtype=dtype)
    kind = GLMTextEncoder if isinstance(config, FlowConfig) else T5TextEncoder
    return kind.open(
        folder, tokenizer, length=length, width=width, device=device, dtype=dtype, load=few if bits else None
    )


def read_vae(place: Path, scale: float) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Config and weights of an image autoencoder in diffusers' form, whichever form it lies in.

    Args:
        place: as `find_vae` gives it.
        scale: of the latents, for a SAT file, which does not say it.

    Raises:
        CheckpointError: unreadable, or another autoencoder.
    """
    if place.is_dir():
        config = read_json(place / "config.json")
        return config, {k: v for file in weight_files(place)[0] for k, v in read_shard_file(file).items()}
    weights = read_vae_file(place)
    shapes = {name: value.shape for name, value in weights.items()}
    if is_film_vae(shapes):
        config = film_vae_config(shapes, scale)
        return config, film_vae_to_diffusers(weights, config)
    config = kl_config(shapes, scale)
    return config, kl_to_diffusers(weights, config)


def read_vae_file(place: Path) -> dict[str, Tensor]:
    """The weights of a SAT file of an autoencoder, by their names there. Raises CheckpointError."""
    content = read_shard_file(place) if place.suffix == ".safetensors" else load_file(place)
    weights = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{place} holds no weights under 'state_dict'")
    return weights


def open_codec(
    step: Path, config: LatentModelConfig, *, device: torch.device, dtype: torch.dtype
) -> ImageCodec | FilmCodec:
    """The autoencoder beside the weights in `step`; in fp32 where the model is in fp16, which it overflows.

    Raises:
        MissingPackageError: without diffusers.
        CheckpointError: as `find_vae`, or weights that do not fit each other.
    """
    diffusers, place = require_diffusers(), find_vae(step, config)
    sizes, weights = read_vae(place, config.latent_scale)
    codecs = {"AutoencoderKL": KLCodec, FILM_VAE: FilmCodec}
    if (name := sizes.get("_class_name", "AutoencoderKL")) not in codecs:
        raise CheckpointError(f"{place} holds a {name}, which is not read; those that are: {', '.join(codecs)}")
    model = getattr(diffusers, name).from_config(sizes)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {place} do not fit its sizes: {error!s:.300}") from error
    kind = torch.float32 if dtype == torch.float16 else dtype
    return codecs[name](model.to(device, kind).eval().requires_grad_(False), float(sizes["scaling_factor"]))
