"""The front door: `load_pretrained` and `list_models`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mixins.base import ZooModel
from mixins.sat_compat import mpu
from sat_models import registry, runtime
from sat_models.checkpoint.hub import fetch
from sat_models.checkpoint.io import load_weights
from sat_models.checkpoint.layout import CONFIG_FILE, LATEST_FILE, SATCheckpoint, find_checkpoint, rank_file
from sat_models.config import LLaMAConfig, read_json
from sat_models.errors import CheckpointError, ConfigError, InputError
from sat_models.models.build import build_model, make_config
from sat_models.processing.processor import Images, Processor
from sat_models.processing.prompts import Turn, prompt_style
from sat_models.processing.tokens import DEFAULT_TOKENIZER, Tokenizer, find_tokenizer
from sat_models.registry import ModelSpec

if TYPE_CHECKING:
    from sat_models.generation.engine import Engine, GenerationResult, TokenStream

logger = logging.getLogger(__name__)

_RELEASED_VOCABULARY = 32000


class VLM:
    """A loaded model with what it takes to talk to it.

    Attributes:
        model: torch module, in evaluation mode and without gradients; this process's part of it.
        processor: picture and text -> `VLMInputs`.
        config: sizes.
        device, dtype: of the weights.
        checkpoint: the files it came from.
        tokenizer_file: its `tokenizer.model`; None without one.
    """

    def __init__(
        self,
        model: ZooModel,
        processor: Processor,
        config: LLaMAConfig,
        *,
        device: torch.device,
        dtype: torch.dtype,
        checkpoint: SATCheckpoint,
        tokenizer_file: Path | None = None,
    ) -> None:
        self.model, self.processor, self.config = model, processor, config
        self.device, self.dtype = device, dtype
        self.checkpoint, self.tokenizer_file = checkpoint, tokenizer_file

    def generate(
        self,
        image: Images,
        query: str,
        history: Sequence[Turn] = (),
        version: str | None = None,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        repetition_penalty: float = 1.0,
        max_length: int | None = None,
    ) -> GenerationResult:
        """Answer a question; in a run of several processes, call it on each with the same arguments.

        Args:
            image: path, URL, bytes, `PIL.Image`, a list of them, or None for text only.
            query: the question.
            history: earlier (question, answer) pairs, oldest first.
            version: prompt style; None takes `processor.version`.
            max_new_tokens: most tokens of the answer; None: as many as the context leaves.
            temperature: 0 is greedy.
            top_p, top_k, seed, repetition_penalty, max_length: see `SamplingOptions`.

        Returns:
            `.text`, `.token_ids` (of the answer, end token excluded), `.finish_reason` ("stop" or "length").

        Raises:
            InputError: no tokenizer, a bad picture, an empty question, a prompt that leaves no room, a bad option.
        """
        from sat_models.generation.engine import complete

        tokens = self._start(
            image, query, history, version, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
            top_k=top_k, seed=seed, repetition_penalty=repetition_penalty, max_length=max_length,
        )  # fmt: skip
        return complete(tokens, self.processor.tokenizer)

    def stream(
        self,
        image: Images,
        query: str,
        history: Sequence[Turn] = (),
        version: str | None = None,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        repetition_penalty: float = 1.0,
        max_length: int | None = None,
    ) -> Iterator[str]:
        """As `generate`, but gives pieces of text as they are decoded; bad arguments raise at the call."""
        tokens = self._start(
            image, query, history, version, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
            top_k=top_k, seed=seed, repetition_penalty=repetition_penalty, max_length=max_length,
        )  # fmt: skip
        return self._pieces(tokens)

    def engine(self) -> Engine:
        """The generator of token ids behind `generate`. Raises InputError without a tokenizer (it knows the end)."""
        from sat_models.generation.engine import Engine

        return Engine(
            self.model,
            eos_id=self.processor.tokenizer.eos_id,
            max_length=self.processor.max_length,
            device=self.device,
        )

    def _start(
        self, image: Images, query: str, history: Sequence[Turn], version: str | None, **options: object
    ) -> TokenStream:
        from sat_models.generation.sampling import SamplingOptions

        chosen = SamplingOptions(**options)
        inputs = self.processor(image, query, history=history, version=version)
        return self.engine().tokens(inputs, chosen)

    def _pieces(self, tokens: TokenStream) -> Iterator[str]:
        from sat_models.generation.engine import text_pieces

        try:
            yield from text_pieces(tokens, self.processor.tokenizer.stream())
        finally:
            tokens.close()


def list_models(*, available_only: bool = False) -> list[str]:
    """Names of the zoo. `python -m sat_models.zoo` prints them as a table; `registry.resolve(name)` tells more."""
    return [spec.name for spec in registry.specs() if spec.available or not available_only]


def sat_home() -> Path:
    """Where models lie that are named without a path: SAT_HOME, else `~/.sat_models`."""
    return Path(os.environ.get("SAT_HOME") or "~/.sat_models").expanduser()


def locate(name_or_path: str | os.PathLike[str]) -> Path:
    """Where the weights of a name or path lie, without reading them; raises as `load_pretrained`."""
    return _locate(name_or_path, None)[0]


def load_pretrained(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    local_tokenizer: str | os.PathLike[str] | None = None,
    quant: int | None = None,
    version: str | None = None,
) -> VLM:
    """Load a model. Under torchrun it is split over the processes, which all make this call.

    Args:
        name_or_path: a name of the zoo (looked up in SAT_HOME), a SAT folder, a step folder, a `.pt` file, a `.zip`, or
            a Hugging Face folder or id (which is looked up in SAT_HOME, then in the hub's cache, then on the hub).
        device: "auto" is this process's GPU where there is one, else the CPU.
        dtype: "auto" is fp32 on the CPU, bf16 on a GPU that has it, else fp16.
        local_tokenizer: sentencepiece file, its folder, or a Hugging Face repository; None looks beside the weights.
        quant: bits per weight; not supported yet.
        version: prompt style; None takes the checkpoint's, else the model's usual one, else "base".

    Raises:
        UnknownNameError: neither a path nor a name, with near matches.
        CheckpointError: absent, damaged or unfitting files.
        ConfigError: a bad config, device or dtype, or a number of processes that the model cannot be split over.
        InputError: an unusable `local_tokenizer`.

    A failure on one process is raised on all.
    """
    device = torch.device(runtime.choose_device(device))
    dtype = runtime.choose_dtype(dtype, device)
    if version is not None:
        prompt_style(version)
    runtime.init_distributed(device)
    size = _model_parallel_size()

    def prepare() -> tuple[SATCheckpoint, LLaMAConfig, ModelSpec | None]:
        path, spec = _locate(name_or_path, quant)
        checkpoint = find_checkpoint(path)
        config = make_config(checkpoint.config)
        config.check_model_parallel(size)
        return checkpoint, config, spec

    checkpoint, config, spec = runtime.in_step(prepare)
    runtime.init_model_parallel(size)
    processor, tokenizer_file = runtime.in_step(
        lambda: _make_processor(checkpoint, config, local_tokenizer, _choose_version(version, config, spec))
    )
    model = build_model(config, dtype=dtype)
    runtime.in_step(lambda: load_weights(model, checkpoint, device=device))
    model.eval().requires_grad_(False)
    logger.info("loaded %s: %s on %s, split over %d process(es)", checkpoint.step_folder, dtype, device, size)
    return VLM(
        model, processor, config, device=device, dtype=dtype, checkpoint=checkpoint, tokenizer_file=tokenizer_file
    )


def load_processor(
    name_or_path: str | os.PathLike[str],
    *,
    local_tokenizer: str | os.PathLike[str] | None = None,
    version: str | None = None,
) -> Processor:
    """The tokenizer and picture sizes of a model without its weights, to look at training data, say.

    The weights need not be there: a folder with `model_config.json` will do, and the sizes of a name of the zoo are
    known. Arguments and errors are those of `load_pretrained`.
    """
    checkpoint, spec = _without_weights(name_or_path)
    config = make_config(checkpoint.config)
    return _make_processor(checkpoint, config, local_tokenizer, _choose_version(version, config, spec))[0]


def _without_weights(name_or_path: str | os.PathLike[str]) -> tuple[SATCheckpoint, ModelSpec | None]:
    """A checkpoint whose config may be read; its weights may be absent."""
    given = Path(name_or_path).expanduser()
    if given.is_dir() and (given / CONFIG_FILE).is_file():
        file, spec = given / CONFIG_FILE, _spec_of_path(given)
    else:
        try:
            path, spec = _locate(name_or_path, None)
            return find_checkpoint(path), spec
        except CheckpointError:
            if given.exists():
                raise
            spec = _spec_of_name(os.fspath(name_or_path), given)
            file = registry.config_path(spec.name)
    return SATCheckpoint(file.parent, (file,), read_json(file)), spec


def _model_parallel_size() -> int:
    """All processes share the model, unless the run has been divided already."""
    if mpu.model_parallel_is_initialized():
        return mpu.get_model_parallel_world_size()
    return runtime.world_size()


def _locate(name_or_path: str | os.PathLike[str], quant: int | None) -> tuple[Path, ModelSpec | None]:
    """The path of the weights, and the model's spec if its name is known."""
    given = Path(name_or_path).expanduser()
    if given.exists() or (given.suffix == ".zip" and given.with_suffix("").is_dir()):
        path, spec = given, _spec_of_path(given)
    else:
        path, spec = None, _spec_of_name(os.fspath(name_or_path), given)
    _refuse_what_is_to_come(spec, quant)
    return path or _find_named(spec, os.fspath(name_or_path)), spec


def _spec_of_path(path: Path) -> ModelSpec | None:
    """By the folder's name: a path `…/cogvlm-chat/1` is most likely that model."""
    folder = path.resolve()
    names = (folder.name.removesuffix(".zip"), folder.parent.name, folder.parent.parent.name)
    return next((spec for spec in map(registry.find_spec, names) if spec), None)


def _spec_of_name(name: str, path: Path) -> ModelSpec:
    looks_like_path = (
        path.is_absolute() or name.startswith(".") or path.suffix in (".pt", ".zip") or name.count("/") > 1
    )
    if looks_like_path and registry.find_spec(name) is None:
        raise CheckpointError(
            f"{path} does not exist. Give a SAT folder ({CONFIG_FILE}, '{LATEST_FILE}', <step>/{rank_file(0)}), a step "
            f"folder, a .pt or .zip file, a Hugging Face folder, or a name: {', '.join(list_models())}."
        )
    return registry.resolve(name)


def _find_named(spec: ModelSpec, asked: str = "") -> Path:
    """In either form under SAT_HOME; for one `asked` for by a Hugging Face id, then in the hub's cache or the hub."""
    home = sat_home()
    for name in filter(None, (*spec.folder_names, spec.hf_name)):
        for place in (home / name, home / f"{name}.zip"):
            if place.exists():
                return place
    if spec.bundled:
        return registry.bundled_folder(spec.name)
    if not spec.available:
        raise _not_yet(spec)
    if "/" in asked and spec.hf_name:
        return fetch(f"{asked.partition('/')[0]}/{spec.hf_name}")
    wanted = home / spec.name
    raise CheckpointError(
        f"the weights of {spec.name} are not in {home} (SAT_HOME). Download {spec.name} from {spec.source}, and put "
        f"{spec.name}.zip into {home}, or unpack it to {wanted / CONFIG_FILE}, {wanted / LATEST_FILE} and "
        f"{wanted}/<step>/{rank_file(0)}. Licence: {spec.licence}."
    )


def _not_yet(spec: ModelSpec) -> ConfigError:
    ready = ", ".join(list_models(available_only=True))
    return ConfigError(f"{spec.name} is known, but the zoo cannot run it yet. Ready: {ready}.")


def _refuse_what_is_to_come(spec: ModelSpec | None, quant: int | None) -> None:
    """The one list of what `load_pretrained` does not do yet."""
    if quant is not None:
        raise ConfigError(f"quant={quant} is not supported yet; load without it (dtype bfloat16 halves the memory)")
    if spec is not None and not spec.available:
        raise _not_yet(spec)


def _choose_version(explicit: str | None, config: LLaMAConfig, spec: ModelSpec | None) -> str:
    """The user's choice, else the checkpoint's, else the model's usual one, else "base"."""
    stored = config.text_processor_version
    if explicit is not None:
        if stored is not None and stored != explicit:
            logger.warning(
                "version '%s' was asked for, but this checkpoint was trained with '%s' (text_processor_version in %s); "
                "answers may be poor", explicit, stored, CONFIG_FILE,
            )  # fmt: skip
        return explicit
    return stored or (spec.default_version if spec else "base")


def _make_processor(
    checkpoint: SATCheckpoint, config: LLaMAConfig, local_tokenizer: str | os.PathLike[str] | None, version: str
) -> tuple[Processor, Path | None]:
    file = _tokenizer_file(checkpoint, config, local_tokenizer)
    tokenizer = Tokenizer.from_file(file) if file else None
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(
            f"the tokenizer {file} has {tokenizer.vocab_size} pieces, but the model's vocabulary is "
            f"{config.vocab_size}: it belongs to another model. Name the right one with local_tokenizer "
            "(--local_tokenizer)."
        )
    processor = Processor(
        tokenizer,
        image_size=config.image_size,
        image_length=config.image_length,
        cross_image_size=getattr(config, "cross_image_pix", None),
        max_length=config.max_sequence_length,
        version=version,
    )
    return processor, file


def _tokenizer_file(
    checkpoint: SATCheckpoint, config: LLaMAConfig, local_tokenizer: str | os.PathLike[str] | None
) -> Path | None:
    """None where nothing is found: logits need no tokenizer, and asking for text names the flag."""
    released = "tokenizer_type" in checkpoint.config and config.vocab_size == _RELEASED_VOCABULARY
    try:
        return find_tokenizer(checkpoint.step_folder, local_tokenizer, default=DEFAULT_TOKENIZER if released else None)
    except InputError as error:
        if local_tokenizer:
            raise
        logger.warning("no tokenizer: %s", error)
        return None


def main() -> None:
    """Print the zoo: name, image size, prompt style, where the weights are, and what it is for."""
    rows = [("name", "image", "version", "weights", "what for")]
    for spec in registry.specs():
        size = f"{spec.image_size}" + (f"+{spec.cross_image_size}" if spec.cross_image_size else "")
        rows.append((spec.name, size, spec.default_version, _where(spec), spec.summary))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _where(spec: ModelSpec) -> str:
    if not spec.available:
        return "not yet"
    try:
        path = _find_named(spec)
    except CheckpointError:
        return "download"
    return "bundled" if path == registry.bundled_folder(spec.name) else str(path)


if __name__ == "__main__":
    main()
