"""What diffusers' folders of the models here have alike."""

from __future__ import annotations

from typing import Any


def scheduler(name: str, snr_shift: float) -> dict[str, Any]:
    """The content of `scheduler_config.json`.

    Args:
        name: of the class: `CogVideoXDDIMScheduler` or `CogVideoXDPMScheduler`.
        snr_shift: see `LatentTransformerConfig`.
    """
    return {
        "_class_name": name,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "snr_shift_scale": snr_shift,
        "set_alpha_to_one": True,
        "clip_sample": False,
        "timestep_spacing": "trailing",
    }
