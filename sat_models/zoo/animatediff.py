"""AnimateDiff (arXiv 2307.04725), as diffusers runs it: motion layers in Stable Diffusion's UNet, images for chosen
frames by SparseCtrl (arXiv 2311.16933), and LoRA of motions. There is nothing in it for a mixin.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from PIL import Image

from sat_models import runtime
from sat_models.config import read_json
from sat_models.errors import CheckpointError, ConfigError, InputError, MissingPackageError, refuse_unknown
from sat_models.processing.film import Film
from sat_models.processing.image import load_image
from sat_models.processing.image_codec import require_diffusers
from sat_models.processing.prompt_language import warn_of_language
from sat_models.sampling.film_options import FilmKeywords, FilmOptions, drawn_seed, given_frames
from sat_models.sampling.options import check_prompts, pair_of
from sat_models.sampling.schedule import TIMES
from sat_models.zoo.film_maker import FilmMaker, FilmState
from sat_models.zoo.locate import sat_home
from sat_models.zoo.open_painter import ForDrawing
from sat_models.zoo.part import Part

_INDEX, _CONFIG = "model_index.json", "config.json"
_PLAIN, _SPARSE, _ADAPTER = "AnimateDiffPipeline", "AnimateDiffSparseControlNetPipeline", "MotionAdapter"
_BASES, _CONTROLS = ("stable-diffusion-v1-5",), ("animatediff-sparsectrl-rgb", "sparsectrl", "controlnet")
_SOURCES = {
    _BASES[0]: "https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5 (or one fine-tuned from it)",
    _CONTROLS[0]: "https://huggingface.co/guoyww/animatediff-sparsectrl-rgb",
}
_FRAMES, _FPS, _STEPS, _GUIDANCE = 16, 8, 25, 7.5
_SCHEDULE = {"beta_schedule": "linear", "clip_sample": False, "timestep_spacing": "linspace", "steps_offset": 1}
"""That the motion layers were trained with; Stable Diffusion's own differs."""


class MotionKeywords(FilmKeywords, total=False):
    """The keyword arguments of AnimateDiff: those of all films, and one more.

    motion: files or folders of motion LoRA, all with weight 1; None (default): none.
    """

    motion: Sequence[str | Path] | None


@dataclass(frozen=True)
class MotionFolder:
    """Where the parts lie.

    Attributes:
        folder: a whole pipeline, or motion layers alone.
        whole: it is a pipeline.
    """

    folder: Path
    whole: bool

    @classmethod
    def at(cls, place: Path) -> MotionFolder | None:
        """None for a folder of something else."""
        if (place / _INDEX).is_file() and read_json(place / _INDEX).get("_class_name") in (_PLAIN, _SPARSE):
            return cls(place, True)
        if (place / _CONFIG).is_file() and read_json(place / _CONFIG).get("_class_name") == _ADAPTER:
            return cls(place, False)
        return None

    def base(self) -> Path:
        """Stable Diffusion. Raises CheckpointError with what to fetch."""
        return self.folder if self.whole else self._found(_BASES, _INDEX, "Stable Diffusion")

    def control(self) -> Path:
        """SparseCtrl. Raises CheckpointError with what to fetch."""
        return self._found(_CONTROLS, _CONFIG, "images for chosen frames need SparseCtrl, which")

    def sizes(self, part: str) -> dict[str, Any]:
        """The config of the UNet, the image decoder ("vae") or the motion layers ("motion_adapter")."""
        folder = self.base() / part if part != "motion_adapter" or self.whole else self.folder
        return read_json(folder / _CONFIG)

    def _found(self, names: Sequence[str], file: str, what: str) -> Path:
        places = [self.folder, self.folder.resolve().parent, sat_home()]
        for place in (place / name for place in places for name in names):
            if (place / file).is_file():
                return place
        raise CheckpointError(
            f"{what} is missing: fetch {_SOURCES[names[0]]} into {places[1] / names[0]} or {places[2] / names[0]}"
        )


class AnimateDiff(FilmMaker):
    """A pipeline of diffusers. A step is one of its sampler.

    Args:
        place: where its parts lie.
        device, dtype: to compute in.
        keep: "none": it goes from memory after each film.
    """

    def __init__(self, place: MotionFolder, *, device: torch.device, dtype: torch.dtype, keep: str = "model") -> None:
        require_diffusers()
        if runtime.world_size() > 1:
            raise ConfigError("AnimateDiff runs in one process: start the command without torchrun")
        self._place, self.device, self.dtype = place, device, dtype
        self._pipeline: Part[Any] = Part(self._open, keep=keep != "none")

    def film_steps(self, prompt: str, **options: Unpack[MotionKeywords]) -> Iterator[FilmState]:
        """See `FilmMaker`; up to as many frames as the motion layers know, images for any frames, and motion LoRA."""
        known = {**FilmKeywords.__annotations__, **MotionKeywords.__annotations__}
        refuse_unknown(options.keys() - known.keys(), self.film_steps, known)
        (text,) = check_prompts([prompt])
        warn_of_language(text, ("en",))
        images = given_frames(options.get("image"))
        chosen = self._chosen(options, tuple(images))
        motions = [_motion(Path(motion)) for motion in options.get("motion") or ()]
        control = self._place.control() if images else None
        loaded = {frame: load_image(image).resize(chosen.size) for frame, image in images.items()}
        return self._made(text, chosen, loaded, control, motions)

    def _chosen(self, options: MotionKeywords, images: tuple[int, ...]) -> FilmOptions:
        if options.get("sampler") is not None:
            raise ConfigError(f"sampler is {options['sampler']!r}; AnimateDiff has one: leave it out")
        value = {name: options.get(name) for name in ("frames", "fps", "steps", "guidance", "size")}
        most = int(self._place.sizes("motion_adapter").get("motion_max_seq_length", 32))
        side = int(self._place.sizes("unet")["sample_size"]) * 2 ** (
            len(self._place.sizes("vae")["block_out_channels"]) - 1
        )
        chosen = FilmOptions(
            frames=_FRAMES if value["frames"] is None else value["frames"],
            fps=_FPS if value["fps"] is None else value["fps"],
            size=(side, side) if value["size"] is None else pair_of(value["size"]),
            steps=_STEPS if value["steps"] is None else value["steps"],
            guidance=_GUIDANCE if value["guidance"] is None else value["guidance"],
            seed=drawn_seed(options.get("seed")),
            images=images,
        )
        if chosen.frames > most:
            raise InputError(f"frames is {chosen.frames}; these motion layers know 1 to {most}")
        if images and images[-1] >= chosen.frames:
            raise InputError(f"an image was given for frame {images[-1]}; the film has frames 0 to {chosen.frames - 1}")
        if chosen.guidance < 1:
            raise InputError(f"guidance is {chosen.guidance}; it must be at least 1 (the text alone)")
        if any(number % 8 or number < 8 for number in chosen.size):
            raise InputError(f"the size is {chosen.size[0]}x{chosen.size[1]}; both must be multiples of 8")
        if not isinstance(chosen.steps, int) or not 1 <= chosen.steps <= TIMES:
            raise ConfigError(f"steps is {chosen.steps!r}; it must be a whole number from 1 to {TIMES}")
        return chosen

    def _open(self) -> Any:
        """The pipeline, without SparseCtrl. Raises CheckpointError."""
        diffusers, how = require_diffusers(), {"torch_dtype": self.dtype, "local_files_only": True}
        base = self._place.base()
        try:
            if not self._place.whole:
                adapter = diffusers.MotionAdapter.from_pretrained(self._place.folder, **how)
                scheduler = diffusers.DDIMScheduler.from_pretrained(base, subfolder="scheduler", **_SCHEDULE)
                how |= {"motion_adapter": adapter, "scheduler": scheduler}
            opened = diffusers.AnimateDiffPipeline.from_pretrained(base, **how)
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{base} cannot be opened as AnimateDiff's: {error!s:.300}") from error
        opened.set_progress_bar_config(disable=True)
        return opened.to(self.device)

    def _run(
        self, prompt: str, chosen: FilmOptions, images: dict[int, Image.Image], control: Path | None,
        motions: list[Path], on_step: Any,
    ) -> Film:  # fmt: skip
        diffusers, pipeline, given = require_diffusers(), self._pipeline.get(), {}
        for number, motion in enumerate(motions):
            pipeline.load_lora_weights(str(motion), adapter_name=f"motion{number}")
        if motions:
            pipeline.set_adapters([f"motion{number}" for number in range(len(motions))])
        try:
            caller = pipeline
            if control is not None:
                model = diffusers.SparseControlNetModel.from_pretrained(
                    control, torch_dtype=self.dtype, local_files_only=True
                )
                caller = diffusers.AnimateDiffSparseControlNetPipeline(
                    **pipeline.components, controlnet=model.to(self.device)
                )
                caller.set_progress_bar_config(disable=True)
                given = {"conditioning_frames": [*images.values()], "controlnet_frame_indices": [*images]}
            width, height = chosen.size
            with torch.random.fork_rng():  # SparseCtrl draws from the generator of the process
                torch.manual_seed(chosen.seed)
                found = caller(
                    prompt, num_frames=chosen.frames, width=width, height=height, num_inference_steps=chosen.steps,
                    guidance_scale=chosen.guidance, generator=torch.Generator().manual_seed(chosen.seed),
                    callback_on_step_end=on_step, output_type="np", **given,
                ).frames[0]  # fmt: skip
        finally:
            if motions:
                pipeline.unload_lora_weights()
        return _film(found, chosen)

    def _made(
        self, prompt: str, chosen: FilmOptions, images: dict[int, Image.Image], control: Path | None,
        motions: list[Path],
    ) -> Iterator[FilmState]:  # fmt: skip
        """The pipeline calls back, and this gives its steps on: it runs in a thread and waits at each."""
        there: queue.Queue[tuple[int, Any]] = queue.Queue(maxsize=1)
        stopped = threading.Event()

        def on_step(pipeline: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if stopped.is_set():
                raise _Stopped
            if step + 1 < chosen.steps:
                there.put((step + 1, tensors["latents"]))
            return tensors

        def run() -> None:
            try:
                there.put((chosen.steps, self._run(prompt, chosen, images, control, motions, on_step)))
            except _Stopped:
                pass
            except BaseException as error:  # it rises in the caller's thread
                there.put((0, error))

        worker = threading.Thread(target=run, daemon=True)
        worker.start()
        try:
            index = 0
            while index < chosen.steps:
                index, found = there.get()
                if isinstance(found, BaseException):
                    raise found
                made = (lambda film=found: film) if isinstance(found, Film) else self._rough(found, chosen)
                yield FilmState(index, chosen.steps, chosen, made)
        finally:
            stopped.set()
            while worker.is_alive():  # a step that it has made already is not waited for
                if not there.empty():
                    there.get()
                worker.join(timeout=0.05)
            self._pipeline.release()

    def _rough(self, latents: Any, chosen: FilmOptions) -> Any:
        def made() -> Film:
            pipeline = self._pipeline.get()
            with torch.inference_mode():
                pixels = pipeline.decode_latents(latents)
            return _film(pipeline.video_processor.postprocess_video(video=pixels, output_type="np")[0], chosen)

        return made


class _Stopped(Exception):
    """Nobody listens any more."""


def _film(frames: Any, chosen: FilmOptions) -> Film:
    return Film((np.asarray(frames).clip(0, 1) * 255).round().astype(np.uint8), chosen.fps)


def _motion(place: Path) -> Path:
    """A motion LoRA. Raises InputError where there is none, MissingPackageError without PEFT."""
    place = place.expanduser()
    if not place.exists():
        raise InputError(f"the motion LoRA '{place}' does not exist; name a file of safetensors or its folder")
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("peft", "film", "a motion LoRA") from error
    return place


def open_by_library(
    name_or_path: str | os.PathLike[str], task: str | None, chosen: ForDrawing, quant: int | None, *,
    device: torch.device, dtype: torch.dtype,
) -> AnimateDiff | None:  # fmt: skip
    """A model that a library runs as a whole; None for a folder of another one, or a name.

    Args:
        task, quant: see `load_pretrained`.

    Raises:
        ConfigError: it is for something else, or cannot be quantised.
    """
    if (place := MotionFolder.at(Path(name_or_path).expanduser())) is None:
        return None
    if task not in (None, "film"):
        only = {"dialogue": "that talk", "drawing": "that draw"}.get(task, f"for {task}")
        raise ConfigError(f"{place.folder} holds AnimateDiff, which is for film; only models {only} will do here")
    if quant is not None or chosen.quant_text is not None:
        raise ConfigError("quant and quant_text: AnimateDiff runs in diffusers as it is stored; leave them out")
    if chosen.relay is not None:
        raise ConfigError("relay enlarges what a UNet of CogView3 draws; leave it out for AnimateDiff")
    return AnimateDiff(place, device=device, dtype=dtype, keep=chosen.keep or "model")
