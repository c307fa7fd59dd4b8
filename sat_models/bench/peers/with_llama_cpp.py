"""llama.cpp as a worker of `protocol.py`: through llama-cpp-python, which compiles it for the processor at hand, or
through xllamacpp, a ready wheel (AVX2). The files are written with gguf.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protocol import Answer, Seen, run

FILES = {"fp32": "f32", "bf16": "bf16", "int8": "q8_0", "int4": "q4_0"}
_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def make(folder: Path) -> None:
    """Write the language model `lm` in fp32, bf16, q8_0 and q4_0."""
    import gguf
    from safetensors.numpy import load_file

    weights = load_file(folder / "lm" / "model.safetensors")
    config = json.loads((folder / "lm" / "config.json").read_text(encoding="utf-8"))
    kinds = gguf.GGMLQuantizationType
    for name, kind in {"f32": None, "bf16": kinds.BF16, "q8_0": kinds.Q8_0, "q4_0": kinds.Q4_0}.items():
        writer = gguf.GGUFWriter(str(folder / f"lm-{name}.gguf"), "llama")
        _describe(writer, config)
        for key, value in weights.items():
            target, array = _as_llama_cpp(key, value, config["num_attention_heads"])
            if kind is None or array.ndim == 1:
                writer.add_tensor(target, array.astype("float32"))
            else:
                writer.add_tensor(target, gguf.quants.quantize(array.astype("float32"), kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _describe(writer: Any, config: dict[str, Any]) -> None:
    """Sizes, and a tokenizer of words that nobody says: prompts come as ids."""
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += [f"word{number}" for number in range(config["vocab_size"] - len(words))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([word.encode() for word in words])
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(words) - 259))  # unknown, control, bytes, words
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def _as_llama_cpp(key: str, value: Any, heads: int) -> tuple[str, Any]:
    """Name and weight of a tensor; llama.cpp turns neighbours, so the rows of queries and keys change places."""
    if not key.startswith("model.layers."):
        plain = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
        return f"{plain[key.removesuffix('.weight')]}.weight", value
    number, _, part = key.removeprefix("model.layers.").removesuffix(".weight").partition(".")
    if part.endswith(("q_proj", "k_proj")):
        value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
    return f"blk.{number}.{_NAMES[part]}.weight", value


def serve(folder: Path, form: str, threads: int) -> tuple[str, Answer]:
    """The one of both that is there."""
    file = str(folder / f"lm-{FILES[form]}.gguf")
    return (_native if importlib.util.find_spec("llama_cpp") else _ready)(file, threads)


def _native(file: str, threads: int) -> tuple[str, Answer]:
    """Its greedy generation of ids."""
    import llama_cpp

    model = llama_cpp.Llama(
        file, n_ctx=4096, n_batch=2048, n_ubatch=2048, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def answer(ids: Sequence[int], new: int, seen: Seen) -> None:
        model.reset()  # or it would keep what two prompts share
        for number, token in enumerate(model.generate(list(ids), top_k=1, temp=0.0), start=1):
            seen(token)
            if number == new:
                return

    return f"llama.cpp (llama-cpp-python {llama_cpp.__version__})", answer


def _ready(file: str, threads: int) -> tuple[str, Answer]:
    """Its server without a network, whose pieces of text say when tokens are known, but not which ones."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = file
    settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_parallel = 4096, 2048, 2048, 1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    settings.cache_ram_mib, settings.warmup = 0, False
    server = xllamacpp.Server(settings)

    def answer(ids: Sequence[int], new: int, seen: Seen) -> dict[str, Any]:
        marks, counts = [time.perf_counter()], []

        def piece(said: dict[str, Any]) -> bool:
            marks.append(time.perf_counter())
            counts.append(said.get("usage", {}).get("completion_tokens"))
            return False  # go on

        request = {"prompt": list(ids), "n_predict": new, "temperature": 0.0, "top_k": 1, "ignore_eos": True}
        server.handle_completions(request | {"cache_prompt": False, "stream": True}, piece)
        if counts[-1:] != [new]:
            raise RuntimeError(f"{new} tokens were asked for; it says {counts[-1:]}")
        return {"first": marks[1] - marks[0], "rest": marks[-1] - marks[1], "new": new}

    return f"llama.cpp (xllamacpp {xllamacpp.__version__})", answer


if __name__ == "__main__":
    run(
        {} if importlib.util.find_spec("xllamacpp") else {"llama_cpp": "llama-cpp-python (or xllamacpp)"},
        serve,
        make=({"gguf": "gguf", "safetensors": "safetensors", "numpy": "numpy"}, make),
    )
