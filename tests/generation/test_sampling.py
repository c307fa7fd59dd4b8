"""Choosing tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sat_models.errors import InputError
from sat_models.generation.sampling import NO_TOKEN, SamplingOptions, sample

LOGITS = torch.tensor([[0.0, 3.0, 1.0, 2.0, -1.0]])


def _draws(options: SamplingOptions, logits: torch.Tensor = LOGITS, count: int = 300) -> set[int]:
    generator = options.make_generator("cpu")
    return {int(sample(logits, options, generator)) for _ in range(count)}


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "top_k": 1}, {"temperature": 1.0, "top_p": 0.0}])
def test_greedy_takes_the_likeliest(options: dict[str, Any]) -> None:
    chosen = SamplingOptions(**options)
    assert chosen.greedy
    assert chosen.make_generator("cpu") is None
    assert sample(LOGITS, chosen).tolist() == [1]


def test_top_k_keeps_the_k_likeliest() -> None:
    assert _draws(SamplingOptions(temperature=2.0, top_k=2, seed=0)) == {1, 3}
    assert _draws(SamplingOptions(temperature=5.0, top_k=99, seed=0)) == {0, 1, 2, 3, 4}


def test_top_p_keeps_the_likeliest_mass() -> None:
    # probabilities at temperature 1: 0.64 (1), 0.24 (3), 0.09 (2), 0.03 (0), 0.01 (4)
    assert _draws(SamplingOptions(temperature=1.0, top_p=0.5, seed=0)) == {1}
    assert _draws(SamplingOptions(temperature=1.0, top_p=0.7, seed=0)) == {1, 3}
    assert _draws(SamplingOptions(temperature=1.0, top_p=0.9, seed=0)) == {1, 2, 3}


def test_top_k_comes_before_top_p() -> None:
    # among the two left, token 1 has 0.73: within 0.72 it is alone, though of all five it would have 0.64
    assert _draws(SamplingOptions(temperature=1.0, top_k=2, top_p=0.72, seed=0)) == {1}


def test_frequencies_follow_the_probabilities() -> None:
    options = SamplingOptions(temperature=0.5, seed=3)
    generator = options.make_generator("cpu")
    drawn = sample(LOGITS.expand(20000, -1), options, generator)
    found = torch.bincount(drawn, minlength=5) / 20000
    assert torch.allclose(found, (LOGITS[0] / 0.5).softmax(-1), atol=0.02)


def test_a_seed_reproduces_and_the_global_generator_is_untouched() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    options = SamplingOptions(temperature=1.0, seed=11)
    logits = torch.linspace(0, 1, 50).expand(64, -1)
    first = sample(logits, options, options.make_generator("cpu"))
    assert torch.equal(first, sample(logits, options, options.make_generator("cpu")))
    fresh = SamplingOptions(temperature=1.0)
    assert not torch.equal(
        sample(logits, fresh, fresh.make_generator("cpu")), sample(logits, fresh, fresh.make_generator("cpu"))
    )
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1.0, 1e30])
def test_extremes_give_tokens(dtype: torch.dtype, temperature: float) -> None:
    logits = torch.tensor([[6e4, -6e4, float("-inf"), 0.0], [-6e4, float("-inf"), -6e4, -6e4]]).to(dtype)
    options = SamplingOptions(temperature=temperature, top_p=0.99, seed=0)
    token = sample(logits, options, options.make_generator("cpu"))
    assert all(0 <= t < 4 for t in token.tolist())
    assert token[0] != 2
    assert token[1] != 1


def test_rows_that_are_no_numbers_are_marked_and_others_are_not() -> None:
    nan, inf = float("nan"), float("inf")
    rows = torch.tensor([[nan, 1.0, 2.0], [inf, 1.0, 2.0], [-inf, -inf, -inf], [-inf, 1.0, 2.0]])
    assert sample(rows, SamplingOptions()).tolist() == [NO_TOKEN] * 3 + [2]
    drawing = SamplingOptions(temperature=0.01, top_p=0.9, seed=0)
    assert sample(rows, drawing, drawing.make_generator("cpu")).tolist() == [NO_TOKEN] * 3 + [2]


def test_repetition_penalty() -> None:
    history = torch.tensor([[1, 1, 3]])
    assert sample(LOGITS, SamplingOptions(repetition_penalty=4.0), history=history).tolist() == [2]
    negative = torch.tensor([[-1.0, -1.5]])
    assert sample(negative, SamplingOptions(repetition_penalty=2.0), history=torch.tensor([[0]])).tolist() == [1]
    assert sample(LOGITS, SamplingOptions(repetition_penalty=4.0), history=torch.zeros(1, 0).long()).tolist() == [1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", float("nan")), ("temperature", float("inf")), ("temperature", "hot"),
        ("top_p", 1.1), ("top_p", -0.1), ("top_p", None), ("top_k", -1), ("top_k", 2.0), ("top_k", True),
        ("max_new_tokens", 0), ("max_new_tokens", 1.5), ("max_length", 0), ("seed", "x"), ("seed", 2**63),
        ("repetition_penalty", 0.0), ("repetition_penalty", float("inf")),
    ],
)  # fmt: skip
def test_bad_options_name_value_and_rule(name: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        SamplingOptions(**{name: value})
    assert str(caught.value).startswith(f"{name} is {value!r}; it must be a ")


def test_numbers_of_numpy_are_numbers() -> None:
    given = {"max_new_tokens": np.int64(3), "top_k": np.uint8(2), "seed": np.int32(7), "temperature": np.float32(0.5)}
    assert SamplingOptions(**given) == SamplingOptions(max_new_tokens=3, top_k=2, seed=7, temperature=0.5)
    assert type(SamplingOptions(**given).seed) is int and SamplingOptions(**given).make_generator("cpu") is not None
    for bad in ({"top_k": np.float64(2.0)}, {"temperature": np.float64("nan")}, {"seed": np.bool_(True)}):
        with pytest.raises(InputError, match=next(iter(bad))):
            SamplingOptions(**bad)
