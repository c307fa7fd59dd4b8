"""Its tokenizer: sentencepiece that knows small letters only."""

from __future__ import annotations

from sat_models.processing.tokens import SentencePieceTokenizer


class SmallLetters(SentencePieceTokenizer):
    """Capitals become small."""

    def encode(self, text: str) -> list[int]:
        """As `Tokenizer.encode`."""
        return super().encode(text.lower())
