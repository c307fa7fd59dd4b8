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
from mixins.text_token import AttentionPart, stands_for
from mixins.vision_expert_attention import LlamaVisionExpertAttnMixin
from mixins.vision_expert_mlp import LlamaVisionExpertFCMixin
from sat_models.generation.answer import Request
from sat_models.generation.engine import Engine
from sat_models.generation.sampling import SamplingOptions
from sat_models.generation.steps import choose as stepper
from sat_models.generation.steps import graphs
from sat_models.generation.steps.flat import TokenStep
from sat_models.generation.steps.graphs import GraphedStep
from sat_models.generation.steps.kernels import KernelStep
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

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
    image = GOLDEN / "cogvlm-mini" / "image.png"
    return [vlm.processor(image if n % 2 else None, text, version="chat") for n, text in enumerate(QUESTIONS)]


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
        ids += [row.token_ids for row in engine.answers([Request(p, options) for p in prompts(vlm)])]
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


@pytest.mark.parametrize("kind", ["plain", "without kernels", "with LoRA", "8 bits", "bf16"])
def test_gives_what_the_hooks_give(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind in ("without kernels", "bf16"):  # the kernels round bf16 elsewhere: `test_token_kernels.py`
        monkeypatch.setattr(KernelStep, "of", lambda step: None)
    if kind == "bf16":
        vlm = load_pretrained(GOLDEN / "cogvlm-mini", device="cpu", dtype="bfloat16")
    else:
        # Roundings in between would make much of little: the hooks know the whole output projection only.
        eight = {"quant": 8, "quant_head": False, "cache": "model"}
        vlm = load(**(eight if kind == "8 bits" else {}))
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


class OtherValues(LlamaVisionExpertAttnMixin):
    """The code that the hook calls is relied upon too."""

    def _project_qkv(self, hidden_states: Tensor, **kw: Any) -> Tensor:
        return super()._project_qkv(hidden_states, **kw)


class OtherValuesThatSaySo(OtherValues):
    @stands_for("attention_forward", "_rotate", "_project_qkv", "_project_out")
    def text_token(self, layer_id: int) -> AttentionPart:
        return super().text_token(layer_id)


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


@pytest.mark.parametrize(
    "kind, flat", [(LlamaVisionExpertAttnMixin, True), (OtherValues, False), (OtherValuesThatSaySo, True)]
)
def test_a_mixin_says_what_a_token_of_text_passes(kind: type[LlamaVisionExpertAttnMixin], flat: bool) -> None:
    """A class that overrides what the answer of another one stands for is taken at its own word, or not at all."""
    vlm = load()
    config = vlm.config
    vlm.model.replace_mixin("rotary", kind(config.hidden_size, config.heads, config.num_layers))
    assert is_flat(vlm) == flat
    vlm.model.get_mixin("rotary")._project_out = lambda context, **kw: context
    assert not is_flat(vlm), "a method of the object itself"


def test_who_listens_from_the_middle_of_an_answer_is_heard(vlm: VLM) -> None:
    stream, heard = engine_of(vlm).tokens(prompts(vlm)[0], SamplingOptions(max_new_tokens=6)), []
    first = [next(stream), next(stream)]
    handle = vlm.model.transformer.layers[1].register_forward_pre_hook(lambda module, args: heard.append(module))
    rest = list(stream)
    handle.remove()
    assert len(heard) == len(rest) == 4
    assert first + rest == list(engine_of(vlm).tokens(prompts(vlm)[0], SamplingOptions(max_new_tokens=6)))


def step_of(vlm: VLM) -> Any:
    with engine_of(vlm).occupied() as step:
        return step._flat


def test_what_waits_for_the_host_is_not_recorded(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(stepper, "_is_on_gpu", lambda model: True)
    assert type(step_of(vlm)) is GraphedStep
    assert type(step_of(load(quant=4))) is GraphedStep
    assert type(step_of(load(quant=8))) is TokenStep
    vision_only = load(quant=8, quant_skip=["transformer.*", "mixins.mlp.*", "mixins.rotary.*"])
    assert type(step_of(vision_only)) is GraphedStep


def test_models_with_other_layers_keep_their_hooks() -> None:
    assert not is_flat(load("cogagent-mini"))
    assert not is_flat(load("visualglm-mini"))


class TestRecorded:
    """`record` without a GPU: what was launched once is run again each time, on the same buffers."""

    @staticmethod
    def made(monkeypatch: pytest.MonkeyPatch, record: Any, patience: int = 2) -> None:
        of = TokenStep.of

        def recorded(model: Any) -> GraphedStep | None:
            step = of(model)
            return step and GraphedStep(step, record)

        monkeypatch.setattr(TokenStep, "of", recorded)
        monkeypatch.setattr(KernelStep, "of", lambda step: None)
        monkeypatch.setattr(graphs, "BUCKET", 8)
        monkeypatch.setattr(graphs, "RECORD_AFTER", patience)

    def test_gives_what_the_step_gives(self, vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
        plain, wanted = answers(vlm)
        recordings, replays = itertools.count(), itertools.count()

        def record(action: Callable[[], None], device: torch.device) -> Callable[[], None]:
            assert device == torch.device("cpu")
            next(recordings)
            action()  # as on a GPU, to warm it up; twice is once
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
        self.compare(vlm, monkeypatch, masked=(4, 5))

    @pytest.mark.parametrize("masked", [range(8), (), (3, 4), (5,), (6, 7)])
    def test_a_store_that_was_set_back_shows_nothing_of_before(
        self, vlm: VLM, monkeypatch: pytest.MonkeyPatch, masked: Any
    ) -> None:
        """A lane drops the padding that its rows share, and goes on in the same memory and the same recording."""
        self.compare(vlm, monkeypatch, masked=masked, set_back=5)

    @staticmethod
    def compare(vlm: VLM, monkeypatch: pytest.MonkeyPatch, masked: Any, set_back: int | None = None) -> None:
        """Eight steps, those of `masked` without the first two columns, with the store shifted before one of them."""
        monkeypatch.setattr(graphs, "BUCKET", 64)
        monkeypatch.setattr(graphs, "RECORD_AFTER", 2)
        layers, recordings = len(vlm.model.transformer.layers), itertools.count()

        def record(action: Callable[[], None], device: torch.device) -> Callable[[], None]:
            next(recordings)
            return action

        with torch.inference_mode(), kv_cache(vlm.model, 0):
            plain = TokenStep.of(vlm.model)
            logits = []
            for step in (plain, GraphedStep(plain, record)):
                store, found = KVStore(layers, 64), []
                for place in range(8):
                    if place == set_back:
                        store.shift(-3)
                    mask = torch.arange(store.length + 1)[None, None, None] > 1 if place in masked and place else None
                    ids, at = torch.tensor([5 + place]), torch.tensor([[place]])
                    through = step if place else plain  # a prompt has filled the cache before the first step
                    found.append(through(ids, at, store, mask, max_position=place).clone())
                    store.advance(1)
                logits.append(found)
        assert next(recordings) == 1, "all from one recording"
        for a, b in zip(*logits, strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=0)

    def test_short_answers_are_not_recorded(self, vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
        recordings = itertools.count()

        def record(action: Callable[[], None], device: torch.device) -> Callable[[], None]:
            next(recordings)
            return action

        self.made(monkeypatch, record, graphs.RECORD_AFTER)
        monkeypatch.setattr(graphs, "BUCKET", 64)
        list(engine_of(vlm).tokens(prompts(vlm)[0], SamplingOptions(max_new_tokens=8)))  # a prompt and 7 steps
        assert next(recordings) == 0
        list(engine_of(vlm).tokens(prompts(vlm)[0], SamplingOptions(max_new_tokens=16)))
        assert next(recordings) == 2, "the number before, and one recording"

    def test_keeps_the_rotary_table_that_was_recorded(self, vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(graphs, "BUCKET", 64)
        monkeypatch.setattr(graphs, "RECORD_AFTER", 1)
        rotary, read = vlm.model.get_mixin("rotary").rotary_emb, []
        of = rotary.rows

        def rows(position_ids: Tensor, max_position: int) -> Any:
            read.append(rotary.table(max_position + 1)[0].data_ptr())
            return of(position_ids, max_position)

        def record(action: Callable[[], None], device: torch.device) -> Callable[[], None]:
            with monkeypatch.context() as patch:
                patch.setattr(rotary, "rows", rows)
                action()
            return action

        with torch.inference_mode(), kv_cache(vlm.model, 0):
            step, store = GraphedStep(TokenStep.of(vlm.model), record), KVStore(len(vlm.model.transformer.layers), 64)
            TokenStep.of(vlm.model)(torch.tensor([5]), torch.tensor([[0]]), store, None, max_position=0)
            store.advance(1)
            step(torch.tensor([5]), torch.tensor([[1]]), store, None, max_position=63)
            assert read == [step._recording._table[0].data_ptr()] == [rotary._table[0].data_ptr()]
            assert len(step._recording._table[0]) > 64, "as far as the key reaches"
            rotary.table(3 * len(rotary._table[0]))
            assert step._recording._table[0].data_ptr() == read[0] != rotary._table[0].data_ptr()

    def test_what_cannot_be_recorded_runs_as_it_is(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        vlm = load()
        wanted = answers(vlm)[1]
        tries: list[torch.device] = []

        def record(action: Callable[[], None], device: torch.device) -> Callable[[], None]:
            tries.append(device)
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

        self.made(monkeypatch, record)
        assert answers(vlm)[1] == wanted
        said = [entry.getMessage() for entry in caplog.records if "without CUDA graphs" in entry.getMessage()]
        assert said[0].endswith("slower: operation not permitted when stream is capturing")
        assert len(said) == len(tries) == 1, "once for the model, in whatever answer"
        assert answers(load())[1] == wanted
        assert len(tries) == 2, "another model is tried for itself"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_graphs_on_a_gpu_give_the_same_tokens() -> None:
    vlm = load_pretrained(GOLDEN / "cogvlm-mini", device="cuda", dtype="float32")
    options, found = SamplingOptions(max_new_tokens=64), []
    for with_graphs in (True, False):
        engine = Engine(vlm.model, eos_id=-5, max_length=256, device="cuda", graphs=with_graphs)
        found.append([list(engine.tokens(prompt, options)) for prompt in prompts(vlm)])
    assert found[0] == found[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_goes_on_after_a_recording_that_failed() -> None:
    device, before = torch.device("cuda", 0), torch.cuda.current_stream()
    ones = torch.ones(4, device=device)
    with pytest.raises(RuntimeError, match="captur"):
        graphs.record_on_gpu(lambda: ones.sum().item(), device)
    assert torch.cuda.current_stream() == before
    assert torch.rand(3, device=device).isfinite().all(), "random numbers are drawn"
    run = graphs.record_on_gpu(lambda: ones.mul_(2), device)  # runs it once
    run()
    assert ones.tolist() == [4.0] * 4
