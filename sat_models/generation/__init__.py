"""Prompt -> tokens, one at a time, with no I/O and no tokenizer inside."""
