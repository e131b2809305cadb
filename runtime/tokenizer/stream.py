"""Text from tokens as they come.  Enters: token ids one by one; leaves: text that never holds half a character."""

from __future__ import annotations

import codecs
from typing import Protocol


class Pieces(Protocol):
    """What the decoder needs of a tokenizer."""

    adds_space_prefix: bool

    def token_bytes(self, token_id: int) -> bytes: ...

    def is_control(self, token_id: int) -> bool: ...


class StreamDecoder:
    """Turns tokens into text; `push(...) + ... + finish()` equals `Tokenizer.decode` of the same ids.

    Bytes of a character that is not complete are held back; bytes that cannot become a character are U+FFFD.

    skip_special    control tokens give no text
    continues       the tokens continue a text: where the tokenizer puts a space before each text, the space of the
                    first token is then a real one and stays
    """

    def __init__(self, tokenizer: Pieces, skip_special: bool = False, continues: bool = False):
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._drop_space = tokenizer.adds_space_prefix and not continues
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Return the characters that `token_id` completes."""
        if self._skip_special and self._tokenizer.is_control(token_id):
            return ""
        piece = self._tokenizer.token_bytes(token_id)
        if self._drop_space and piece:
            self._drop_space = False
            piece = piece.removeprefix(b" ")
        return self._utf8.decode(piece)

    def finish(self) -> str:
        """Return what is left at the end: U+FFFD for a character that was never completed."""
        return self._utf8.decode(b"", final=True)
