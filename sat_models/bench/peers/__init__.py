"""Other engines on the same weights, each asked in a process of its own interpreter."""
