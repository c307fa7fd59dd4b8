"""Its prompt style."""

from __future__ import annotations

from sat_models.processing.prompts import PromptStyle

STYLES = {
    "postcard": PromptStyle(
        "dear you, ", " yours, ", " yours, ", "; ", "as people write from their holidays", stops=("ps",)
    )
}
