"""OpenVINO as a worker of `protocol.py`: the language model as optimum-intel exports it, with a state for its cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from protocol import Answer, Seen, run

FILES = {"fp32": "ov-f32", "bf16": "ov-f32", "int8": "ov-int8", "int4": "ov-int4"}
HINTS = {"fp32": {"INFERENCE_PRECISION_HINT": "f32"}, "bf16": {"INFERENCE_PRECISION_HINT": "bf16"}}


def make(folder: Path) -> None:
    """Export `lm` in fp32, int8 and int4 (groups of 64, symmetric)."""
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    ways = {
        "ov-f32": {"load_in_8bit": False},
        "ov-int8": {"quantization_config": OVWeightQuantizationConfig(bits=8)},
        "ov-int4": {"quantization_config": OVWeightQuantizationConfig(bits=4, sym=True, group_size=64)},
    }
    for name, way in ways.items():
        OVModelForCausalLM.from_pretrained(folder / "lm", export=True, compile=False, **way).save_pretrained(
            folder / name
        )


def serve(folder: Path, form: str, threads: int) -> tuple[str, Answer]:
    """One inference request, whose state is the cache."""
    import numpy as np
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    settings |= HINTS.get(form, {})
    compiled = openvino.Core().compile_model(folder / FILES[form] / "openvino_model.xml", "CPU", settings)
    request = compiled.create_infer_request()
    inputs = {name for port in compiled.inputs for name in port.names}

    def step(ids: Sequence[int], before: int) -> int:
        end = before + len(ids)
        given = {
            "input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(before, end, dtype=np.int64)[None], "beam_idx": np.zeros(1, np.int32),
        }  # fmt: skip
        found = request.infer({name: value for name, value in given.items() if name in inputs}, share_inputs=True)
        return int(found[compiled.outputs[0]][0, -1].argmax())

    def answer(ids: Sequence[int], new: int, seen: Seen) -> None:
        request.reset_state()
        seen(token := step(ids, 0))
        for number in range(new - 1):
            seen(token := step([token], len(ids) + number))

    return f"OpenVINO {openvino.__version__}, {compiled.get_property('INFERENCE_PRECISION_HINT')}", answer


if __name__ == "__main__":
    run(
        {"openvino": "openvino", "numpy": "numpy"},
        serve,
        make=({"openvino": "openvino", "optimum.intel": "optimum-intel", "nncf": "nncf"}, make),
    )
