"""A KV page.  Enters: float32 keys and values of one position; leaves: scores of queries with a page's keys, and its
values as float32 again.

A page is 64 positions of one layer, one part for each KV head after the other.  Keys lie so that a vector of positions
is one load, values so that a vector of columns is one load:

f32, f16      keys [head_dim][64], values [64][head_dim]
q8_0, q4_0    pages.py says
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from .emit import Emitter
from .values import F16, F32, Value, vec

PAGE = 64  # positions of one page


def pieces(start: int, length: int, lanes: int) -> list[tuple[int, int]]:
    """Cut columns start..start+length-1 into (column, width): whole vectors, then powers of two that get smaller."""
    found, end = [], start + length
    while start < end:
        width = min(lanes, 1 << (end - start).bit_length() - 1)
        found.append((start, width))
        start += width
    return found


class Ahead:
    """Asks for `nbytes` of memory from `address` on, which the next step reads, some with every turn of a loop.

    A page's part of one head is short for the CPU's own guess of what comes next: attention of one row after 4096
    positions (8 KV heads of 64, F16, two threads) took 13.9 ms in 16 layers without, 9.6 ms with it.
    """

    def __init__(self, address: Value, nbytes: int):
        self._address, self._nbytes = address, nbytes

    def turn(self, e: Emitter, index: Value, turns: int) -> None:
        """Do the part of turn number `index` of `turns`."""
        count = max(1, round(self._nbytes / (64 * turns)))
        step = self._nbytes // (turns * count)
        for i in range(count):
            e.prefetch(self._address + index * (count * step) + i * step)


@dataclass(frozen=True)
class PageFormat(ABC):
    """How the keys and values of heads of `head_dim` are kept."""

    head_dim: int

    name: ClassVar[str]
    multiple: ClassVar[int] = 1  # what head_dim must be a multiple of
    rotated: ClassVar[bool] = False  # keys and queries go through a Hadamard rotation (rope.py)

    @property
    @abstractmethod
    def head_bytes(self) -> int:
        """Bytes of the keys, or of the values, that a page holds of one KV head."""

    @abstractmethod
    def columns(self, lanes: int) -> list[tuple[int, int]]:
        """The columns of a value row in the pieces that `value` takes."""

    @abstractmethod
    def store_key(self, e: Emitter, key: Value, page: Value, slot: Value) -> None:
        """Write the float32 [head_dim] at `key` to place `slot` of the head's keys at `page`."""

    @abstractmethod
    def store_value(self, e: Emitter, value: Value, page: Value, slot: Value) -> None:
        """Write the float32 [head_dim] at `value` to place `slot` of the head's values at `page`."""

    @property
    @abstractmethod
    def query_bytes(self) -> int:
        """Bytes of one packed query."""

    @abstractmethod
    def pack_query(self, e: Emitter, query: Value, scale: Value, packed: Value) -> None:
        """Bring the float32 [head_dim] at `query`, times the float32 `scale`, to the form that `dots` reads."""

    @abstractmethod
    def dots(self, e: Emitter, keys: Value, queries: Value, n: int, scores: Value, ahead: Ahead | None) -> None:
        """scores float32 [n][64]: the product of each of n packed queries, one behind the other, with each key."""

    @property
    @abstractmethod
    def row_bytes(self) -> int:
        """Bytes from one value row to the next, which lie at the end of a head's part of a page."""

    def row(self, e: Emitter, values: Value, position: Value) -> Value:
        """Where the value row of `position` starts."""
        return values + (self.head_bytes - PAGE * self.row_bytes) + position * self.row_bytes

    @abstractmethod
    def value(self, e: Emitter, row: Value, column: int, width: int) -> Value:
        """One piece of a value row as float32, exact, without its block's scale."""

    @property
    def scales(self) -> int:
        """Scales of a value row: `value` leaves them out, `weights` puts them in."""
        return 0

    def weights(self, e: Emitter, values: Value, shares: Value, n: int, weights: Value) -> None:
        """weights float32 [scales][n][64]: the float32 [n][64] at `shares` times the scales of the page's values."""
        raise NotImplementedError


class FloatPages(PageFormat):
    stored: ClassVar[Any]
    size: ClassVar[int]

    @property
    def head_bytes(self) -> int:
        return self.size * PAGE * self.head_dim

    def columns(self, lanes: int) -> list[tuple[int, int]]:
        return pieces(0, self.head_dim, lanes)

    def store_key(self, e: Emitter, key: Value, page: Value, slot: Value) -> None:
        for column, width in self.columns(e.target.lanes):
            part = e.load(key + 4 * column, vec(F32, width)).to(self.stored)
            for i in range(width):
                e.store(part[i] if width > 1 else part, page + (column + i) * (self.size * PAGE) + slot * self.size)

    def store_value(self, e: Emitter, value: Value, page: Value, slot: Value) -> None:
        row = self.row(e, page, slot)
        for column, width in self.columns(e.target.lanes):
            e.store(e.load(value + 4 * column, vec(F32, width)).to(self.stored), row + self.size * column)

    @property
    def query_bytes(self) -> int:
        return 4 * self.head_dim

    def pack_query(self, e: Emitter, query: Value, scale: Value, packed: Value) -> None:
        for column, width in self.columns(e.target.lanes):
            e.store(e.load(query + 4 * column, vec(F32, width)) * scale.splat(width), packed + 4 * column)

    def dots(self, e: Emitter, keys: Value, queries: Value, n: int, scores: Value, ahead: Ahead | None) -> None:
        lanes = e.target.lanes
        vectors = 4 if lanes >= 16 else 2  # n * vectors sums and the keys fit the registers for n <= 6
        with e.loop(0, PAGE, vectors * lanes) as position:
            sums = [[e.var(e.zero(vec(F32, lanes))) for _ in range(vectors)] for _ in range(n)]
            unroll = math.gcd(self.head_dim, 4)  # with one pointer each, a quarter faster than a column a turn
            with e.loop(0, self.head_dim, unroll) as d:
                if ahead:
                    turns = self.head_dim // unroll
                    turn = position // (vectors * lanes) * turns + d // unroll
                    ahead.turn(e, turn, turns * PAGE // (vectors * lanes))
                rows = e.opaque(keys + d * (self.size * PAGE) + position * self.size)
                query = e.opaque(queries + d * 4)
                for k in range(unroll):
                    at = rows + self.size * PAGE * k
                    key = [e.load(at + self.size * lanes * v, vec(self.stored, lanes)).to(F32) for v in range(vectors)]
                    for i in range(n):
                        x = e.broadcast(query + (4 * k + i * self.query_bytes), F32, lanes)
                        for v in range(vectors):
                            sums[i][v].set(e.fma(key[v], x, sums[i][v].value))
            for i in range(n):
                for v in range(vectors):
                    e.store(sums[i][v].value, scores + position * 4 + 4 * (i * PAGE + v * lanes))

    @property
    def row_bytes(self) -> int:
        return self.size * self.head_dim

    def value(self, e: Emitter, row: Value, column: int, width: int) -> Value:
        return e.load(row + self.size * column, vec(self.stored, width)).to(F32)


class F32Pages(FloatPages):
    name, stored, size = "f32", F32, 4


class F16Pages(FloatPages):
    name, stored, size = "f16", F16, 2
