"""A family as the rest of the house sees it: one entry with all that others need to know of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sat_models.models.common.groups import ParameterGroup
from sat_models.processing.prompts import PromptStyle

if TYPE_CHECKING:
    from mixins.base import ZooModel
    from sat_models.config import LanguageConfig
    from sat_models.models.common.hf_form import HFForm
    from sat_models.processing.tokens import Tokenizer


def sentencepiece_tokenizer(config: LanguageConfig, path: str | os.PathLike[str]) -> Tokenizer:
    """A tokenizer of a sentencepiece file as it is. Raises as `SentencePieceTokenizer.from_file`."""
    from sat_models.processing.tokens import SentencePieceTokenizer

    tokenizer = SentencePieceTokenizer.from_file(path)
    if not isinstance(config.eos_token_id, int):  # one id is left to the file
        tokenizer.eos_ids = config.eos_token_ids
    return tokenizer


def _no_forms() -> tuple[HFForm, ...]:
    return ()


def _no_config(shapes: Mapping[str, Sequence[int]], told: Mapping[str, Any]) -> dict[str, Any] | None:
    return None


def _no_parts(text: str, width: int, height: int) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of models. The entry itself is light: its functions import the code when it is needed.

    Attributes:
        name: of its folder.
        models: every `model_class` that a `model_config.json` may name, the usual one first.
        classes: gives the classes of these names.
        styles: prompt styles that its weights were trained with. A family built on another may share its styles.
        own_names: what a name of a style means where a model of this family is asked, though another family has a
            style of that name.
        groups: its parameters by groups. Where several families have a group, each adds its own patterns to it.
        forms: gives the Hugging Face forms of its weights that are read or written.
        tokenizer: config and tokenizer file -> tokenizer.
        config_of_weights: shapes of weights by SAT's names, and what a `model_config.json` beside them says -> all
            that one holds; None for weights of another family. For releases that come without sizes.
        told_by_name: its releases differ in what shapes do not tell, so that a folder's name is asked for it.
        parts: an answer, width and height of its image in pixels -> what such an answer says besides boxes, by names
            of the family's own and in values that JSON can hold; nothing for an answer that says none of it.
    """

    name: str
    models: tuple[str, ...]
    classes: Callable[[], Iterable[type[ZooModel]]]
    styles: Mapping[str, PromptStyle]
    own_names: Mapping[str, PromptStyle] = field(default_factory=dict)
    groups: Mapping[str, ParameterGroup] = field(default_factory=dict)
    forms: Callable[[], Iterable[HFForm]] = _no_forms
    tokenizer: Callable[[LanguageConfig, str | os.PathLike[str]], Tokenizer] = sentencepiece_tokenizer
    config_of_weights: Callable[[Mapping[str, Sequence[int]], Mapping[str, Any]], dict[str, Any] | None] = _no_config
    told_by_name: bool = False
    parts: Callable[[str, int, int], dict[str, Any]] = _no_parts

    def model_class(self, name: str) -> type[ZooModel]:
        """The class of a name of `models`."""
        return {cls.__name__: cls for cls in self.classes()}[name]
