"""Pictures and text -> named tensors, and model text -> boxes and drawings."""
