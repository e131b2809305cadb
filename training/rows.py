"""Rows of token ids for training.  Enters: documents; leaves: int16 rows of `context` + 1 ids, -1 where there is none.

Whole documents are packed into a row while they fit, so that every row begins with one and none is cut unless it is
longer than a row.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tokenizers import Tokenizer

NOTHING = -1
_WAITING = 64  # documents to choose from: 99 of 100 places in a row are then filled


def packed_rows(next_document: Callable[[], str], tokenizer: Tokenizer, rows: int, context: int) -> np.ndarray:
    """Return int16 [rows, context + 1]."""
    packed = np.full((rows, context + 1), NOTHING, np.int16)
    waiting: list[list[int]] = []
    for row in packed:
        used = 0
        while True:
            while len(waiting) < _WAITING:
                texts = [next_document() for _ in range(_WAITING)]
                encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
                waiting += [encoding.ids[: context + 1] for encoding in encodings]
            fitting = next((number for number, ids in enumerate(waiting) if used + len(ids) <= context + 1), None)
            if fitting is None:
                break
            ids = waiting.pop(fitting)
            row[used : used + len(ids)] = ids
            used += len(ids)
    return packed
