"""A plain LLaMA without pictures: the base of most families, and a model of its own."""
