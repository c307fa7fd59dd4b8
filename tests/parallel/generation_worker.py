"""Run by test_generation_parallel.py under torchrun: sums over ranks, batches, a shared session; one JSON per rank."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from mixins.lora import apply_lora
from mixins.lora_settings import LoRASettings
from sat_models import runtime
from sat_models.errors import run_script
from sat_models.generation.answer import GenerationResult, Request
from sat_models.generation.engine import Engine
from sat_models.generation.ranks import SharedEngine
from sat_models.generation.sampling import SamplingOptions
from sat_models.generation.strict.constraint import Constraint
from sat_models.processing.inputs import VLMInputs
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

SHARED = ("input_ids", "position_ids", "vision_expert_mask", "image_embed_mask")
PIXELS = {"vision_image": "pixels.vision", "cross_image": "pixels.cross"}


def sums_per_layer(vlm: VLM, given: dict[str, Any]) -> list[int]:
    """How many all-reduces each layer of the language model makes in one forward."""
    counts: list[int] = []
    total, original = [0], dist.all_reduce

    def counting(*args: Any, **kwargs: Any) -> Any:
        total[0] += 1
        return original(*args, **kwargs)

    hooks = []
    for layer in vlm.model.transformer.layers:
        hooks.append(layer.register_forward_pre_hook(lambda *args: counts.append(-total[0])))
        hooks.append(layer.register_forward_hook(lambda *args: counts.append(counts.pop() + total[0])))
    dist.all_reduce = counting
    try:
        with torch.inference_mode():
            vlm.model(**given)
    finally:
        dist.all_reduce = original
        for hook in hooks:
            hook.remove()
    return counts


def forwards(golden: Path) -> dict[str, dict[str, Any]]:
    """Inputs of each way to route tokens."""
    stored = load_file(golden / "reference.safetensors")
    image = {name: stored[f"case0.{name}"][None] for name in SHARED}
    image |= {name: stored[key] for name, key in PIXELS.items() if key in stored}
    text = {name: image[name][:, -5:] for name in ("input_ids", "position_ids")}
    both = {"slices": image, "text": text}
    if "cross_image" not in image:
        moved = {name: torch.cat((image[name], image[name].roll(2, dims=1))) for name in SHARED}
        both["index lists"] = moved | {"vision_image": image["vision_image"].repeat(2, 1, 1, 1)}
    return both


def prompts(vlm: VLM, golden: Path) -> list[VLMInputs]:
    image = golden / "image.png"
    made = [vlm.processor(image, text) for text in ("What is it?", "Where is the red one?", "Why?")]
    made[1].vision_image = made[1].vision_image.flip(-1)
    return [*made, vlm.processor(None, "Hello there", version="chat")]


def options() -> list[SamplingOptions]:
    """Greedy, and drawn without a seed in one row: then only the first process decides."""
    return [SamplingOptions(max_new_tokens=4 + row, temperature=float(row == 1)) for row in range(4)]


def with_stop(vlm: VLM, inputs: VLMInputs, ids: list[int]) -> Request:
    """The request whose answer began with `ids`, with a stop string in the middle of their text."""
    text = vlm.processor.tokenizer.decode(ids)
    return Request(inputs, SamplingOptions(max_new_tokens=6), (text[2:5],))


def stopped(engine: SharedEngine, request: Request) -> list[Any]:
    """What a stream and a row of a session give for it, and what a stream gives that was closed before."""
    left = engine.tokens(request.inputs)
    next(left)
    left.close()
    results = [engine.stream(request).result()]
    with engine.session(max_rows=2) as session:
        numbers = [session.add(request) for _ in range(3)]
        while session.running:
            session.step()
        results += [session.remove(number).result() for number in numbers]
    return [[result.text, result.token_ids, result.finish_reason] for result in results]


def scored(request: Request) -> Request:
    """The request with scores."""
    return replace(request, logprobs=True, top_logprobs=3)


def numbers_of(result: GenerationResult) -> dict[str, Any]:
    """What is compared of an answer's scores."""
    return {"token_ids": result.token_ids, "logprobs": result.logprobs, "top_logprobs": result.top_logprobs}


SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}, "why": {"type": "string", "maxLength": 5}},
    "required": ["color", "why"],
    "additionalProperties": False,
}


def strict(vlm: VLM, asked: list[VLMInputs]) -> list[Request]:
    """Rows with forms of their own, some drawn without a seed; one without a form."""
    forms = [Constraint.json(SCHEMA), Constraint.boxes(), Constraint.choice(["left", "right"]), None]
    forms = [form and form.in_form(vlm.processor.box_form) for form in forms]
    wild = SamplingOptions(max_new_tokens=60, temperature=2.0)
    return [
        Request(inputs, options, constraint=form)
        for inputs, form in zip(asked, forms, strict=True)
        for options in (wild, replace(wild, temperature=0.0))
    ]


def shared(vlm: VLM, asked: list[VLMInputs]) -> dict[str, Any]:
    """A session that process 0 leads; an answer with a kept prefix before and after it."""
    engine = SharedEngine(vlm.engine(keep_prefixes=1))
    if not engine.leads:
        engine.follow()
        return {}
    report: dict[str, Any] = {}
    turns = [engine.tokens(asked[0], SamplingOptions(max_new_tokens=6)) for _ in range(2)]
    report["turns"] = [list(turn) for turn in turns]
    report["cached"] = [turn.cached_tokens for turn in turns]
    report["stopped"] = stopped(engine, with_stop(vlm, asked[0], report["turns"][0]))
    with engine.session(max_rows=2, piece=11) as session:
        numbers = [session.add(Request(inputs, SamplingOptions(max_new_tokens=6))) for inputs in asked]
        session.step()
        session.remove(numbers.pop(1))
        while session.running:
            session.step()
        report["rows_of_session"] = [session.remove(number).token_ids for number in numbers]
    report["after"] = list(engine.tokens(asked[2], SamplingOptions(max_new_tokens=6)))
    request = scored(Request(asked[1], SamplingOptions(max_new_tokens=6)))
    report["strict streams"] = [engine.stream(each).result().text for each in strict(vlm, asked)]
    with engine.session(max_rows=3) as session:
        numbers = [session.add(each) for each in strict(vlm, asked)]
        while session.running:
            session.step()
        report["strict session"] = [session.remove(number).result().text for number in numbers]
    report["scored stream"] = numbers_of(engine.stream(request).result())
    engine.stop()
    return report


def main(golden: Path, out: Path) -> None:
    """golden folder, output folder."""
    vlm = load_pretrained(golden, device="cpu", dtype="float32")
    report: dict[str, Any] = {"sums": {name: sums_per_layer(vlm, given) for name, given in forwards(golden).items()}}
    asked = prompts(vlm, golden)
    engine = Engine(vlm.model, eos_id=-5, max_length=256, device="cpu")
    rows = engine.answers(list(map(scored, map(Request, asked, options()))), max_rows=3)
    report["rows"] = [row.token_ids for row in rows]
    report["scored rows"] = list(map(numbers_of, rows))
    report["strict rows"] = [row.text for row in vlm.engine().answers(strict(vlm, asked), max_rows=3)]
    report |= shared(vlm, asked)
    given = forwards(golden)["slices"]
    apply_lora(vlm.model, LoRASettings(rank=2, targets=("transformer.layers.*.attention.dense",)))
    report["sums"]["with LoRA"] = sums_per_layer(vlm, given)
    (out / f"{runtime.rank()}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    run_script(lambda: main(Path(sys.argv[1]), Path(sys.argv[2])))
