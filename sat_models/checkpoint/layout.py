"""SAT's layout, and where the parts of one checkpoint lie:

<folder>/model_config.json
<folder>/latest                                  a step number, or "release"
<folder>/<step>/mp_rank_00_model_states.pt       one per model-parallel rank; the weights under key "module"
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sat_models.checkpoint.pickles import read_weights

CONFIG_FILE = "model_config.json"
HF_CONFIG_FILE = "config.json"
PIPELINE_FILE = "model_index.json"
"""Of a diffusers folder with all parts of a painter."""
TRANSFORMER_FOLDER = "transformer"
"""In such a folder, and in one of SAT's with all parts."""
UNET_FOLDER = "unet"
"""In such a folder, of other networks."""
LATEST_FILE = "latest"


def rank_file(rank: int) -> str:
    """File name of one model-parallel rank's weights."""
    return f"mp_rank_{rank:02d}_model_states.pt"


def replaced_name(step: str) -> str:
    """Where a step folder is moved while the same step is written again."""
    return f".{step}.replaced"


@dataclass(frozen=True)
class SATCheckpoint:
    """Where the parts of one checkpoint lie.

    Attributes:
        folder: holds `model_config.json` (and, usually, the tokenizer).
        files: weights of model-parallel rank 0, 1, …
        config: content of `model_config.json`.
    """

    folder: Path
    files: tuple[Path, ...]
    config: dict[str, Any]

    @property
    def step_folder(self) -> Path:
        """The folder of the weight files."""
        return self.files[0].parent

    @property
    def config_file(self) -> Path:
        """The file that holds the sizes."""
        return self.folder / CONFIG_FILE

    def read(self) -> list[dict[str, Tensor]]:
        """The weights of each stored part under SAT's names, memory-mapped. Raises CheckpointError."""
        return [read_weights(file) for file in self.files]

    def stored_name(self, name: str) -> str:
        """The files' name of the weight that SAT calls `name`, for messages."""
        return name
