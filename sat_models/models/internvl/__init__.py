"""InternVL."""
