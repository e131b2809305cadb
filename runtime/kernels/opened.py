"""Panels taken apart.  Enters: blocks of panels; leaves: their scales, and where it pays a byte for each code, in a
thread's own memory.

A prompt meets a panel with many tiles of activations, for all of which this is done once: of super-blocks the scales
(in Q4_K prompts take 2 to 3 % less time so), and the codes of some types (`Target.opens_codes`).  A panel's codes are
twice as large then, so they are taken apart for some blocks at a time, which stay in the first-level cache.
"""

from __future__ import annotations

from collections.abc import Iterator

from .emit import Emitter
from .layouts import BLOCK, BlockLayout
from .panels import unpack
from .scales import scale_table, table_bytes
from .target import Target
from .values import I8, Value, Variable, vec


def opens_panels(layout: BlockLayout, target: Target) -> bool:
    """Whether full tiles of prompts find anything of a panel taken apart."""
    return layout.parts > 1 or target.opens_codes(layout)


def opened_bytes(layout: BlockLayout, target: Target) -> int:
    """Bytes of a block of one panel, taken apart."""
    codes = layout.parts * BLOCK * target.lanes if target.opens_codes(layout) else 0
    return table_bytes(layout, target, opened=True) + codes


def opened_steps(layout: BlockLayout, target: Target, steps: int) -> int:
    """How many of a panel's `steps` blocks are taken apart at a time."""
    if not target.opens_codes(layout):
        return steps
    rounds = max(1, round(steps * opened_bytes(layout, target) / target.cached_bytes))
    return -(-steps // rounds)


def workspace(layout: BlockLayout, target: Target, steps: int) -> tuple[int, int]:
    """How many blocks of panels of `steps` are taken apart at a time, and what a thread needs for it, in bytes.

    (0, 0): nothing is taken apart.
    """
    if not opens_panels(layout, target):
        return 0, 0
    at_once = opened_steps(layout, target, steps)
    return at_once, -(-target.shape(layout)[0] * at_once * opened_bytes(layout, target) // 64) * 64


class OpenedBlock:
    """A block of a panel, taken apart: its scales, then any codes, from `address` on."""

    def __init__(self, e: Emitter, layout: BlockLayout, address: Value):
        self._e, self._layout, self._codes_at = e, layout, address + table_bytes(layout, e.target, opened=True)
        self.scales = scale_table(e, layout, address, opened=True)

    def fill(self, block: Value) -> None:
        """Take apart the block at this address of a panel."""
        e, layout, n = self._e, self._layout, self._e.target.lanes
        self.scales.fill(block)
        if not e.target.opens_codes(layout):
            return
        with e.loop(0, layout.parts) as part:
            codes = e.var(block + layout.header_bytes(n) + part * layout.part_bytes(n))
            order = layout.order(1)
            for i, vector in zip(order, unpack(e, layout, codes, order), strict=True):
                e.store(vector, self.codes(part) + 4 * n * i)

    def codes(self, part: Value) -> Value:
        """The address of the codes of 32 columns: eight vectors <4n x i8>."""
        return self._codes_at + part * (BLOCK * self._e.target.lanes)


def opened_codes(e: Emitter, codes: Variable, order: list[int], again: int) -> Iterator[Value]:
    """The eight vectors from address `codes` on, in this order and as late: what `panels.unpack` yields."""
    n = e.target.lanes
    for done, j in enumerate(order):
        if done and done % again == 0:
            codes.set(e.opaque(codes.value))
        yield e.load(codes.value + 4 * n * j, vec(I8, 4 * n))
