"""Weights of SAT's that a folder for diffusers has no place for, and that do not follow from the sizes as they are.

They lie in a file of their own beside the transformer's, which diffusers does not read, so that the way back loses
nothing.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from sat_models.checkpoint.huggingface import LEFT_OUT_FILE
from sat_models.checkpoint.source import Opened
from sat_models.checkpoint.staging import write_tensors
from sat_models.models.build import computable_buffers, compute_buffer
from sat_models.models.common.hf_form import KeyTable


def write_left_out(folder: Path, opened: Opened, keys: KeyTable) -> None:
    """Write what `keys` leaves out and the sizes do not give back, bit for bit; nothing where there is none.

    Raises:
        OSError, CheckpointError: it cannot be written.
    """
    computed = {key: (module, name) for key, module, name in computable_buffers(opened.model)}
    kept: dict[str, Tensor] = {}
    for name in sorted(keys.left_out & set(opened.weights.names)):
        value = opened.weights.part(name).read()
        if name in computed:
            module, short = computed[name]
            if compute_buffer(module, short, device="cpu", dtype=value.dtype).equal(value):
                continue
        kept[name] = value.contiguous()
    if kept:
        write_tensors(kept, folder / LEFT_OUT_FILE, {"format": "pt"})
