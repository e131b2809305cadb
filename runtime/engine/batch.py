"""A step's inputs.  Enters: parts (a sequence, its next tokens, whose logits are wanted); leaves: the arrays that the
kernels read, a ragged batch of rows.

Prefill, decoding and many sequences at once are the same step with other rows.  Rows that give logits come first, those
of all parts, then the others: what only they need is done for the first rows.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..kernels.attention import CHUNK, ITEM
from ..kernels.page_format import PAGE
from ..models.rotation import Rotation
from .kv_pages import Sequence

_KEPT = 128  # pages of positions whose turns are kept: 2 MiB for heads of 64
TASKS_PER_THREAD = 4  # of attention, at least: so that all threads end at about the same time

N_ROWS, N_OUTPUTS, N_ITEMS, N_OUTPUT_ITEMS = range(4)


@dataclass(frozen=True)
class Part:
    """`tokens` follow what `sequence` holds; `outputs` of the last of them give logits (0, 1 or all)."""

    sequence: Sequence
    tokens: list[int]
    outputs: int = 1


@dataclass(frozen=True)
class Division:
    """How attention's work is cut into tasks: by KV head, by tiles of rows, and by position where that is too few.

    tile_rows: rows of a tile, at most; context: positions of one sequence, at most; causal: a row sees the positions up
    to its own, otherwise all of its sequence, whose rows are then those of one step.
    """

    n_kv_heads: int
    tile_rows: int
    threads: int
    context: int
    causal: bool = True

    @property
    def items(self) -> int:
        """Items that a step should have, at least; each is a task for every KV head."""
        return -(-TASKS_PER_THREAD * self.threads // self.n_kv_heads)

    @property
    def partials(self) -> int:
        """Chunks of split rows that there is room for: one sequence fits always."""
        return 2 * -(-self.context // CHUNK)


class _Turns:
    """Cosines and sines of a rotation, times its magnitude.

    Single positions find those of their page, which are computed at once: it takes 5 us instead of 27.
    """

    def __init__(self, rotation: Rotation, context: int):
        self._rotation, self._context = rotation, context
        self._page = functools.lru_cache(_KEPT)(lambda page: self.at(page * PAGE, PAGE))

    def at(self, start: int, n: int) -> NDArray[np.float32]:
        """float32 [2, n, n_rot/2] of the positions from `start` on."""
        if n == 1:
            page, slot = divmod(start, PAGE)
            return self._page(page)[:, slot : slot + 1]
        angles = self._rotation.angles(np.arange(start, start + n), self._context)
        return (self._rotation.magnitude * np.array([np.cos(angles), np.sin(angles)])).astype(np.float32)


class StepInputs:
    """Arrays of a fixed place in memory for up to `max_rows` rows.

    tokens, positions, pages, slots int64 [max_rows]; angles: of each rotation cosine and sine, float32
    [2, max_rows, n_rot/2]; items int64 [max_rows + 2 * division.items, 8]; counts int64 [4]: rows, those of them that
    give logits, items, those of them that are of such rows.
    """

    def __init__(self, max_rows: int, rotations: tuple[Rotation, ...], division: Division):
        self.max_rows, self.rotations, self.division = max_rows, rotations, division
        self.tokens, self.positions, self.pages, self.slots = np.zeros((4, max_rows), np.int64)
        self.angles = [np.zeros((2, max_rows, rotation.n_rot // 2), np.float32) for rotation in rotations]
        self._turns = [_Turns(rotation, division.context) for rotation in rotations]
        self.items = np.zeros((max_rows + 2 * division.items, ITEM.size), np.int64)
        self.counts = np.zeros(4, np.int64)

    def fill(self, parts: Items[Part]) -> int:
        """Extend each part's sequence by its tokens and lay the rows out; return the number of output rows.

        Raises ContextLengthError when one does not fit (sequences before it have grown then: the caller truncates).
        """
        rests = [(part, part.sequence.extend(part.tokens), len(part.tokens) - part.outputs) for part in parts]
        runs = [(part, start, rest, len(part.tokens)) for part, start, rest in rests if part.outputs]
        runs += [(part, start, 0, rest) for part, start, rest in rests if rest]
        row, spans = 0, []  # of each run: first row, rows, position of the first, address of its page offsets
        for part, start, first, end in runs:
            self._fill_rows(row, part.sequence, part.tokens, start, first, end)
            spans.append((row, end - first, start + first, part.sequence.offsets_address))
            row += end - first
        items, n_outputs = self._items(spans), sum(part.outputs for part in parts)
        self.items[: len(items)] = items
        self.counts[:] = row, n_outputs, len(items), sum(item[0] < n_outputs for item in items)
        return n_outputs

    def _fill_rows(self, row: int, sequence: Sequence, tokens: list[int], start: int, first: int, end: int) -> None:
        """Rows from `row` on are tokens[first:end], where tokens[0] has the position `start` of the sequence."""
        n, position = end - first, start + first
        if n == 1:  # between two tokens the interpreter and NumPy run from memory: arrays take four times as long
            page, slot = divmod(position, PAGE)
            self.tokens[row], self.positions[row] = tokens[first], position
            self.pages[row], self.slots[row] = sequence.offsets[page], slot
        else:
            here, positions = slice(row, row + n), np.arange(position, position + n)
            self.tokens[here], self.positions[here] = tokens[first:end], positions
            self.pages[here] = sequence.offsets[positions // PAGE]
            self.slots[here] = positions % PAGE
        for turns, out in zip(self._turns, self.angles, strict=True):
            out[:, row : row + n] = turns.at(position, n)

    def _items(self, spans: list[tuple[int, int, int, int]]) -> list[tuple[int, ...]]:
        """Cut the rows into items of attention (kernels/attention.py: ITEM).

        The results are the same bits however they are cut.  Tiles get smaller, then rows are split by position, until
        there is enough to do for all threads.
        """
        rows, wanted, causal = self.division.tile_rows, self.division.items, self.division.causal
        while rows > 1 and sum(-(-n // rows) for _, n, _, _ in spans) < wanted:
            rows //= 2
        tiles = [
            (row + first, min(rows, n - first), start + first, start + (min(first + rows, n) if causal else n), pages)
            for row, n, start, pages in spans
            for first in range(0, n, rows)
        ]
        pieces, used = -(-wanted // max(1, len(tiles))), 0
        items: list[tuple[int, ...]] = []
        for tile in tiles:
            chunks = (tile[3] - 1) // CHUNK + 1
            if rows > 1 or pieces == 1 or chunks == 1 or used + chunks > self.division.partials:
                items.append((*tile, 0, chunks, -1))
                continue
            step = -(-chunks // pieces)
            items += [(*tile, first, min(first + step, chunks), used) for first in range(0, chunks, step)]
            used += chunks
        return items
