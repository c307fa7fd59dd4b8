"""InternLM-XComposer2."""
