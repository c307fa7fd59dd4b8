"""Several end ids: read from configs, obeyed by generation, the first trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from sat_models.config import LLaMAConfig
from sat_models.errors import ConfigError
from sat_models.models.common.llama_keys import llama_sizes, llama_sizes_to_hf
from sat_models.zoo import load_pretrained

SIZES = {
    "num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "inner_hidden_size": 8, "vocab_size": 16,
    "max_sequence_length": 32,
}  # fmt: skip


def test_a_config_holds_one_id_or_several() -> None:
    assert LLaMAConfig.from_dict(SIZES).eos_token_ids == (2,)
    several = LLaMAConfig.from_dict({**SIZES, "eos_token_id": [5, 7]})
    assert several.eos_token_ids == (5, 7)
    assert LLaMAConfig.from_dict(json.loads(json.dumps(several.to_dict()))) == several
    for bad in ([], ["</s>"], [True], [-1], "2"):
        with pytest.raises(ConfigError, match=r"eos_token_id is .*a token id, or a list"):
            LLaMAConfig.from_dict({**SIZES, "eos_token_id": bad})


def test_a_llama_config_of_transformers_keeps_its_list() -> None:
    sizes = llama_sizes({"eos_token_id": [128001, 128009]})
    assert LLaMAConfig.from_dict(sizes).eos_token_ids == (128001, 128009)
    written = json.loads(json.dumps(llama_sizes_to_hf(LLaMAConfig.from_dict(sizes))))
    assert written["eos_token_id"] == [128001, 128009]


def test_an_answer_ends_at_any_of_them_and_the_first_is_trained(mini: SimpleNamespace, tmp_path: Path) -> None:
    whole = load_pretrained(mini.folder, device="cpu").generate(None, "What?", max_new_tokens=8)
    last = whole.token_ids[3]
    folder = Path(shutil.copytree(mini.folder, tmp_path / "mini"))
    config = json.loads((folder / "model_config.json").read_text())
    (folder / "model_config.json").write_text(json.dumps({**config, "eos_token_id": [3, last]}))
    vlm = load_pretrained(folder, device="cpu")
    assert vlm.processor.tokenizer.eos_ids == (3, last)
    got = vlm.generate(None, "What?", max_new_tokens=8)
    assert (got.token_ids, got.finish_reason) == (whole.token_ids[: whole.token_ids.index(last)], "stop")
    assert int(vlm.processor.training_sample(None, [("a", "b")]).labels[0, -1]) == 3
