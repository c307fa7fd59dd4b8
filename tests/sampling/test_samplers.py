"""Samplers without a model: what they compute, when they stop, what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sat_models.errors import ConfigError, InputError
from sat_models.sampling.guidance import guided
from sat_models.sampling.options import DrawingOptions, check_prompts
from sat_models.sampling.samplers import ddim
from sat_models.sampling.schedule import sat_steps, steps_of

SHAPE = (2, 4, 8, 8)


@pytest.mark.parametrize("sampler", ["sat", "diffusers"])
def test_a_model_that_knows_the_image_is_led_to_it(sampler: str) -> None:
    """v of an image that is known: a · noise − √(1 − a²) · image."""
    torch.manual_seed(0)
    image, start = torch.randn(SHAPE), torch.randn(SHAPE)
    steps = steps_of(sampler, 20, 4.0)
    seen = {step.time: step.seen for step in steps}

    def knows(latents: Tensor, time: float) -> Tensor:
        share, rest = seen[time], (1 - seen[time] ** 2) ** 0.5
        return (share * latents - image) / rest

    *_, last = ddim(knows, start, steps)
    torch.testing.assert_close(last.latents, image, atol=1e-5, rtol=0)
    torch.testing.assert_close(last.clean, image, atol=1e-5, rtol=0)
    assert (last.index, last.of) == (20, 20)


def test_who_stops_listening_cancels() -> None:
    asked: list[float] = []

    def predict(latents: Tensor, time: float) -> Tensor:
        asked.append(time)
        return torch.zeros_like(latents)

    samples = ddim(predict, torch.randn(SHAPE), sat_steps(10, 4.0))
    assert asked == [], "nothing is computed before it is asked for"
    next(samples), next(samples)
    samples.close()
    assert asked == [999, 899]


def test_latents_that_are_no_numbers_name_the_dtype() -> None:
    def overflows(latents: Tensor, time: float) -> Tensor:
        return torch.full_like(latents, 1e6).half()

    with pytest.raises(InputError, match=r"no numbers after step 1 of 5: the model ran in torch.float16.*bfloat16"):
        list(ddim(overflows, torch.randn(SHAPE), sat_steps(5, 4.0)))


def test_guidance_moves_away_from_no_text() -> None:
    calls: list[int] = []

    def model(latents: Tensor, timestep: Tensor, text: Tensor, size: Tensor) -> Tensor:
        calls.append(len(latents))
        assert size.shape == (len(latents), 2) and timestep.tolist() == [7.0] * len(latents)
        return text.sum(dim=(1, 2)).view(-1, 1, 1, 1).expand_as(latents) + 1

    text, size = torch.ones(2, 3, 4), torch.zeros(2, 2)
    latents = torch.zeros(SHAPE)
    assert guided(model, text, 5.0, {"size": size})(latents, 7.0).unique().tolist() == [1 + 5 * 12]
    assert guided(model, text, 1, {"size": size})(latents, 7.0).unique().tolist() == [13]
    assert calls == [4, 2], "the text alone needs one forward"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"guidance": -1}, "guidance is -1; it must be a number of at least 0"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"guidance": "5"}, "guidance is '5'"),
        ({"seed": -1}, "seed is -1; it must be a whole number from 0"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"steps": 0}, "steps is 0; it must be a whole number from 1 to 1000"),
        ({"sampler": "sats"}, "sampler is 'sats'; allowed: sat, diffusers"),
    ],
)
def test_options_that_cannot_be(given: dict[str, object], message: str) -> None:
    with pytest.raises((InputError, ConfigError), match=message):
        DrawingOptions(**{"steps": 5, "guidance": 5.0, **given})


@pytest.mark.parametrize("prompt", ["", "  ", [], ["a", ""], None, 7, [1]])
def test_prompts_that_cannot_be(prompt: object) -> None:
    with pytest.raises(InputError, match="say what is to be seen"):
        check_prompts(prompt)
