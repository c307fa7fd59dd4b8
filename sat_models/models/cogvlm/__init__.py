"""CogVLM."""
