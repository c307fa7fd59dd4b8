"""diffusers as a worker of `protocol.py`; it also makes the painter that both engines read.

A CogView3-Plus of random weights as `painter`, its parts in the proportions of the release: a transformer of 110 M
parameters, a T5 of 187 M, a small autoencoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from protocol import Draw, run

TRANSFORMER = {"num_layers": 4, "num_attention_heads": 32, "text_embed_dim": 1024, "pos_embed_max_size": 64}
TEXT = {
    "vocab_size": 32128, "d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 12, "num_heads": 16,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
VAE = {
    "latent_channels": 16, "block_out_channels": (32, 64, 128, 128), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2, "use_quant_conv": False,
    "use_post_quant_conv": False, "scaling_factor": 1.0,
}  # fmt: skip


def make(folder: Path) -> None:
    """Write `painter`, without a tokenizer."""
    import diffusers
    import torch
    import transformers

    torch.manual_seed(0)
    pipeline = diffusers.CogView3PlusPipeline(
        tokenizer=None,
        text_encoder=transformers.T5EncoderModel(transformers.T5Config(**TEXT)),
        vae=diffusers.AutoencoderKL(**VAE),
        transformer=diffusers.CogView3PlusTransformer2DModel(**TRANSFORMER),
        scheduler=diffusers.CogVideoXDDIMScheduler(
            snr_shift_scale=4.0, beta_end=0.012, rescale_betas_zero_snr=True, timestep_spacing="trailing",
            prediction_type="v_prediction", set_alpha_to_one=True,
        ),
    )  # fmt: skip
    pipeline.save_pretrained(folder / "painter")


def draw(folder: Path, form: str, threads: int) -> tuple[str, Draw]:
    """Its pipeline, as it comes from a folder."""
    import diffusers
    import torch

    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if form == "bf16" else torch.float32
    pipeline = diffusers.CogView3PlusPipeline.from_pretrained(folder / "painter", tokenizer=None, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)

    def drawn(request: Mapping[str, Any], stepped: Callable[[], None]) -> None:
        width, height = request["size"]
        with torch.inference_mode():
            text = pipeline.text_encoder(torch.tensor([request["ids"]]))[0]
        shape = (pipeline.transformer.config.in_channels, height // 8, width // 8)
        noise = torch.randn(*shape, generator=torch.Generator().manual_seed(request["seed"]))

        def seen(pipeline: Any, step: int, time: Any, more: dict[str, Any]) -> dict[str, Any]:
            stepped()
            return more

        made = pipeline(
            prompt_embeds=text, latents=noise[None].to(dtype), width=width, height=height,
            num_inference_steps=request["steps"], guidance_scale=request["guidance"], callback_on_step_end=seen,
        )  # fmt: skip
        made.images[0].save(request["file"])

    return f"diffusers {diffusers.__version__}, torch {torch.__version__}", drawn


if __name__ == "__main__":
    BASE = {"torch": "torch", "transformers": "transformers", "diffusers": "diffusers"}
    run(BASE, draw=draw, make=(BASE, make))
