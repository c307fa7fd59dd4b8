"""CogVLM2."""
