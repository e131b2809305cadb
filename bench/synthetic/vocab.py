"""A byte-level BPE vocabulary of any size.  Enters: how many ids; leaves: tokens, merges, and tokenizer.json.

Each merge adds one letter to a token that is there already, shortest first, so the table is as large and as deep as a
trained one.
"""

from __future__ import annotations

import itertools
import string
from dataclasses import dataclass
from typing import Any

from ...quant.split_patterns import cl100k

SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_LLAMA3_SPLIT = cl100k(r"\p{N}{1,3}")


@dataclass(frozen=True)
class Vocabulary:
    """Plain tokens by id, and the pairs that merge into one, by rank; the special tokens' ids follow the plain ones."""

    tokens: list[str]
    merges: list[tuple[str, str]]

    @property
    def bos(self) -> int:
        """The id of the token that begins a text."""
        return len(self.tokens)

    @property
    def eos(self) -> int:
        """The id of the token that ends a turn."""
        return len(self.tokens) + len(SPECIAL) - 1


def vocabulary(size: int) -> Vocabulary:
    """Return the vocabulary of exactly `size` ids: the bytes, made-up merges, the special tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = sorted(ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    wanted = size - len(SPECIAL) - len(tokens)
    shorter = ["Ġ", *string.ascii_lowercase]
    while len(merges) < wanted:
        pairs = list(itertools.islice(itertools.product(shorter, string.ascii_lowercase), wanted - len(merges)))
        merges += pairs
        shorter = ["".join(pair) for pair in pairs]
        tokens += shorter
    return Vocabulary(tokens, merges)


def tokenizer_json(vocab: Vocabulary) -> dict[str, Any]:
    """Return tokenizer.json with Llama 3's pre-tokenizer."""
    special = [
        {"id": vocab.bos + i, "content": text, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i, text in enumerate(SPECIAL)
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": _LLAMA3_SPLIT}, "behavior": "Isolated", "invert": False}
    bos = {"SpecialToken": {"id": SPECIAL[0], "type_id": 0}}
    sequences = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, sequences[0]],
            "pair": [bos, sequences[0], bos, sequences[1]],
            "special_tokens": {SPECIAL[0]: {"id": SPECIAL[0], "ids": [vocab.bos], "tokens": [SPECIAL[0]]}},
        },
        "decoder": level | {"add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {token: i for i, token in enumerate(vocab.tokens)},
            "merges": [list(pair) for pair in vocab.merges],
        },
    }
