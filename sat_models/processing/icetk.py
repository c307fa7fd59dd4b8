"""icetk's words: text as CogView2 and CogVideo read it.

Source: github.com/THUDM/icetk at 34f2677. Ids below `image_codes` are those of image codes; those of the sentencepiece
file `ice_text.model` follow, then three special tokens, which the originals append.
"""

from __future__ import annotations

import os

from sat_models.errors import InputError
from sat_models.processing.tokens import SentencePieceTokenizer, read_pieces

START_OF_IMAGE = "<start_of_image>"
_APPENDED = (START_OF_IMAGE, "<start_of_english>", "<start_of_chinese>")
_NEW_LINE = "<n>"


class IceText:
    """`ice_text.model`.

    Args:
        path: of the file.
        image_codes: how many ids stand before those of text.
        vocab_size: of the model that reads the ids.

    Attributes:
        start_of_image: id of the token that ends a text.
        new_line: id of `<n>`, which stands between a film's duration and its text.

    Raises:
        InputError: no sentencepiece file, one without `<n>`, or one with more pieces than the model has words for.
    """

    def __init__(self, path: str | os.PathLike[str], *, image_codes: int, vocab_size: int) -> None:
        pieces = read_pieces(path)
        new_line, count = pieces.PieceToId(_NEW_LINE), pieces.get_piece_size()
        if pieces.IsUnknown(new_line):
            raise InputError(f"'{path}' has no piece {_NEW_LINE}; it is another file than icetk's ice_text.model")
        if image_codes + count + len(_APPENDED) > vocab_size:
            raise InputError(
                f"'{path}' has {count} pieces, and behind {image_codes} image codes this model knows "
                f"{vocab_size - image_codes - len(_APPENDED)}: it is another file than icetk's ice_text.model"
            )
        self._before = image_codes
        self._words = SentencePieceTokenizer(pieces, added={_NEW_LINE: new_line})
        self.start_of_image = image_codes + count + _APPENDED.index(START_OF_IMAGE)
        self.new_line = image_codes + new_line

    def ids(self, text: str) -> list[int]:
        """Ids of a text, which cannot spell special tokens."""
        return [self._before + token for token in self._words.encode(text)]

    def text(self, ids: list[int]) -> str:
        """The text of ids; those of images and special tokens are silent."""
        return self._words.decode([token - self._before for token in ids if token >= self._before])
