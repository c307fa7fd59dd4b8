"""From noise to latents, step by step: schedules, guidance, samplers. No I/O."""
