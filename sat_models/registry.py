"""Every model of the zoo by name: where its sizes, its prompt style, its weights and its licence are.

Sources: the CogVLM repository at f7283b2 (README, "Model Zoo" and the demo's `--version` table) and the model cards.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sat_models.errors import ConfigError, UnknownNameError
from sat_models.model_spec import ORGANISATIONS, ModelSpec

_PACKAGE = Path(__file__).resolve().parent
_HUB = "https://huggingface.co"

COGVLM_WEIGHTS = "CogVLM model licence (weights), Apache-2.0 (code)"


def _cogvlm(name: str, summary: str, version: str, size: int = 490, *, aliases: tuple[str, ...] = ()) -> ModelSpec:
    return ModelSpec(
        name=name, summary=summary, default_version=version, image_size=size, licence=COGVLM_WEIGHTS,
        source=f"{_HUB}/{ORGANISATIONS[0]}/CogVLM", hf_name=f"{name}-hf", aliases=aliases,
    )  # fmt: skip


def _cogvlm2(name: str, summary: str) -> ModelSpec:
    hub = name.removesuffix("b") + "B"
    return ModelSpec(
        name=name, summary=summary, default_version="chat_old", image_size=1344,
        licence="CogVLM2 licence (weights; built with Meta Llama 3), Apache-2.0 (code)", source=f"{_HUB}/THUDM/{hub}",
        hf_name=hub,
    )  # fmt: skip


def _glm4v(name: str, summary: str) -> ModelSpec:
    return ModelSpec(
        name=name, summary=summary, default_version="glm4v", image_size=1120,
        licence="GLM-4 licence (weights), Apache-2.0 (code)", source=f"{_HUB}/THUDM/{name}", hf_name=name,
    )  # fmt: skip


def _internvl(hub: str, summary: str, version: str, language: str) -> ModelSpec:
    originals = (f"OpenGVLab/{hub}-hf",) if hub.startswith("InternVL3-") else ()  # in transformers' own layout
    return ModelSpec(
        name=hub.lower(), summary=summary, default_version=version, image_size=448,
        licence=f"MIT (code, InternViT), {language}", source=f"{_HUB}/OpenGVLab/{hub}", hf_name=hub,
        owners=("OpenGVLab",), originals=originals,
    )  # fmt: skip


def _cogagent(name: str, summary: str, version: str) -> ModelSpec:
    return ModelSpec(
        name=name, summary=summary, default_version=version, image_size=224, cross_image_size=1120,
        licence="CogAgent model licence (weights), Apache-2.0 (code)", source=f"{_HUB}/{ORGANISATIONS[0]}/CogAgent",
        hf_name=f"{name}-hf",
    )  # fmt: skip


_VICUNA_LICENCE = "Llama 2 community licence (language model), Apache-2.0 (code)"
_MINIGPT4_LICENCE = "BSD-3-Clause (projector and code), LLaMA's licence (language model)"
_MINIGPT4_SOURCE = "https://github.com/Vision-CAIR/MiniGPT-4 (the checkpoint), with EVA's, BLIP-2's and LLaMA's files"


def _llava(name: str, size: str) -> ModelSpec:
    return ModelSpec(
        name=name, summary=f"dialogue about a picture, CLIP and Vicuna {size}", default_version="llava_v1",
        image_size=336, licence=_VICUNA_LICENCE, source=f"{_HUB}/liuhaotian/{name}",
        hf_name=f"llava-1.5-{size.lower()}-hf", owners=("llava-hf",), originals=(f"liuhaotian/{name}",),
    )  # fmt: skip


def _llava_v0(name: str, size: str) -> ModelSpec:
    return ModelSpec(
        name=name, summary=f"LLaVA 1.0, CLIP and LLaMA {size} with one linear projector", default_version="llava_v0",
        image_size=224, licence="LLaMA licence (language model), Apache-2.0 (code)",
        source=f"{_HUB}/liuhaotian/LLaVA-{size}-delta-v0 (a difference to LLaMA; apply it first)",
    )  # fmt: skip


def _minigpt4(name: str, summary: str, version: str, size: int = 224) -> ModelSpec:
    return ModelSpec(
        name=name, summary=summary, default_version=version, image_size=size, licence=_MINIGPT4_LICENCE,
        source=_MINIGPT4_SOURCE,
    )  # fmt: skip


_YI, _INTERNLM2 = "Apache-2.0 (Yi)", "InternLM2's model licence (language model)"
_QWEN, _QWEN_3B = "Apache-2.0 (Qwen)", "Qwen research licence (language model)"
_QWEN_72B = "Qwen licence (language model)"


def _internvls() -> tuple[ModelSpec, ...]:
    """InternVL (README of github.com/OpenGVLab/InternVL at 2410d1d)."""
    later = {"1B": _QWEN, "2B": _INTERNLM2, "4B": _QWEN_3B, "8B": _INTERNLM2, "26B": _INTERNLM2, "38B": _QWEN}
    three = {"1B": _QWEN, "2B": _QWEN, "8B": _QWEN, "14B": _QWEN, "38B": _QWEN, "78B": _QWEN_72B}
    two = {"1B": _QWEN, "2B": _INTERNLM2, "8B": _INTERNLM2, "26B": _INTERNLM2, "40B": _YI}
    styles = {"1B": "Hermes-2", "40B": "Hermes-2"}
    tiled = "dialogue about images, cut into tiles"
    return (
        _internvl("InternVL-Chat-V1-2", "dialogue about an image, InternViT-6B and Yi 34B", "Hermes-2", _YI),
        _internvl("InternVL-Chat-V1-2-Plus", "the same after more fine-tuning", "Hermes-2", _YI),
        _internvl("InternVL-Chat-V1-5", tiled, "internlm2-chat", _INTERNLM2),
        _internvl("Mini-InternVL-Chat-2B-V1-5", tiled, "internlm2-chat", _INTERNLM2),
        *(_internvl(f"InternVL2-{n}", tiled, styles.get(n, "internlm2-chat"), which) for n, which in two.items()),
        *(_internvl(f"InternVL2_5-{n}", tiled, "internvl2_5", which) for n, which in later.items()),
        _internvl("InternVL2_5-78B", tiled, "internvl2_5", _QWEN_72B),
        *(_internvl(f"InternVL3-{n}", tiled, "internvl2_5", which) for n, which in three.items()),
    )


def _xcomposer2(release: str, summary: str, size: int, *, version: str = "xcomposer2") -> ModelSpec:
    name = f"internlm-{release}"
    return ModelSpec(
        name=name, summary=summary, default_version=version, image_size=size,
        licence="InternLM's (weights; free for research, for commerce after a form), Apache-2.0 (code)",
        source=f"{_HUB}/internlm/{name}", originals=(f"internlm/{name}",), aliases=(release,),
    )  # fmt: skip


def _cogview3(stage: str, summary: str, size: int, *, distilled: str = "") -> ModelSpec:
    name = f"cogview3-{stage}-3b{distilled}"
    return ModelSpec(
        name=name, summary=f"{summary}; runs in diffusers", image_size=size, licence="Apache-2.0",
        source="https://github.com/THUDM/CogView3 (its sat/README.md has the links)", task="drawing",
        runs_in="diffusers", parameters=_UNET + 320 * {"": 0, "base": 512, "relay": 256}[stage if distilled else ""],
    )  # fmt: skip


_UNET, _COGVIEW4 = 2_906_612_484, 6_369_118_272
_PAINTERS = (
    ModelSpec(
        name="cogview3-plus-3b", summary="images from English prompts, 512 to 2048 px a side, with T5-XXL before it",
        image_size=1024, licence="Apache-2.0", source=f"{_HUB}/THUDM/CogView3-Plus-3B", hf_name="CogView3-Plus-3B",
        task="drawing",
    ),
    ModelSpec(
        name="cogview2", summary="images from Chinese prompts, in codes; goes on with cogview2-dsr and cogview2-itersr",
        image_size=480, licence="Apache-2.0", source="https://lfs.aminer.cn/misc/cogview/cogview2/coglm.zip",
        aliases=("coglm",), task="drawing",
    ),
    ModelSpec(
        name="cogvideo", summary="films from Chinese prompts, in codes; goes on with cogvideo-stage2 and cogview2-dsr",
        image_size=480, licence="CogVideo licence (weights; limits of use), Apache-2.0 (code)",
        source="https://lfs.aminer.cn/misc/cogvideo/cogvideo-stage1.zip", aliases=("cogvideo-stage1",), task="film",
    ),
    _cogview3("base", "images of 512 px from English prompts", 512),
    _cogview3("base", "the same in 4 steps", 512, distilled="-distill-4step"),
    _cogview3("base", "the same in 8 steps", 512, distilled="-distill-8step"),
    _cogview3("relay", "enlarges the images of the former to 1024 px", 1024),
    _cogview3("relay", "the same in 2 steps", 1024, distilled="-distill-2step"),
    _cogview3("relay", "the same in 1 step", 1024, distilled="-distill-1step"),
    ModelSpec(
        name="cogview4-6b", summary="images from Chinese and English prompts, 512 to 2048 px; runs in diffusers",
        image_size=1024, licence="Apache-2.0", source=f"{_HUB}/THUDM/CogView4-6B", hf_name="CogView4-6B",
        task="drawing", runs_in="diffusers", parameters=_COGVIEW4,
    ),
)  # fmt: skip


def _cogvideox(hub: str, summary: str, *, image_size: int = 480) -> ModelSpec:
    """Of films `image_size` is the height."""
    free = hub == "CogVideoX-2b"
    return ModelSpec(
        name=hub.lower(), summary=summary, image_size=image_size,
        licence="Apache-2.0" if free else "CogVideoX licence (weights), Apache-2.0 (code)",
        source=f"{_HUB}/THUDM/{hub}", hf_name=hub, task="film",
    )  # fmt: skip


_FILMS = (
    _cogvideox("CogVideoX-2b", "films of 49 frames of 720x480 from English prompts"),
    _cogvideox("CogVideoX-5b", "the same, larger"),
    _cogvideox("CogVideoX-5b-I2V", "films of 49 frames of 720x480 that begin with an image"),
    _cogvideox("CogVideoX1.5-5B", "films of up to 161 frames, usually 81 of 1360x768", image_size=768),
    _cogvideox("CogVideoX1.5-5B-I2V", "the same, which begin with an image", image_size=768),
)

_GROUNDING_ALIASES = (
    "cogvlm-grounding-generalist-v1.1",
    *(f"{who}/cogvlm-grounding-generalist" for who in ORGANISATIONS),
)

_SPECS = (
    ModelSpec(
        name="cogvlm-tiny",
        summary="taught on coloured shapes, to try everything without a download",
        default_version="chat",
        image_size=112,
        licence="Apache-2.0",
        source="bundled with this package",
        bundled=True,
    ),
    _cogvlm("cogvlm-chat", "multi-turn dialogue about a picture", "chat_old", aliases=("cogvlm-chat-v1.1",)),
    _cogvlm("cogvlm-grounding-generalist", "boxes for words and words for boxes", "base", aliases=_GROUNDING_ALIASES),
    _cogvlm("cogvlm-grounding-base", "the grounding model before instruction tuning", "base"),
    _cogvlm("cogvlm-base-224", "pre-trained at 224 px, for fine-tuning", "base", 224),
    _cogvlm("cogvlm-base-490", "pre-trained at 490 px, for fine-tuning", "base"),
    _cogvlm2("cogvlm2-llama3-chat-19b", "dialogue about an image at 1344 px, on Llama 3"),
    _cogvlm2("cogvlm2-llama3-chinese-chat-19b", "the same in Chinese and English"),
    _glm4v("glm-4v-9b", "dialogue about an image at 1120 px in any turn, Chinese and English, on GLM-4"),
    *_internvls(),
    _xcomposer2("xcomposer2-vl-7b", "dialogue about an image, on InternLM2", 490),
    _xcomposer2("xcomposer2-7b", "articles with images: many small images in one prompt", 224),
    _xcomposer2("xcomposer2-vl-1_8b", "the smaller of the first", 490),
    _xcomposer2("xcomposer2-4khd-7b", "the same with images in up to 55 tiles of 336 px", 336),
    _xcomposer2("xcomposer2d5-7b", "2.5: tiles of 560 px, several images in a dialogue", 560, version="xcomposer2d5"),
    _cogagent("cogagent-chat", "screens: dialogue, plans, operations with boxes", "chat"),
    _cogagent("cogagent-vqa", "screens: single-turn questions", "chat_old"),
    ModelSpec(
        name="visualglm-6b",
        summary="dialogue about a picture in Chinese and English",
        default_version="glm_zh",
        image_size=224,
        licence="VisualGLM-6B model licence (weights), Apache-2.0 (code)",
        source=f"{_HUB}/THUDM/visualglm-6b (SAT weights: see its README)",
        aliases=tuple(f"{who}/visualglm-6b" for who in ORGANISATIONS),
    ),
    _llava("llava-v1.5-7b", "7B"),
    _llava("llava-v1.5-13b", "13B"),
    _llava_v0("llava-v1.0-7b", "7b"),
    _llava_v0("llava-v1.0-13b", "13b"),
    _minigpt4("minigpt4-7b", "BLIP-2's Q-Former and Vicuna 7B", "minigpt4"),
    _minigpt4("minigpt4-13b", "BLIP-2's Q-Former and Vicuna 13B", "minigpt4"),
    _minigpt4("minigpt4-llama2-7b", "joined patches and Llama-2 7B chat", "minigpt4_llama2"),
    _minigpt4("minigpt-v2", "joined patches at 448 px and Llama-2 7B chat", "minigpt4_llama2", 448),
    *_PAINTERS,
    *_FILMS,
)

_COLLECTIONS = tuple(f"{who}/{name}" for who in ORGANISATIONS for name in ("CogVLM", "CogAgent"))
"""Hub repositories that hold the SAT weights of several models."""


def _register(specs: tuple[ModelSpec, ...]) -> dict[str, ModelSpec]:
    table: dict[str, ModelSpec] = {}
    for spec in specs:
        for name in spec.all_names:
            if name in table:
                raise ValueError(f"the name '{name}' is registered twice: {table[name].name} and {spec.name}")
            table[name] = spec
    return table


_TABLE = _register(_SPECS)


def specs() -> Iterator[ModelSpec]:
    """All models, in the order of the table."""
    return iter(_SPECS)


def resolve(name: str) -> ModelSpec:
    """The model that a name means: its own name, an alias, or a Hugging Face id.

    Raises:
        UnknownNameError: lists near matches.
    """
    if name in _TABLE:
        return _TABLE[name]
    hint = (
        "No such path exists either (a SAT folder, a step folder, a .pt or .zip file). "
        "`python -m sat_models.zoo` lists all names."
    )
    if name in _COLLECTIONS:
        family = name.rpartition("/")[2].lower()
        members = ", ".join(spec.name for spec in _SPECS if spec.name.startswith(family) and not spec.bundled)
        hint = f"'{name}' is a collection of weights; name one of them: {members}."
    raise UnknownNameError("model", name, _TABLE, hint=hint)


def find_spec(name: str) -> ModelSpec | None:
    """As `resolve`, but None for an unknown name."""
    return _TABLE.get(name)


def config_path(name: str) -> Path:
    """The `model_config.json` with a model's sizes; in a checkout and in an installed wheel.

    Raises:
        UnknownNameError: unknown name.
        ConfigError: the file is not there.
    """
    spec = resolve(name)
    if spec.bundled:
        return bundled_folder(spec.name) / "model_config.json"
    file = config_file(f"models/{spec.name}.json")
    if file is None:
        raise ConfigError(f"the config of {spec.name} is missing (configs/models/{spec.name}.json); reinstall")
    return file


def config_file(relative: str) -> Path | None:
    """A file of `configs/`, in a checkout or in an installed wheel (into which setup.py copies that folder)."""
    places = [root / "configs" / relative for root in (_PACKAGE.parent, _PACKAGE)]
    return next((place for place in places if place.is_file()), None)


def bundled_folder(name: str) -> Path:
    """Where the weights of a bundled model lie."""
    return _PACKAGE / "assets" / name
