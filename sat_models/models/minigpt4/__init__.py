"""MiniGPT-4."""
