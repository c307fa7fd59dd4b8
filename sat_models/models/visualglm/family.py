"""VisualGLM-6B and the ChatGLM-6B under it, as the zoo sees it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sat_models.models.common.family import Family
from sat_models.models.common.groups import TRANSFORMER_GROUPS, ParameterGroup
from sat_models.models.visualglm.prompts import STYLES

if TYPE_CHECKING:
    from mixins.base import ZooModel
    from sat_models.config import LanguageConfig
    from sat_models.processing.tokens import Tokenizer


def _classes() -> Iterable[type[ZooModel]]:
    from sat_models.models.visualglm.chatglm import ChatGLMModel
    from sat_models.models.visualglm.model import FineTuneVisualGLMModel, VisualGLMModel

    return (ChatGLMModel, FineTuneVisualGLMModel, VisualGLMModel)


def _tokenizer(config: LanguageConfig, path: str | os.PathLike[str]) -> Tokenizer:
    from sat_models.models.visualglm.tokens import GLMTokenizer

    return GLMTokenizer.from_config(config, path)


FAMILY = Family(
    name="visualglm",
    models=("VisualGLMModel", "FineTuneVisualGLMModel", "ChatGLMModel"),
    classes=_classes,
    styles=STYLES,
    groups={
        "vit": ParameterGroup(("mixins.eva.model.vit.*",), vision=True),
        "qformer": ParameterGroup(("mixins.eva.model.qformer.*",), vision=True),
        "projector": ParameterGroup(("mixins.eva.model.glm_proj.*",), vision=True),
        **TRANSFORMER_GROUPS,
        "head": ParameterGroup(("mixins.chatglm-final.*",), adapted=False),
    },
    tokenizer=_tokenizer,
)
