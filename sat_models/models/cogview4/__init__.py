"""CogView4, which runs in diffusers."""
