"""transformers as a worker of `protocol.py`; it also makes the model that all engines read.

A LLaVA-1.5 of random weights, about 110 M parameters, as `hf`, and its language model alone as `lm`.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protocol import Answer, Seen, run

TEXT = {
    "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8,
    "num_attention_heads": 12, "num_key_value_heads": 12, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 336,
    "patch_size": 14, "projection_dim": 256,
}  # fmt: skip
SLOT, SLOTS = 31999, 576
LINEARS = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"


def make(folder: Path) -> None:
    """Write `hf` and `lm`."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION), text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=SLOT, image_seq_length=SLOTS,
    )  # fmt: skip
    model = transformers.LlavaForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.04)
    model.save_pretrained(folder / "hf")
    language = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT))
    language.model.load_state_dict(model.model.language_model.state_dict())
    language.lm_head.load_state_dict(model.lm_head.state_dict())
    language.save_pretrained(folder / "lm")


def serve(folder: Path, form: str, threads: int) -> tuple[str, Answer]:
    """`generate`, with its own cache."""
    import torch
    import transformers

    class Streamer(transformers.generation.streamers.BaseStreamer):
        """Hands on the tokens behind the prompt, which comes first."""

        def __init__(self, seen: Seen) -> None:
            self.seen, self.after_prompt = seen, False

        def put(self, value: Any) -> None:
            if self.after_prompt:
                self.seen(int(value))
            self.after_prompt = True

        def end(self) -> None:
            """Nothing is left to be done."""

    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if form == "bf16" else torch.float32
    model = transformers.LlamaForCausalLM.from_pretrained(folder / "lm", dtype=dtype).eval()

    def answer(ids: Sequence[int], new: int, seen: Seen) -> None:
        prompt = torch.tensor([list(ids)])
        with torch.inference_mode():
            model.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=False, min_new_tokens=new, max_new_tokens=new,
                pad_token_id=0, streamer=Streamer(seen),
            )  # fmt: skip

    return f"transformers {transformers.__version__}, torch {torch.__version__}", answer


def train(folder: Path, form: str, threads: int) -> dict[str, Any]:
    """A LoRA by peft on the samples of `folder`/train."""
    import numpy as np
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model
    from PIL import Image

    torch.set_num_threads(threads)
    plan = json.loads((folder / "train" / "plan.json").read_text(encoding="utf-8"))
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder / "hf", dtype=torch.float32)
    rank = plan["rank"]
    lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=rf".*language_model.*\.({LINEARS})")
    model = get_peft_model(model, lora).train()
    if form == "checkpointed":
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4, fused=True)
    rates = []
    for step in range(plan["steps"]):
        start = time.perf_counter()
        count = plan["batch"]
        samples = [plan["samples"][(step * count + place) % len(plan["samples"])] for place in range(count)]
        rows = [[1, *[SLOT] * SLOTS, *sample["prompt"], *sample["text"], 2] for sample in samples]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        labels = ids.masked_fill(real == 0, -100)
        for label, sample in zip(labels, samples, strict=True):
            label[: 1 + SLOTS + len(sample["prompt"])] = -100
        pixels = torch.stack([
            torch.from_numpy(np.array(Image.open(folder / "train" / sample["image"]).convert("RGB")))
            for sample in samples
        ])  # fmt: skip
        pixels = (pixels.permute(0, 3, 1, 2) / 127.5 - 1).float()
        loss = model(input_ids=ids, attention_mask=real, labels=labels, pixel_values=pixels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        rates.append(ids.numel() / (time.perf_counter() - start))
    return {"tokens_per_s": statistics.median(rates[2:]), "loss": loss.item()}


if __name__ == "__main__":
    BASE = {"torch": "torch", "transformers": "transformers"}
    run(BASE, serve, make=(BASE, make), train=({**BASE, "peft": "peft", "PIL": "pillow"}, train))
