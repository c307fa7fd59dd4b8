"""CogAgent, as the zoo sees it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sat_models.models.cogvlm.family import FAMILY as COGVLM
from sat_models.models.common.family import Family
from sat_models.models.common.groups import ParameterGroup

if TYPE_CHECKING:
    from mixins.base import ZooModel
    from sat_models.models.common.hf_form import HFForm


def _classes() -> Iterable[type[ZooModel]]:
    from sat_models.models.cogagent.model import CogAgentModel, FineTuneTestCogAgentModel, FineTuneTrainCogAgentModel

    return (CogAgentModel, FineTuneTrainCogAgentModel, FineTuneTestCogAgentModel)


def _forms() -> Iterable[HFForm]:
    from sat_models.models.cogagent.keys import FORM

    return (FORM,)


def _parts(text: str, width: int, height: int) -> dict[str, Any]:
    """The operation on a screen, as `agent`."""
    from sat_models.models.cogagent.agent import parse_agent_reply

    reply = parse_agent_reply(text, width, height)
    return {"agent": reply.as_json()} if reply.says_what_to_do else {}


FAMILY = Family(
    name="cogagent",
    models=("CogAgentModel", "FineTuneTrainCogAgentModel", "FineTuneTestCogAgentModel"),
    classes=_classes,
    styles=COGVLM.styles,
    groups={
        **COGVLM.groups,
        "encoder": ParameterGroup(("mixins.encoder.*",), vision=True, adapted=False),
        "cross_attention": ParameterGroup(
            ("transformer.layers.*.cross_attention.*", "transformer.layers.*.post_cross_attention_layernorm.*"),
            vision=True,
        ),
    },
    forms=_forms,
    parts=_parts,
)
