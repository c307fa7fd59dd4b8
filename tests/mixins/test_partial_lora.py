"""The mixin "plora": image tokens take a low-rank product besides, all others nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixins.kv_cache import kv_cache
from mixins.partial_lora import PartialLoRAMixin
from sat_models import runtime
from sat_models.config import LLaMAConfig
from sat_models.generation.steps.choose import Stepper
from sat_models.models.common.llama import LLaMAModel

CONFIG = LLaMAConfig(
    num_layers=2, hidden_size=16, num_attention_heads=4, num_kv_heads=2, inner_hidden_size=24, vocab_size=32,
    max_sequence_length=32,
)  # fmt: skip
SCALE = 2.0


@pytest.fixture
def model() -> LLaMAModel:
    runtime.init_model_parallel(1)
    torch.manual_seed(0)
    made = LLaMAModel(CONFIG)
    made.add_mixin(
        "plora",
        PartialLoRAMixin(
            CONFIG.num_layers, CONFIG.hidden_size, CONFIG.inner_hidden_size, CONFIG.heads,
            rank=3, qkv_rank=2, qkv_scale=SCALE,
        ),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    return made.eval()


def logits_of(model: LLaMAModel, ids: Tensor, mask: Tensor | None) -> Tensor:
    with torch.inference_mode():
        return model(ids, added=model.get_mixin("plora").adding(mask))[0]


def merged(model: LLaMAModel) -> LLaMAModel:
    """A plain LLaMA whose weights hold the products, as if every token were an image's."""
    plain = LLaMAModel(CONFIG).eval()
    own = model.state_dict()
    plain.load_state_dict({name: value for name, value in own.items() if "plora" not in name})
    plora = model.get_mixin("plora")
    with torch.no_grad():
        for number, layer in enumerate(plain.transformer.layers):
            linears = {
                "query_key_value": layer.attention.query_key_value, "dense": layer.attention.dense,
                "gate_proj": plain.get_mixin("mlp").gate_proj[number], "dense_h_to_4h": layer.mlp.dense_h_to_4h,
                "dense_4h_to_h": layer.mlp.dense_4h_to_h,
            }  # fmt: skip
            for name, linear in linears.items():
                product = getattr(plora, name)[number]
                scale = SCALE if name == "query_key_value" else 1.0
                linear.weight.add_(scale * product.B.weight @ product.A.weight)
    return plain


def test_where_all_tokens_are_an_images_the_products_are_in_every_linear(model: LLaMAModel) -> None:
    ids = torch.arange(3, 10)[None]
    found = logits_of(model, ids, torch.ones_like(ids))
    with torch.inference_mode():
        torch.testing.assert_close(found, merged(model)(ids)[0], atol=1e-5, rtol=0)


def test_text_costs_nothing_and_is_a_plain_llama(model: LLaMAModel) -> None:
    ids = torch.arange(3, 10)[None]
    assert model.get_mixin("plora").adding(None) is None
    assert model.get_mixin("plora").adding(torch.zeros_like(ids)) is None
    plain = LLaMAModel(CONFIG).eval()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "plora" not in name})
    with torch.inference_mode():
        assert logits_of(model, ids, None).equal(plain(ids)[0])


def test_tokens_before_an_image_do_not_see_it_and_rows_may_differ(model: LLaMAModel) -> None:
    ids = torch.arange(3, 13)[None]
    text, mask = logits_of(model, ids, None), torch.zeros_like(ids)
    mask[0, 4:7] = 1
    image = logits_of(model, ids, mask)
    assert image[:, :4].allclose(text[:, :4], atol=1e-6) and not image[:, 4:].allclose(text[:, 4:], atol=1e-2)
    other = torch.zeros_like(ids)
    other[0, [1, 8]] = 1  # two images of a token each, elsewhere: places are listed, not cut out
    both = logits_of(model, ids.expand(2, -1), torch.cat((mask, other)))
    torch.testing.assert_close(both[:1], image, atol=1e-5, rtol=0)
    torch.testing.assert_close(both[1:], logits_of(model, ids, other), atol=1e-5, rtol=0)


def test_every_matrix_gets_a_gradient(model: LLaMAModel) -> None:
    ids, mask = torch.arange(3, 10)[None], torch.tensor([[0, 1, 1, 0, 0, 0, 0]])
    model(ids, added=model.get_mixin("plora").adding(mask))[0].square().mean().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.get_mixin("plora").parameters())


def test_decoding_goes_past_it(model: LLaMAModel) -> None:
    with kv_cache(model, 8) as cache:
        assert Stepper(model, cache).way in ("TokenStep", "KernelStep")
