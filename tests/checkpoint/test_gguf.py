"""LLaVA for llama.cpp, which answers from the files with our ids."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mixins.base import ZooModel
from sat_models import runtime
from sat_models.checkpoint.convert import save_hf
from sat_models.checkpoint.gguf_writer import interleaved
from sat_models.commands.convert import main
from sat_models.config import read_json
from sat_models.errors import CheckpointError, ConfigError, MissingPackageError
from sat_models.models.build import build_model, make_config
from sat_models.processing.tokens import SentencePieceTokenizer
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

ROOT = Path(__file__).resolve().parents[2]
PIECES = ROOT / "sat_models" / "assets" / "cogvlm-tiny" / "tokenizer.model"
QUESTION, TOKENS = "What is  here?\nSay it.", 12
SAME = 0.12
"""Of log probabilities behind an image: llama.cpp computes GELU by a formula and a table in fp16."""


def written(folder: Path, *, tokenizer: bool = True) -> Path:
    """A tiny model with random weights and fewer keys than queries, in transformers' form."""
    runtime.init_model_parallel(1)
    rows = SentencePieceTokenizer.from_file(PIECES).vocab_size
    sizes = {"vocab_size": rows, "image_token_id": 0, "max_sequence_length": 512, "num_kv_heads": 2}
    config = make_config({**read_json(ROOT / "configs" / "models" / "llava-tiny.json"), **sizes})
    torch.manual_seed(0)
    model: ZooModel = build_model(config, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            seen = name.startswith("mixins.eva")  # an image is to change what is said
            parameter.add_(torch.randn_like(parameter) * (0.3 if seen else 0.05))
    return save_hf(model, folder, config=config, tokenizer_file=PIECES if tokenizer else None)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[VLM, Any]]:
    """Our model, and llama.cpp with what was made of it."""
    import xllamacpp

    folder = tmp_path_factory.mktemp("gguf")
    hub = written(folder / "hub")
    assert main(["--from", str(hub), "--to", "gguf", "--output", str(folder / "gguf")]) == 0
    params = xllamacpp.CommonParams()
    params.model.path, params.mmproj.path = (str(folder / "gguf" / f"{name}.gguf") for name in ("model", "mmproj"))
    params.n_ctx, params.n_parallel, params.warmup = 512, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    yield load_pretrained(hub, device="cpu", dtype="float32"), xllamacpp.Server(params)


def asked(server: Any, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What llama.cpp answers, greedily."""
    return server.handle_chat_completions({
        "messages": [{"role": "user", "content": parts}], "max_tokens": TOKENS, "temperature": 0.0, "top_k": 1,
        "return_tokens": True, "verbose": True, "__verbose": True, "cache_prompt": False,
        "logprobs": True, "top_logprobs": 5,
    })  # fmt: skip


def test_answers_to_text_have_our_ids(pair: tuple[VLM, Any]) -> None:
    """Through the chat template and the tokenizer in the file."""
    ours, server = pair
    found = asked(server, [{"type": "text", "text": QUESTION}])
    wanted = ours.generate(None, QUESTION, max_new_tokens=TOKENS)
    assert found["usage"]["prompt_tokens"] == ours.processor(None, QUESTION).length
    assert found["__verbose"]["tokens"] == wanted.token_ids and len(wanted.token_ids) == TOKENS


@pytest.mark.parametrize("colour", [(200, 30, 4), (0, 250, 90)])
def test_images_are_seen_as_ours_are(pair: tuple[VLM, Any], colour: tuple[int, int, int]) -> None:
    """By the likeliest first tokens, which another layer of the tower would change by 0.19. It puts no line feed behind
    an image, and a mark in our question asks for the same."""
    ours, server = pair
    image, buffer = Image.new("RGB", (56, 56), colour), io.BytesIO()
    image.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    found = asked(server, [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}])
    assert found["usage"]["prompt_tokens"] == ours.processor(image, f"<image>{QUESTION}").length
    first = found["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    theirs = {entry["id"]: entry["logprob"] for entry in first}
    wanted = dict(ours.generate(image, f"<image>{QUESTION}", max_new_tokens=1, top_logprobs=20).top_logprobs[0])
    assert len(theirs) == 5
    assert max(abs(wanted[token] - value) for token, value in theirs.items()) < SAME
    blind = dict(ours.generate(None, QUESTION, max_new_tokens=1, top_logprobs=20).top_logprobs[0])
    assert max(abs(blind.get(token, -9.0) - value) for token, value in theirs.items()) > SAME


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_shorter_matrices(dtype: str, tmp_path: Path) -> None:
    import gguf

    hub = written(tmp_path / "hub")
    assert main(["--from", str(hub), "--to", "gguf", "--output", str(tmp_path / "out"), "--dtype", dtype]) == 0
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    kind = gguf.GGMLQuantizationType[{"fp16": "F16", "bf16": "BF16"}[dtype]]
    assert tensors["blk.0.attn_q.weight"].tensor_type == kind
    assert tensors["blk.0.attn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    state = load_pretrained(hub, device="cpu", dtype="float32").model.state_dict()
    found = torch.from_numpy(gguf.quants.dequantize(tensors["blk.1.ffn_down.weight"].data, kind))
    wanted = state["transformer.layers.1.mlp.dense_4h_to_h.weight"]
    torch.testing.assert_close(found, wanted.to({"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]).float())


def test_rows_of_a_head_are_interleaved() -> None:
    rows = torch.arange(8)[:, None]
    assert interleaved(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_what_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = ["--to", "gguf", "--output", str(tmp_path / "out")]
    with pytest.raises(ConfigError, match=r"CogVLMModel is not written for llama\.cpp, LLaVAModel \(1\.5\) is"):
        main(["--from", str(ROOT / "tests" / "golden" / "cogvlm-mini"), *output])
    bare = written(tmp_path / "bare", tokenizer=False)
    with pytest.raises(ConfigError, match=r"put tokenizer\.model beside the weights"):
        main(["--from", str(bare), *output])
    with pytest.raises(ConfigError, match="--to gguf does not read --mp"):
        main(["--from", str(bare), *output, "--mp", "2"])
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(CheckpointError, match="exists already; name a new folder"):
        main(["--from", str(bare), *output])
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MissingPackageError, match=r"llama\.cpp needs the package 'gguf'"):
        main(["--from", str(bare), "--to", "gguf", "--output", str(tmp_path / "other")])
