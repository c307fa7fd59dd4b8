"""The flat decode step and its recorded form against a forward through the hooks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mixins.kv_cache import KVStore, kv_cache
from mixins.lora import apply_lora
from mixins.lora_settings import LoRASettings
from mixins.sat_compat import BaseMixin
from mixins.vision_expert_mlp import LlamaVisionExpertFCMixin
from sat_models.generation import graphs, stepper
from sat_models.generation.engine import Engine
from sat_models.generation.graphs import GraphedStep
from sat_models.generation.sampling import SamplingOptions
from sat_models.models.token_step import TokenStep
from sat_models.vlm import VLM
from sat_models.zoo import load_pretrained

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
QUESTIONS = ["Hello", "What would you say?", "Who are you, and what is it that you want from me?"]


def load(name: str = "cogvlm-mini", **options: Any) -> VLM:
    return load_pretrained(GOLDEN / name, device="cpu", dtype="float32", **options)


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return load()


def engine_of(vlm: VLM) -> Engine:
    return Engine(vlm.model, eos_id=-5, max_length=256, device="cpu")


def is_flat(vlm: VLM) -> bool:
    with engine_of(vlm).occupied() as step:
        return step._flat is not None


def prompts(vlm: VLM) -> list[Any]:
    picture = GOLDEN / "cogvlm-mini" / "image.png"
    return [vlm.processor(picture if n % 2 else None, text, version="chat") for n, text in enumerate(QUESTIONS)]


def answers(vlm: VLM) -> tuple[list[Tensor], list[list[int]]]:
    """Logits of all steps, and ids: one answer after the other, then all together."""
    seen: list[Tensor] = []
    call = stepper.Stepper.__call__

    def spy(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(call(self, *args, **kwargs).clone())
        return seen[-1]

    options, engine = SamplingOptions(max_new_tokens=24), engine_of(vlm)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stepper.Stepper, "__call__", spy)
        ids = [list(engine.tokens(prompt, options)) for prompt in prompts(vlm)]
        ids += [row.token_ids for row in engine.batch(prompts(vlm), options)]
    return seen, ids


def through_hooks(vlm: VLM) -> tuple[list[Tensor], list[list[int]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenStep, "of", lambda model: None)
        return answers(vlm)


def adapt(vlm: VLM) -> None:
    apply_lora(vlm.model, LoRASettings(targets=("transformer.layers.*", "mixins.mlp.*"), rank=2, seed=1))
    with torch.no_grad():
        for name, parameter in vlm.model.named_parameters():
            if "matrix_B" in name:
                parameter.normal_(std=0.05)


@pytest.mark.parametrize("kind", ["plain", "with LoRA", "8 bits", "bf16"])
def test_gives_what_the_hooks_give(kind: str) -> None:
    if kind == "bf16":
        vlm = load_pretrained(GOLDEN / "cogvlm-mini", device="cpu", dtype="bfloat16")
    else:
        vlm = load(quant=8 if kind == "8 bits" else None)
    if kind == "with LoRA":
        adapt(vlm)
    assert is_flat(vlm)
    flat, ids = answers(vlm)
    hooked, wanted = through_hooks(vlm)
    assert ids == wanted
    for a, b in zip(flat, hooked, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5 if kind != "bf16" else 0.07, rtol=0)


class LouderMlp(LlamaVisionExpertFCMixin):
    """Another MLP of the same layout."""

    def mlp_forward(self, hidden_states: Tensor, **kw: Any) -> Tensor:
        return 2 * super().mlp_forward(hidden_states, **kw)


class QuietLayer(BaseMixin):
    def layer_forward(self, hidden_states: Tensor, mask: Tensor, *args: Any, **kw: Any) -> Tensor:
        return hidden_states


def exchange_mlp(model: Any) -> None:
    config = model.config
    model.replace_mixin("mlp", LouderMlp(config.hidden_size, config.inner_hidden_size, config.num_layers))


def listen(model: Any) -> None:
    model.transformer.layers[0].attention.register_forward_hook(lambda *args: None)


def exchange_forward(model: Any) -> None:
    forward = model.forward
    model.forward = lambda *args, **kwargs: forward(*args, **kwargs)


@pytest.mark.parametrize(
    "change",
    [exchange_mlp, lambda model: model.add_mixin("quiet", QuietLayer()), listen, exchange_forward],
    ids=["mlp", "layer", "hook", "forward"],
)
def test_a_changed_model_is_decoded_through_its_hooks(change: Callable[[Any], None]) -> None:
    vlm = load()
    change(vlm.model)
    assert not is_flat(vlm)
    assert len(list(engine_of(vlm).tokens(prompts(vlm)[0], SamplingOptions(max_new_tokens=3)))) == 3


def test_who_listens_from_the_middle_of_an_answer_is_heard(vlm: VLM) -> None:
    stream, heard = engine_of(vlm).tokens(prompts(vlm)[0], SamplingOptions(max_new_tokens=6)), []
    first = [next(stream), next(stream)]
    handle = vlm.model.transformer.layers[1].register_forward_pre_hook(lambda module, args: heard.append(module))
    rest = list(stream)
    handle.remove()
    assert len(heard) == len(rest) == 4
    assert first + rest == list(engine_of(vlm).tokens(prompts(vlm)[0], SamplingOptions(max_new_tokens=6)))


def test_models_with_other_layers_keep_their_hooks() -> None:
    assert not is_flat(load("cogagent-mini"))
    assert not is_flat(load("visualglm-mini"))


class TestRecorded:
    """`record` without a GPU: what was launched once is run again each time, on the same buffers."""

    @staticmethod
    def made(monkeypatch: pytest.MonkeyPatch, record: Any) -> None:
        of = TokenStep.of

        def recorded(model: Any) -> GraphedStep | None:
            step = of(model)
            return step and GraphedStep(step, record)

        monkeypatch.setattr(TokenStep, "of", recorded)
        monkeypatch.setattr(graphs, "BUCKET", 8)

    def test_gives_what_the_step_gives(self, vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
        plain, wanted = answers(vlm)
        recordings, replays = itertools.count(), itertools.count()

        def record(action: Callable[[], None]) -> Callable[[], None]:
            next(recordings)
            return lambda: (next(replays), action())

        self.made(monkeypatch, record)
        logits, ids = answers(vlm)
        assert ids == wanted
        for a, b in zip(logits, plain, strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=0)
        made, run = next(recordings), next(replays)
        assert made >= 8, "one for each bucket of each answer"
        assert made < run / 2, "most steps come from a recording that was there"

    def test_a_mask_hides_nothing_from_the_step_behind_it(self, vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
        """Rows come and go in a lane, and with them the mask; a recording outlives that."""
        monkeypatch.setattr(graphs, "BUCKET", 64)
        layers = len(vlm.model.transformer.layers)
        with torch.inference_mode(), kv_cache(vlm.model, 0):
            plain = TokenStep.of(vlm.model)
            logits = []
            for step in (plain, GraphedStep(plain, lambda action: action)):
                store, found = KVStore(layers, 64), []
                for place in range(8):
                    hidden = torch.arange(place + 1)[None, None, None] > 1
                    mask = hidden if place in (4, 5) else None
                    ids, at = torch.tensor([5 + place]), torch.tensor([[place]])
                    through = step if place else plain  # a prompt has filled the cache before the first step
                    found.append(through(ids, at, store, mask, max_position=place).clone())
                    store.advance(1)
                logits.append(found)
        for a, b in zip(*logits, strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=0)

    def test_what_cannot_be_recorded_runs_as_it_is(
        self, vlm: VLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        wanted = answers(vlm)[1]

        def record(action: Callable[[], None]) -> Callable[[], None]:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

        self.made(monkeypatch, record)
        assert answers(vlm)[1] == wanted
        said = [entry.getMessage() for entry in caplog.records if "without CUDA graphs" in entry.getMessage()]
        assert said[0].endswith("slower: operation not permitted when stream is capturing")
        assert len(said) == 4, "once for each answer, and once for the batch"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_graphs_on_a_gpu_give_the_same_tokens() -> None:
    vlm = load_pretrained(GOLDEN / "cogvlm-mini", device="cuda", dtype="float32")
    options, found = SamplingOptions(max_new_tokens=64), []
    for with_graphs in (True, False):
        engine = Engine(vlm.model, eos_id=-5, max_length=256, device="cuda", graphs=with_graphs)
        found.append([list(engine.tokens(prompt, options)) for prompt in prompts(vlm)])
    assert found[0] == found[1]
