"""The bodies of OpenAI's chat API, as far as these models understand them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, PrivateAttr, StrictBool, model_validator

from sat_models.generation.scores import LARGEST_TOP
from sat_models.generation.strict.constraint import Constraint
from sat_models.serving.answer_form import FIELDS, constraint_of
from sat_models.serving.body import Body, Real, Strict, Whole, shown

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "echo": (False,),
    "best_of": (1,),
    "min_p": (0,),
    "typical_p": (1,),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "ignore_eos": (False,),
    "skip_special_tokens": (True,),
    # of vLLM, SGLang, llama.cpp, OpenRouter and their clients
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "include_stop_str_in_output": (False,),
    "spaces_between_special_tokens": (True, False),
    "detokenize": (True,),
    "early_stopping": (False,),
    "num_beams": (1,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "add_special_tokens": (False,),
    "chat_template_kwargs": ({}, {"enable_thinking": False}, {"thinking": False}),
    "mm_processor_kwargs": ({},),
    "priority": (0,),
    "top_a": (0,),
    "repeat_penalty": (1,),
    "mirostat": (0,),
    "safe_prompt": (False,),
    "reasoning": ({}, {"effort": "none"}, {"enabled": False}),
    "thinking": ({}, {"type": "disabled"}),
    "enable_thinking": (False,),
    "transforms": ([],),
    "extra_body": ({},),
    "guided_grammar": (),
    "guided_whitespace_pattern": (),
    "guided_decoding_backend": ("auto", "guidance"),
}
"""Parameters that these models cannot honour, with the values that ask for nothing; `null` does everywhere."""
MAX_STOPS = 4
"""Stop strings of one request, as OpenAI allows."""
MAX_METADATA = 16
"""Entries of `metadata`, as OpenAI allows."""
_DETAILS = ("auto", "low", "high", "original")


class TextPart(Strict):
    """Words."""

    text: str


class ImagePart(Strict):
    """Where a picture is."""

    url: str


def _part(part: Any, place: str) -> TextPart | ImagePart:
    """One part of a message. Hints to other servers' caches and decoders (`cache_control`, `format`) and `detail` pass:
    they change nothing here, a model sees every picture at its own resolution."""
    if not isinstance(part, dict):
        raise ValueError(f"{place} is {part!r:.40}; a part is an object with a 'type'")
    kind = part.get("type")
    if kind not in ("text", "image_url"):
        raise ValueError(f"{place}.type is {kind!r:.40}; allowed: text, image_url")
    _refuse_others(part, {"type", kind, "cache_control"}, place)
    value = part.get(kind)
    if kind == "image_url" and isinstance(value, dict):
        _refuse_others(value, {"url", "detail", "format"}, f"{place}.image_url")
        if value.get("detail") not in (None, *_DETAILS):
            raise ValueError(f"{place}.image_url.detail is {value['detail']!r:.40}; allowed: {', '.join(_DETAILS)}")
        value, place = value.get("url"), f"{place}.image_url"
    if not isinstance(value, str):
        what = "text" if kind == "text" else "url"
        raise ValueError(f"{place}.{what} is {'missing' if value is None else repr(value)[:40]}; it must be a string")
    return TextPart(text=value) if kind == "text" else ImagePart(url=value)


def _refuse_others(given: dict[str, Any], known: set[str], place: str) -> None:
    others = sorted(name for name, value in given.items() if name not in known and value is not None)
    if others:
        raise ValueError(f"{place} has {', '.join(others)[:80]}; allowed: {', '.join(sorted(known))}")


def _parts(content: Any) -> Any:
    """The content of a message, as parts."""
    if content is None or isinstance(content, str):
        return [TextPart(text=content)] if content else []
    if not isinstance(content, list):
        raise ValueError(f"it is {content!r:.40}; it must be a string or a list of parts")
    return [_part(part, f"part {number}") for number, part in enumerate(content)]


def _stops(given: Any) -> Any:
    stops = [given] if isinstance(given, str) else ([] if given is None else given)
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise ValueError(f"it is {given!r:.40}; it must be a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise ValueError(f"there are {len(stops)} stop strings; at most {MAX_STOPS} are allowed")
    return tuple(stops)


class Message(BaseModel):
    """One message; fields of other clients (`name`, `refusal`, `boxes` of an earlier answer, …) may stand in it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart | ImagePart], BeforeValidator(_parts)] = []

    @model_validator(mode="before")
    @classmethod
    def _refuse_calls(cls, message: Any) -> Any:
        if isinstance(message, dict):
            for name in ("tool_calls", "function_call", "audio"):
                if message.get(name):
                    raise ValueError(f"'{name}' is not supported by these models")
        return message


class StreamOptions(Strict):
    """Of a streamed answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatRequest(Body):
    """A body of `POST /v1/chat/completions`; `top_k`, `repetition_penalty`, `version`, `max_tiles` and `guided_boxes`
    are ours, the others of `answer_form.FIELDS` OpenAI's and vLLM's."""

    NEUTRAL = NEUTRAL

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: Whole | None = Field(None, ge=1)
    max_completion_tokens: Whole | None = Field(None, ge=1)
    temperature: Real | None = Field(None, ge=0, le=2)
    top_p: Real | None = Field(None, ge=0, le=1)
    top_k: Whole | None = Field(None, ge=-1)
    repetition_penalty: Real | None = Field(None, gt=0)
    seed: Whole | None = Field(None, ge=-(2**62), le=2**62)
    n: Whole | None = Field(None, ge=1)
    logprobs: StrictBool | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=LARGEST_TOP)
    stop: Annotated[tuple[str, ...], BeforeValidator(_stops)] = ()
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    version: str | None = None
    max_tiles: Whole | None = Field(None, ge=1, le=256)
    response_format: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_boxes: Any = None
    structured_outputs: Any = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    metadata: dict[str, str] | None = Field(None, max_length=MAX_METADATA)
    _constraint: Constraint | None = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _refuse_alternatives_alone(cls, body: Any) -> Any:
        if isinstance(body, dict) and body.get("top_logprobs") and body.get("logprobs") is not True:
            raise ValueError("'top_logprobs' needs 'logprobs': true; send both, or leave it out")
        return body

    @model_validator(mode="after")
    def _read_form(self) -> Self:
        self._constraint = constraint_of({name: getattr(self, name) for name in FIELDS})
        return self

    @property
    def constraint(self) -> Constraint | None:
        """The form that the answer must have."""
        return self._constraint


BODY = shown(ChatRequest, "/v1/chat/completions")
"""The body as `/openapi.json` shows it."""


def usage_body(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """The `usage` of an answer; `cached_tokens` of the prompt were not computed again."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }
