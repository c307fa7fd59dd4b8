"""The bodies of OpenAI's chat API, as far as these models understand them.

A parameter that would change the answer and cannot be honoured is refused unless it has its neutral value; nothing is
taken and ignored but what says who asks (`user`, `metadata`, …).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "logprobs": (False, None),
    "top_logprobs": (0, None),
    "logit_bias": ({}, None),
    "tools": ([], None),
    "tool_choice": ("none", None),
    "functions": ([], None),
    "function_call": ("none", None),
    "response_format": ({"type": "text"}, None),
    "modalities": (["text"], None),
    "store": (False, None),
    "service_tier": ("auto", "default", None),
}
"""Parameters of the API that these models cannot honour, with the values that ask for nothing."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ImageURL(_Strict):
    """Where a picture is. `detail` has no effect: a model sees every picture at its own resolution."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class TextPart(_Strict):
    """Words."""

    type: Literal["text"]
    text: str


class ImagePart(_Strict):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageURL


class Message(BaseModel):
    """One message; fields of other clients (`name`, `refusal`, `boxes` of an earlier answer, …) may stand in it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart | ImagePart] | None = None


class StreamOptions(_Strict):
    """Of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class ChatRequest(_Strict):
    """A body of `POST /v1/chat/completions`; `top_k`, `repetition_penalty` and `version` are ours."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, gt=0)
    seed: int | None = Field(None, ge=-(2**62), le=2**62)
    n: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    version: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_missing_here(cls, body: Any) -> Any:
        """Takes neutral values away; says no to the others by name."""
        if not isinstance(body, dict):
            return body
        for name, neutral in NEUTRAL.items():
            if name in body and body[name] not in neutral:
                raise ValueError(f"'{name}' is not supported by these models; leave it out")
        return {name: value for name, value in body.items() if name not in NEUTRAL}

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


def error_body(message: str, *, kind: str = "invalid_request_error", code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def usage_body(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """The `usage` of an answer."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
