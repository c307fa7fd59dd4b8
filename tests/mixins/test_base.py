"""Adding, deleting and replacing mixins: what is refused, and that a refusal changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

from mixins.base import ZooModel
from mixins.sat_compat import HOOKS_DEFAULT, BaseMixin, BaseTransformer, non_conflict
from sat_models import runtime


class MLPHook(BaseMixin):
    """A hook that stands alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(2, 2)

    def mlp_forward(self, hidden_states: Tensor, **kw: Any) -> Tensor:
        return hidden_states


class LayerHook(BaseMixin):
    def layer_forward(self, hidden_states: Tensor, mask: Tensor, **kw: Any) -> Tensor:
        return hidden_states


class Misspelt(BaseMixin):
    def mlp_foward(self, hidden_states: Tensor, **kw: Any) -> Tensor:
        return hidden_states


class Invented(BaseMixin):
    def norm_forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states


class WithHelpers(MLPHook):
    """Private helpers, and public ones whose names resemble no hook."""

    size = property(lambda self: 2)

    def _project_forward(self) -> None: ...

    def encode_images(self) -> None: ...

    def reinit(self, parent_model: nn.Module | None = None) -> None: ...


class Plain:
    def atention_fn(self) -> None: ...


class FromPlain(BaseMixin, Plain): ...


class NoOldImpl(BaseMixin):
    """`non_conflict` without `old_impl`, which SAT refuses while it collects hooks."""

    @non_conflict
    def attention_fn(self, q: Tensor) -> Tensor:
        return q


class ReinitFails(LayerHook):
    def reinit(self, parent_model: nn.Module | None = None) -> None:
        raise RuntimeError("no weights to start from")


@pytest.fixture
def model() -> ZooModel:
    """One layer with the mixins "mlp" and "extra"."""
    runtime.init_model_parallel(1)
    transformer = BaseTransformer(
        num_layers=1, vocab_size=8, hidden_size=4, num_attention_heads=1, max_sequence_length=4
    )
    model = ZooModel(None, transformer=transformer)
    model.add_mixin("mlp", MLPHook())
    model.add_mixin("extra", BaseMixin())
    return model


def state(model: ZooModel) -> tuple[Any, ...]:
    """Everything that a refused change must leave alone."""
    return (
        [(name, id(mixin)) for name, mixin in model.mixins.items()],
        {name: repr(hook) for name, hook in model.hooks.items()},
        dict(model.hook_origins),
        [name for name, _ in model.named_parameters()],
        id(model.mixins),
    )


def test_a_misspelt_hook_is_refused_with_the_nearest_name(model: ZooModel) -> None:
    before = state(model)
    with pytest.raises(AttributeError) as caught:
        model.add_mixin("new", Misspelt())
    message = str(caught.value)
    assert message.startswith("Misspelt.mlp_foward looks like a hook, but SAT has no hook of that name")
    assert "Did you mean 'mlp_forward'?" in message
    assert all(hook in message for hook in HOOKS_DEFAULT)
    assert state(model) == before


def test_a_name_that_ends_like_a_hook_is_refused_without_a_guess(model: ZooModel) -> None:
    with pytest.raises(AttributeError, match=r"Invented\.norm_forward .* starts with '_'") as caught:
        model.add_mixin("new", Invented())
    assert "Did you mean" not in str(caught.value)


def test_a_misspelt_hook_is_found_in_every_base_class(model: ZooModel) -> None:
    with pytest.raises(AttributeError, match="Did you mean 'attention_fn'"):
        model.add_mixin("new", FromPlain())


def test_a_misspelt_hook_of_a_model_is_refused() -> None:
    class MisspeltModel(ZooModel):
        def final_foward(self, logits: Tensor, **kw: Any) -> Tensor:
            return logits

    with pytest.raises(AttributeError, match=r"MisspeltModel\.final_foward .*Did you mean 'final_forward'"):
        MisspeltModel(None, transformer=nn.Identity())


def test_helpers_are_allowed(model: ZooModel) -> None:
    model.del_mixin("mlp")
    model.add_mixin("mlp", WithHelpers())
    assert model.hook_origins["mlp_forward"] == "mlp"


@pytest.mark.parametrize(
    ("name", "make", "error", "message"),
    [
        ("mlp", LayerHook, KeyError, r"mixin 'mlp' is already there; use replace_mixin\('mlp', …\) or del_mixin"),
        ("new", lambda: nn.Linear(2, 2), TypeError, "mixin 'new' must be a BaseMixin, got Linear"),
        ("new", MLPHook, ValueError, "Hook mlp_forward conflicts at new and mlp"),
        ("new", NoOldImpl, ValueError, "must accept old_impl"),
    ],
    ids=["duplicate", "wrong type", "conflict", "no old_impl"],
)
def test_a_refused_mixin_changes_nothing(
    model: ZooModel, name: str, make: Any, error: type[Exception], message: str
) -> None:
    before = state(model)
    with pytest.raises(error, match=message):
        model.add_mixin(name, make())
    assert state(model) == before


def test_a_mixin_whose_reinit_fails_changes_nothing(model: ZooModel) -> None:
    before = state(model)
    with pytest.raises(RuntimeError, match="no weights to start from"):
        model.add_mixin("new", ReinitFails(), reinit=True)
    assert state(model) == before


def test_deleting_what_is_not_there_lists_what_is(model: ZooModel) -> None:
    before = state(model)
    with pytest.raises(KeyError, match="no mixin 'eva' to delete; the model has: mlp, extra"):
        model.del_mixin("eva")
    assert state(model) == before


def test_add_and_delete(model: ZooModel) -> None:
    before = state(model)
    model.add_mixin("layer", LayerHook())
    assert list(model.mixins) == ["mlp", "extra", "layer"]
    assert set(model.hooks) == {"mlp_forward", "layer_forward"}
    model.del_mixin("layer")
    assert state(model) == before


def test_replacing_is_deleting_and_adding(model: ZooModel) -> None:
    new = WithHelpers()
    model.replace_mixin("mlp", new)
    assert model.get_mixin("mlp") is new
    assert list(model.mixins) == ["extra", "mlp"]
    assert new.transformer is model.transformer


@pytest.mark.parametrize(
    ("name", "make", "error"),
    [
        ("mlp", Misspelt, AttributeError),
        ("mlp", lambda: nn.Linear(2, 2), TypeError),
        ("mlp", NoOldImpl, ValueError),
        ("extra", MLPHook, ValueError),
        ("eva", MLPHook, KeyError),
    ],
)
def test_a_replacement_that_is_refused_leaves_the_old_one(
    model: ZooModel, name: str, make: Any, error: type[Exception]
) -> None:
    before = state(model)
    with pytest.raises(error):
        model.replace_mixin(name, make())
    assert state(model) == before
