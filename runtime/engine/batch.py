"""A step's inputs.  Enters: parts (a sequence, its next tokens, whose logits are wanted); leaves: the arrays that the
kernels read, a ragged batch of rows.

Prefill, decoding and many sequences at once are the same step with other rows.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..kernels.attention import PAGE, TILE
from .kv_pages import Sequence

TILE_ROWS = 32  # rows of one attention task: enough tasks for all threads, enough rows to reuse each key

N_ROWS, N_OUTPUTS, N_TILES = range(3)


@dataclass(frozen=True)
class Part:
    """`tokens` follow what `sequence` holds; `outputs` of the last of them give logits (0, 1 or all)."""

    sequence: Sequence
    tokens: list[int]
    outputs: int = 1


class StepInputs:
    """Arrays of a fixed place in memory for up to `max_rows` rows.

    tokens, pages, slots, output_rows int64 [max_rows]; cosine, sine float32 [max_rows, n_rot/2]; tiles int64
    [max_rows, 4]; counts int64 [3]: rows, output rows, tiles.
    """

    def __init__(self, max_rows: int, frequencies: NDArray[np.float64]):
        """frequencies: float64 [n_rot/2], radians per position of each rotary pair."""
        self.max_rows, self._frequencies = max_rows, frequencies
        self.tokens, self.pages, self.slots, self.output_rows = np.zeros((4, max_rows), np.int64)
        self.cosine, self.sine = np.zeros((2, max_rows, len(frequencies)), np.float32)
        self.tiles = np.zeros((max_rows, TILE.size), np.int64)
        self.counts = np.zeros(3, np.int64)

    def fill(self, parts: Items[Part]) -> int:
        """Extend each part's sequence by its tokens and lay the rows out; return the number of output rows.

        Raises ContextLengthError when one does not fit (sequences before it have grown then: the caller truncates).
        """
        row = tile = output = 0
        for part in parts:
            n = len(part.tokens)
            start = part.sequence.extend(part.tokens)
            here = slice(row, row + n)
            positions = np.arange(start, start + n)
            self.tokens[here] = part.tokens
            self.pages[here] = part.sequence.offsets[positions // PAGE]
            self.slots[here] = positions % PAGE
            angles = positions[:, None] * self._frequencies
            self.cosine[here], self.sine[here] = np.cos(angles), np.sin(angles)
            for first in range(0, n, TILE_ROWS):
                rows = min(TILE_ROWS, n - first)
                self.tiles[tile] = row + first, rows, start + first, part.sequence.offsets.ctypes.data
                tile += 1
            self.output_rows[output : output + part.outputs] = np.arange(row + n - part.outputs, row + n)
            output += part.outputs
            row += n
        self.counts[:] = row, output, tile
        return output
