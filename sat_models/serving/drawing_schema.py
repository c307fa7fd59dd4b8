"""The body of OpenAI's images API, as far as a painter understands it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from sat_models.sampling.options import DrawingKeywords
from sat_models.sampling.sizes import size_of
from sat_models.serving.body import Body, Real, Whole, shown

FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
"""By `output_format`, Pillow's name."""


class DrawRequest(Body):
    """A body of `POST /v1/images/generations`; `steps`, `guidance`, `seed` and `sampler` are ours."""

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {
        "quality": ("auto", "standard"),
        "style": ("vivid",),  # what clients send that do not ask their users
        "background": ("auto", "opaque"),
        "moderation": ("auto", "low"),
        "complexity": (),
        "frame_count": (1,),
        "frame_duration_ms": (),
        "svg": (),
        "negative_prompt": ("",),
    }

    prompt: str
    model: str | None = None
    n: Whole | None = Field(None, ge=1)
    size: str | None = None
    steps: Whole | None = Field(None, ge=1)
    guidance: Real | None = Field(None, ge=0)
    seed: Whole | None = Field(None, ge=0)
    sampler: str | None = None
    response_format: str | None = None
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: Whole | None = Field(None, ge=0, le=100)
    stream: bool | None = None
    partial_images: Whole | None = Field(None, ge=0, le=3)
    user: str | None = None
    safety_identifier: str | None = None

    @field_validator("response_format")
    @classmethod
    def _refuse_urls(cls, given: str | None) -> str | None:
        if given not in (None, "b64_json"):
            raise ValueError(f"it is '{given:.40}'; this server keeps no images: ask for 'b64_json', or leave it out")
        return given

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.partial_images and not self.stream:
            raise ValueError("'partial_images' needs 'stream': true; send both, or leave it out")
        if self.output_compression not in (None, 100) and self.output_format == "png":
            raise ValueError("'output_compression' is for 'output_format' jpeg and webp; name one of them")
        return self

    @property
    def options(self) -> DrawingKeywords:
        """What the painter is asked for. Raises InputError for a size that is none."""
        size = None if self.size in (None, "auto") else size_of(self.size)
        given = {
            "size": size, "steps": self.steps, "guidance": self.guidance, "seed": self.seed, "sampler": self.sampler,
        }  # fmt: skip
        return DrawingKeywords(**{name: value for name, value in given.items() if value is not None})


DRAW_BODY = shown(DrawRequest, "/v1/images/generations")
"""The body as `/openapi.json` shows it."""
