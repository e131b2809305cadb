"""Byte-level BPE (tokenizer.ggml.model "gpt2").  Enters: tokens and merges; leaves: a tokenizer.

The text is cut into words by the rule that `tokenizer.ggml.pre` names, each byte of a word becomes one printable
character (the mapping of GPT-2), and the `tokenizers` library merges them.
"""

from __future__ import annotations

import gc
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np

from ...errors import ModelFileError, UnsupportedError, UsageError, printable
from ...quant.gguf_reader import GgufFile
from .base import Tokenizer
from .pretokenizers import PRE_TOKENIZERS, PreTokenizer
from .vocab import TokenType, Vocabulary, read_vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library
    from tokenizers.pre_tokenizers import PreTokenizer as Splitter

MAX_MERGES = 1 << 22
_PRE, _MERGES = "tokenizer.ggml.pre", "tokenizer.ggml.merges"


def _byte_of_character() -> dict[str, int]:
    """GPT-2's mapping, inverted: printable Latin-1 stands for itself, the other bytes for U+0100 and on."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_of_character()
_NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}


def load(gguf: GgufFile) -> Tokenizer:
    """Return the tokenizer of an open file; raises ModelFileError or UnsupportedError naming the key."""
    name = gguf.get_str(_PRE)
    if name not in PRE_TOKENIZERS:
        raise UnsupportedError("pre-tokenizer", name, tuple(PRE_TOKENIZERS), where=f"{gguf.path}: {_PRE}")
    rule = PRE_TOKENIZERS[name]
    collects = gc.isenabled()
    gc.disable()  # half a million strings and pairs, none of them garbage: looking at them costs 0.1 to 0.4 s
    try:
        vocabulary = read_vocabulary(gguf, default_ids={}, add_bos=rule.add_bos)
        return BytePairTokenizer(vocabulary, _build(gguf, vocabulary, rule))
    finally:
        if collects:
            gc.enable()


class BytePairTokenizer(Tokenizer):
    """Merges the bytes of each word, the earliest merge of the list first."""

    def __init__(self, vocabulary: Vocabulary, library: Library):
        super().__init__(vocabulary)
        self._library = library
        self._has_all_bytes = all(
            character in vocabulary.ids for character, byte in _BYTES.items() if byte not in _NEVER_IN_UTF8
        )

    def _encode_plain(self, text: str, after_special: bool) -> list[int]:
        ids = self._library.encode(text, add_special_tokens=False).ids
        # the library drops bytes that have no token; a prompt must not change silently
        if not self._has_all_bytes and b"".join(map(self.token_bytes, ids)) != text.encode():
            raise UsageError(f"{self.vocabulary.path}: the vocabulary has no token for a byte of {printable(text)!r}")
        return ids

    def _spell_normal(self, token: str) -> bytes:
        try:
            return bytes([_BYTES[character] for character in token])
        except KeyError:  # not written in the mapping: a token that was added as plain text
            return token.encode("utf-8", "surrogateescape")


# ---------------------------------------------------------------------------------------------------------------------
# the library's tokenizer


def _build(gguf: GgufFile, vocabulary: Vocabulary, rule: PreTokenizer) -> Library:
    """Return the library's tokenizer; constructing it from a dict and pairs is twice as fast as from JSON."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models

    merges = _read_merges(gguf)
    known = set(merges)
    if len(known) < len(merges):  # of a merge that is there twice the first counts
        merges = list(dict.fromkeys(merges))
    words = _mergeable(vocabulary, known)
    halves = " ".join(merges).split(" ") if merges else []
    pairs = list(zip(halves[::2], halves[1::2], strict=True))
    try:
        library = Library(models.BPE(words, pairs, ignore_merges=rule.whole_words))
    except Exception as error:  # the library has no type of its own for a bad merge
        raise _explain(gguf, words, pairs) or gguf.bad_value(_MERGES, printable(error)) from error
    library.pre_tokenizer = word_splitter(rule)
    return library


def word_splitter(rule: PreTokenizer) -> Splitter:
    """Return the library's pre-tokenizer for `rule`: words of text become words of printable characters, one a byte."""
    from tokenizers import Regex, pre_tokenizers

    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, byte_level])


def _read_merges(gguf: GgufFile) -> list[str]:
    """Return the merges, each "left right"."""
    stored = gguf.get_array(_MERGES, of="string")
    if len(stored) > MAX_MERGES:
        raise gguf.bad_value(_MERGES, f"has {len(stored)} merges; allowed are {MAX_MERGES}")
    merges: list[str] = list(stored)
    spaces = list(map(str.count, merges, repeat(" ")))
    if spaces != [1] * len(merges):
        i = next(i for i, count in enumerate(spaces) if count != 1)
        raise gguf.bad_value(_MERGES, f"merge {i} is {printable(merges[i])!r}, not two tokens with one space between")
    return merges


def _mergeable(vocabulary: Vocabulary, merges: set[str]) -> dict[str, int]:
    """Return text -> id of the tokens that plain text can become.

    Control tokens are left out, so that no text becomes one, unless the merges themselves make them.
    """
    words = dict(vocabulary.ids)
    control = np.flatnonzero(np.isin(vocabulary.file_types, (TokenType.CONTROL, TokenType.UNKNOWN)))
    for token in (vocabulary.tokens[i] for i in control.tolist()):
        if not any(f"{token[:cut]} {token[cut:]}" in merges for cut in range(1, len(token))):
            del words[token]
    try:
        "".join(words).encode()
    except UnicodeEncodeError:  # tokens that are not UTF-8 cannot be typed
        words = {token: i for token, i in words.items() if token.isascii() or _is_text(token)}
    return words


def _is_text(token: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in token)


def _explain(gguf: GgufFile, words: dict[str, int], pairs: list[tuple[str, str]]) -> ModelFileError | None:
    """Return the error for the first merge whose halves or result are no tokens."""
    for i, (left, right) in enumerate(pairs):
        for token in (left, right, left + right):
            if token not in words:
                merge = printable(f"{left} {right}")
                return gguf.bad_value(_MERGES, f"merge {i} is {merge!r}, but {printable(token)!r} is no token")
    return None
