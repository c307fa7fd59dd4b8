"""Activations that several families share."""

from __future__ import annotations

import functools

import torch.nn.functional as F

tanh_gelu = functools.partial(F.gelu, approximate="tanh")
"""GELU by its tanh form (arXiv 1606.08415, section 2), as GLM and the painters were trained with."""
