"""Tiny models of every class of the zoo, and inputs for them.

Some have golden weights with the outputs of the original implementation (tests/golden); the others are random, of the
sizes in configs/models/<name>.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from mixins.base import ZooModel
from sat_models import runtime
from sat_models.checkpoint.find import find_checkpoint
from sat_models.checkpoint.io import load_weights
from sat_models.config import VisionLanguageConfig, read_json
from sat_models.models.build import build_model, make_config
from sat_models.processing.layout import TokenLayout, VLMInputs, layout_prompt

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
PIXELS = {"vision_image": "pixels.vision", "cross_image": "pixels.cross"}
Given = dict[str, Tensor]
"""Arguments of a model's forward."""


@dataclass(frozen=True)
class Miniature:
    """A tiny model, and what is particular to it.

    Attributes:
        name: a folder of tests/golden, or a file of configs/models without its suffix.
        mixins: names in order; they and their order are the checkpoint format.
        towers: modules that must not run without a picture.
        classes: every `model_class` that loads these weights; empty for a second form of a class.
        frozen: prefixes of parameters that no forward reads, which the class itself takes out of training.
        stacks: stacks of layers that can recompute their activations: the language model's and the towers'.
    """

    name: str
    mixins: tuple[str, ...]
    towers: tuple[str, ...]
    classes: tuple[str, ...]
    frozen: tuple[str, ...] = ()
    stacks: int = 2

    def __str__(self) -> str:
        return self.name

    @property
    def folder(self) -> Path:
        """Where golden weights are, if there are any."""
        return GOLDEN / self.name

    @property
    def is_golden(self) -> bool:
        """True if the original's weights and logits are known."""
        return (self.folder / "reference.json").is_file()

    @property
    def config(self) -> VisionLanguageConfig:
        """Sizes."""
        file = self.folder / "model_config.json" if self.is_golden else ROOT / "configs/models" / f"{self.name}.json"
        return make_config(read_json(file))

    def build(self, dtype: torch.dtype = torch.float32, model_class: str | None = None) -> ZooModel:
        """A model as its class makes it: in training mode, with its own choice of what trains; the same each time."""
        runtime.init_model_parallel(1)
        config = replace(self.config, model_class=model_class or self.config.model_class)
        if not self.is_golden:
            torch.manual_seed(0)
            return perturbed(build_model(config, dtype=dtype, device="cpu"))
        model = build_model(config, dtype=dtype)
        load_weights(model, find_checkpoint(self.folder), device="cpu")
        return model

    def reference(self) -> Given:
        """Golden tensors."""
        return load_file(self.folder / "reference.safetensors")

    def with_image(self, case: str = "case0") -> Given:
        """A golden case, or a made prompt with a made picture."""
        config = self.config
        if not self.is_golden:
            return self.made([[3, 4, 5]], [6, 7, 8, 9, 10, 11], image=_noise(config.image_size))
        golden = self.reference()
        pixels = {name: golden[key] for name, key in PIXELS.items() if key in golden}
        if f"{case}.image_embed_mask" in golden:
            names = ("input_ids", "position_ids", "vision_expert_mask", "image_embed_mask")
            return {name: golden[f"{case}.{name}"][None] for name in names} | pixels
        described = next(
            c for c in json.loads((self.folder / "reference.json").read_text())["cases"] if c["key"] == case
        )
        given = {name: golden[f"{case}.{name}"][None] for name in ("input_ids", "position_ids")}
        slots = torch.zeros_like(given["input_ids"])
        if described["image"]:
            slots[:, described["pre_image"] : described["pre_image"] + config.image_length] = 1
            return given | {"image_embed_mask": slots} | pixels
        return given

    def text_only(self, length: int = 7) -> Given:
        """A prompt of so many tokens in all."""
        form = self.config.sequence_form
        given = self.made([], list(range(3, 3 + length - int(form.begin) - len(form.suffix))))
        return {name: given[name] for name in ("input_ids", "position_ids")}

    def image_only(self) -> Given:
        """The picture with what must stand before it, and nothing after it."""
        config = self.config
        return self.made([[]], [], image=_noise(config.image_size))

    def made(self, lead: Sequence[Sequence[int]], text: Sequence[int], image: Tensor | None = None) -> Given:
        """A prompt of these ids, with a picture for each part of `lead`, as arguments without a mask."""
        config = self.config
        in_front = [piece for ids in lead for piece in (ids, config.images.plan())]
        layout: TokenLayout = layout_prompt([*in_front, text], bos_id=config.bos_token_id, form=config.sequence_form)
        cross = None
        if image is not None and hasattr(config, "cross_image_pix"):
            cross = _noise(config.cross_image_pix)
        kwargs = VLMInputs.from_layout(layout, vision_image=image, cross_image=cross).model_kwargs()
        return {name: value for name, value in kwargs.items() if value is not None and name != "attention_mask"}

    def mask_of(self, given: Given) -> Tensor:
        """The mask [1, 1, S, S] that the model has where none is given."""
        tokens = given["input_ids"].shape[1]
        mask = torch.ones(tokens, tokens, dtype=torch.long).tril()
        if self.config.sequence_form.prefix_attention:
            mask[:, given["position_ids"][0, 1] == 0] = 1
        return mask[None, None]


def perturbed(model: ZooModel) -> ZooModel:
    """SAT's initial weights with what starts at 0 or 1 shaken, so that a forgotten bias or norm shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def _noise(side: int) -> Tensor:
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(side))


_COGVLM_MIXINS = ("lm", "eva", "mlp", "rotary")
_PLAIN_MIXINS = ("rotary", "lm", "mlp", "eva")
_ENCODER = "mixins.encoder.vit.model"
MINIATURES = (
    Miniature(
        "cogvlm-mini", _COGVLM_MIXINS, ("mixins.eva.vit_model",),
        ("CogVLMModel", "FineTuneTrainCogVLMModel", "FineTuneTestCogVLMModel"),
    ),
    Miniature(
        "cogagent-mini", (*_COGVLM_MIXINS, "encoder"), ("mixins.eva.vit_model", "mixins.encoder.vit"),
        ("CogAgentModel", "FineTuneTrainCogAgentModel", "FineTuneTestCogAgentModel"),
        frozen=(f"{_ENCODER}.blocks.2.", f"{_ENCODER}.norm.", f"{_ENCODER}.head."), stacks=3,
    ),
    Miniature("cogvlm2-tiny", _COGVLM_MIXINS, ("mixins.eva.vit_model",), ("CogVLM2Model",)),
    Miniature("glm4v-tiny", _PLAIN_MIXINS, ("mixins.eva.vit_model",), ("GLM4VModel",)),
    Miniature(
        "visualglm-mini", ("chatglm-final", "chatglm-attn", "chatglm-layer", "eva"), ("mixins.eva.model",),
        ("VisualGLMModel", "FineTuneVisualGLMModel"), stacks=3,
    ),
    Miniature(
        "llava-tiny", _PLAIN_MIXINS, ("mixins.eva.vit_model",), ("LLaVAModel",),
        frozen=("mixins.eva.vit_model.transformer.layers.2.", "mixins.eva.vit_model.mixins.early.post_layernorm."),
    ),
    Miniature(
        "internvl-tiny", _PLAIN_MIXINS, ("mixins.eva.vit_model",), ("InternVLModel",),
        frozen=tuple(
            f"mixins.eva.vit_model.{part}.2."
            for part in (
                "transformer.layers", "mixins.scaled.scales", "mixins.qk_norm.query_norm", "mixins.qk_norm.key_norm"
            )
        ),
    ),
    Miniature("internvl2-tiny", _PLAIN_MIXINS, ("mixins.eva.vit_model",), ()),
    Miniature("minigpt4-tiny", _PLAIN_MIXINS, ("mixins.eva.vit_model",), ("MiniGPT4Model",), stacks=3),
    Miniature("minigpt4-llama2-tiny", _PLAIN_MIXINS, ("mixins.eva.vit_model",), ()),
    Miniature("xcomposer2-tiny", (*_PLAIN_MIXINS, "plora"), ("mixins.eva.vit_model",), ("XComposer2Model",)),
    Miniature("xcomposer2-4khd-tiny", (*_PLAIN_MIXINS, "plora"), ("mixins.eva.vit_model",), ()),
    Miniature("xcomposer2d5-tiny", (*_PLAIN_MIXINS, "plora"), ("mixins.eva.vit_model",), ()),
)  # fmt: skip
