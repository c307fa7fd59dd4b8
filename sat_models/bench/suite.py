"""Speed and memory of one model, beside the stock path on the same weights and the floors of this machine.

Every figure is a median over repeats, taken in turns (ours, stock, ours, …), so that a machine that is busy with other
things changes ratios little. `Bench.run` gives a list of rows; `bench_report` prints and draws them.
"""

from __future__ import annotations

import gc
import itertools
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from mixins.base import ZooModel
from mixins.lora import apply_lora
from mixins.lora_settings import LoRASettings
from sat_models import runtime
from sat_models.bench.profile import Part, profiled
from sat_models.bench.random_models import Floors, prompt_of
from sat_models.bench.rows import (
    CLOCKS,
    BenchSettings,
    Row,
    failed_row,
    make_row,
    milliseconds,
    rate,
    steps_of,
)
from sat_models.bench.stock import StockModel, stock_tokens
from sat_models.checkpoint.memory import forget_peak, process_bytes
from sat_models.errors import InputError
from sat_models.generation.answer import Request
from sat_models.generation.engine import Engine
from sat_models.generation.sampling import SamplingOptions
from sat_models.generation.steps.graphs import RECORD_AFTER
from sat_models.models.cogvlm.model import CogVLMModel
from sat_models.processing.inputs import VLMInputs

logger = logging.getLogger(__name__)

_PROFILED = 16
"""Steps whose kernels are counted."""
_LINES = 12
"""Of a profile; what is left shares one."""
_NO_END = -5  # an end token that no vocabulary has: answers have the length that was asked for


class Bench:
    """Measures one model.

    Args:
        make_model: gives a CogVLM or CogAgent with the same weights each time; called again after the model was
            changed. For models without a stock form that column stays empty.
        settings: what.
        device: where the model lies.
    """

    def __init__(
        self, make_model: Callable[[int | None], ZooModel], settings: BenchSettings, device: torch.device
    ) -> None:
        self.make_model, self.settings, self.device = make_model, settings, device
        self.rows: list[Row] = []
        self._now, self._start = CLOCKS[settings.clock], time.perf_counter()
        self._take(make_model(settings.quant))
        self.floors = Floors.measure(self.model, device, self._now)

    def _take(self, model: ZooModel) -> None:
        self.model = model
        common = {"eos_id": _NO_END, "max_length": 2**30, "device": self.device}
        self._engine, *self._others = (Engine(model, kernels=name, **common) for name in (None, *self.settings.kernels))
        self._stock = self.settings.stock and type(model) is CogVLMModel

    @property
    def decode_step(self) -> str:
        """The way that decoding takes."""
        return self._engine.way

    def _ways(self) -> Iterator[tuple[str, Engine]]:
        """The usual one, and those with other kernels, with what their lines add."""
        return itertools.chain([("", self._engine)], ((f", through {other.way}", other) for other in self._others))

    def run(self) -> list[dict[str, Any]]:
        """All cases; those that change the model come last, and quantising takes a fresh one."""
        steps: dict[str, Callable[[], Iterator[Row]]] = {
            "vision": self._vision, "prefill": self._prefill, "decode": self._decode, "batch": self._batch,
            "profile": self._profile, "train": self._train, "quant": self._quant,
        }  # fmt: skip
        for case, measure in steps.items():
            if case not in self.settings.cases:
                continue
            spent = time.perf_counter() - self._start
            if self.settings.seconds is not None and spent > self.settings.seconds:
                self.rows.append(Row(case, "", None, "", note=f"not begun: {spent:.0f} s were spent"))
                continue
            self._collect()
            try:
                for row in measure():
                    self.rows.append(row)
                    logger.info("%s %s: %.4g %s", row.case, row.what, row.value or 0, row.unit)
            except Exception as error:  # out of memory, a missing package: the other cases still count
                self.rows.append(failed_row(case, "", error))
        return [asdict(row) for row in self.rows]

    def _vision(self) -> Iterator[Row]:
        pixels, peaks = self._prompt(0, True).vision_image, []
        with torch.inference_mode(), self._peak(peaks):
            seconds = self._timed(lambda: self.model.get_mixin("eva").encode_images(pixels))
        yield make_row("vision", "one picture", 1e3 * seconds, "ms", floor=1e3 * self.floors.vision, peaks=peaks)

    def _prefill(self) -> Iterator[Row]:
        """Time to the first token, picture included."""
        for what, inputs in self._prompts():
            ours, theirs, peaks = [], [], []
            for _ in range(self.settings.repeats + 1):
                with self._peak(peaks):
                    ours.append(self._ours(inputs, 1)[1][0])
                if self._stock:
                    theirs.append(stock_tokens(self.model, inputs, 1, self._now)[1][0])
            floor = self.floors.prefill(inputs.length) + self.floors.vision * (inputs.vision_image is not None)
            yield make_row(
                "first token",
                what,
                milliseconds(ours[1:]),
                "ms",
                milliseconds(theirs[1:]),
                floor=1e3 * floor,
                peaks=peaks,
            )

    def _decode(self) -> Iterator[Row]:
        """Tokens per second of one answer."""
        for what, inputs in self._prompts():
            usual: list[int] = []
            for way, engine in self._ways():
                ours, theirs, peaks, same = [], [], [], True
                for _ in range(self.settings.repeats):
                    with self._peak(peaks):
                        ids, times = self._ours(inputs, self.settings.new_tokens, engine)
                    ours += steps_of(times)
                    if self._stock and not way:
                        stock_ids, times = stock_tokens(self.model, inputs, self.settings.stock_tokens, self._now)
                        theirs += steps_of(times)
                        same = same and all(a == b for a, b in zip(ids, stock_ids, strict=False))
                usual = usual or ids
                equal = {"stock path": same, "usual step": ids == usual}
                note = "".join(f"tokens differ from the {other}'s" for other, holds in equal.items() if not holds)
                floor = 1 / self.floors.decode(inputs.length + self.settings.new_tokens // 2)
                rates = rate(ours), "tokens/s", rate(theirs)
                yield make_row("decode", what + way, *rates, floor=floor, peaks=peaks, note=note)

    def _batch(self) -> Iterator[Row]:
        """Tokens per second of all rows together."""
        what, inputs = self._shortest()
        for rows, (way, engine) in itertools.product(self.settings.batches, self._ways()):
            times, peaks = [], []
            with self._peak(peaks), engine.session(max_rows=rows) as session:
                for _ in range(rows):
                    session.add(Request(inputs, SamplingOptions(max_new_tokens=self.settings.new_tokens)))
                session.step()
                while session.running:
                    start = self._now()
                    session.step()
                    times.append(self._now() - start)
            floor = rows / self.floors.decode(inputs.length + self.settings.new_tokens // 2, rows)
            yield make_row("batch", f"{rows} x {what}{way}", rows * rate(times), "tokens/s", floor=floor, peaks=peaks)

    def _profile(self) -> Iterator[Row]:
        """A decode step, and what it consists of."""
        what, inputs = self._shortest()
        for way, engine in self._ways():
            yield from self._profile_of(what + way, inputs, engine)

    def _profile_of(self, what: str, inputs: VLMInputs, engine: Engine) -> Iterator[Row]:
        count = RECORD_AFTER + 4 + 2 * _PROFILED
        stream = engine.tokens(inputs, SamplingOptions(max_new_tokens=count))
        times = []
        for _ in range(count - _PROFILED):  # the first ones record a graph, where there are graphs
            start = self._now()
            next(stream)
            times.append(self._now() - start)
        whole = statistics.median(times[-_PROFILED:])
        parts = profiled(lambda: next(stream), _PROFILED, self.device)
        shown, rest = parts[:_LINES], parts[_LINES:]
        shown.append(Part("all others", sum(part.calls for part in rest), sum(part.seconds for part in rest)))
        between = whole - sum(part.seconds for part in parts)  # less than nothing where kernels run side by side
        yield make_row("profile", f"a decode step, {what}", 1e6 * whole, "us")
        for part in shown:
            note = f"{part.calls:g} times, {100 * part.seconds / whole:.1f} % of the step"
            yield make_row("profile", part.name, 1e6 * part.seconds, "us", note=note)
        note = f"{100 * between / whole:.1f} % of the step"
        name = "outside of kernels" if self.device.type == "cuda" else "C kernels and Python"
        yield make_row("profile", name, 1e6 * between, "us", note=note)

    def _quant(self) -> Iterator[Row]:
        """Decode with 4 and 8 bits per weight; one that fails leaves the other its line."""
        prompt, inputs = self._prompts()[-1]
        for bits in sorted(self.settings.bits):
            what = f"int{bits}, {prompt}"
            try:
                yield from self._quantised(bits, what, inputs)
            except Exception as error:
                yield failed_row("decode", what, error)

    def _quantised(self, bits: int, what: str, inputs: VLMInputs) -> Iterator[Row]:
        self.model = self._engine = self._others = None  # one model at a time fits
        self._collect()
        self._take(self.make_model(bits))
        self._collect()
        floor = 1 / self.floors.with_weights_of(self.model).decode(inputs.length)
        for way, engine in self._ways():
            times, peaks = [], []
            with self._peak(peaks):
                for _ in range(self.settings.repeats):
                    times += steps_of(self._ours(inputs, self.settings.new_tokens, engine)[1])
            yield make_row("decode", what + way, rate(times), "tokens/s", floor=floor, peaks=peaks)

    def _collect(self) -> None:
        """Let go of what nobody uses: modules of SAT refer to each other in circles."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _train(self) -> Iterator[Row]:
        """Samples per second of forward, backward and optimizer step, beside the boolean-mask form of the experts."""
        (what, one), count = self._shortest(), self.settings.train_batch
        inputs = VLMInputs(**{k: None if v is None else torch.cat([v] * count) for k, v in vars(one).items()})
        optimizer = self._optimizer()

        def step(model: nn.Module, **mask: Tensor) -> float:
            start = self._now()
            logits = model(**inputs.model_kwargs() | mask)[0][:, :-1].flatten(0, 1).float()
            nn.functional.cross_entropy(logits, inputs.input_ids[:, 1:].flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
            runtime.wait_for(self.device)
            return self._now() - start

        stock = StockModel(self.model) if self._stock else None
        mask = torch.ones(1, 1, one.length, one.length, device=self.device).tril_()
        ours, theirs, peaks = [], [], []
        for _ in range(self.settings.repeats + 1):
            with self._peak(peaks):
                ours.append(step(self.model))
            if stock is not None:
                theirs.append(step(stock, attention_mask=mask))
        rates = count * rate(ours[1:]), count * rate(theirs[1:])
        yield make_row(
            "train", f"{self.settings.train}, {count} x {what}", rates[0], "samples/s", rates[1], peaks=peaks
        )

    def _optimizer(self) -> torch.optim.Optimizer:
        """Make the model trainable as the settings say."""
        if self.settings.train == "lora":
            targets = ("transformer.layers.*", "mixins.mlp.*", "mixins.rotary.*")
            apply_lora(self.model, LoRASettings(targets=targets, rank=8))
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_("matrix_" in name)
            self.model.transformer.checkpoint_activations = True
        else:
            self.model.requires_grad_(True)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def _prompts(self) -> list[tuple[str, VLMInputs]]:
        """The prompts that are decoded, text first, from short to long."""
        config = self.model.config
        smallest = config.sequence_form.fixed_tokens([config.images.plan()]) + 1
        if short := [n for n in self.settings.contexts if n < smallest]:
            raise InputError(f"a context with a picture takes at least {smallest} tokens in this model; got {short}")
        made = [(f"text, {n} tokens", self._prompt(n, False)) for n in sorted(self.settings.text_contexts)]
        return made + [(f"picture, {n} tokens", self._prompt(n, True)) for n in sorted(self.settings.contexts)]

    def _shortest(self) -> tuple[str, VLMInputs]:
        """The shortest one with a picture, or of all."""
        prompts = self._prompts()
        return next((prompt for prompt in prompts if prompt[1].vision_image is not None), prompts[0])

    def _prompt(self, tokens: int, image: bool) -> VLMInputs:
        return prompt_of(self.model.config, tokens, image=image).to(self.device, self._engine.float_dtype)

    def _ours(self, inputs: VLMInputs, count: int, engine: Engine | None = None) -> tuple[list[int], list[float]]:
        """Greedy tokens, and the time from the start to each; by the usual engine unless another is given."""
        times: list[float] = []
        start = self._now()
        stream = (engine or self._engine).tokens(inputs, SamplingOptions(max_new_tokens=count))
        for _ in stream:
            times.append(self._now() - start)
        return stream.token_ids, times

    def _timed(self, action: Callable[[], Tensor]) -> float:
        """Median seconds."""
        times = []
        for _ in range(self.settings.repeats + 1):
            runtime.wait_for(self.device)
            start = self._now()
            action()
            runtime.wait_for(self.device)
            times.append(self._now() - start)
        return statistics.median(times[1:])

    @contextmanager
    def _peak(self, peaks: list[int]) -> Iterator[None]:
        """Appends the block's peak bytes: on the GPU, or of this process where Linux says so."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            forget_peak()
        yield
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else process_bytes("VmHWM")
        if peak is not None:
            peaks.append(peak)
