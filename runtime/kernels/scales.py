"""Scales of weights, taken apart.  Enters: headers of a panel's blocks; leaves: each group's scale and minimum, as
vectors of the panel's rows.

Types with blocks of 32 columns have one of each, which is computed when it is asked for.  Those of a super-block are
computed all at once and wait in memory (`SuperScales`), so that the loop over its parts stays small: as float32, or as
the whole numbers that they are (`WholeScales`), with which products stay whole numbers for all of the super-block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from .emit import Emitter
from .layouts import BlockLayout
from .target import Target
from .values import F32, I32, Value, vec

ScalesOf = Callable[[Value], tuple[list[Value], list[Value]]]  # of a part's groups; no minimums where there are none


def open_block(e: Emitter, layout: BlockLayout, block: Value, centre: int = 0) -> ScalesOf:
    """Read the header of a panel's block at address `block`; scales and minimums are <n x f32>.

    centre: what products take from the codes; minimums give it back.
    """
    if layout.parts > 1:
        here = SuperScales(e, layout, e.scratch(SuperScales.nbytes(layout, e.target)), centre)
        here.fill(block)
        return here

    def of_part(part: Value) -> tuple[list[Value], list[Value]]:
        scales, minimums = layout.scales(e, _header(e, layout, block))
        return scales, _with_centre(e, scales, minimums, centre)

    return of_part


class SuperScales:
    """Scales and minimums of a super-block of a panel as float32, in memory from `table` on.

    centre: as in `open_block`.
    """

    def __init__(self, e: Emitter, layout: BlockLayout, table: Value, centre: int = 0):
        self._e, self._layout, self._table, self._centre = e, layout, table, centre

    @classmethod
    def nbytes(cls, layout: BlockLayout, target: Target) -> int:
        return 4 * target.lanes * layout.parts * layout.groups * (1 + layout.minimum)

    def fill(self, block: Value) -> None:
        """Compute all from the header of the block at this address."""
        scales, minimums = self._layout.scales(self._e, _header(self._e, self._layout, block))
        self._store([*scales, *_with_centre(self._e, scales, minimums, self._centre)])

    def __call__(self, part: Value) -> tuple[list[Value], list[Value]]:
        """Scales and minimums of a part's groups."""
        groups = self._layout.groups
        minimums = self._vectors(part * groups + self._layout.parts * groups, groups, F32)
        return self._vectors(part * groups, groups, F32), minimums if self._layout.minimum else []

    def _store(self, vectors: list[Value]) -> None:
        for i, vector in enumerate(vectors):
            self._e.store(vector, self._table + 4 * self._e.target.lanes * i)

    def _vectors(self, first: Value, count: int, element: object) -> list[Value]:
        e, n = self._e, self._e.target.lanes
        at = self._table + first * (4 * n)
        return [e.load(at + 4 * n * i, vec(element, n)) for i in range(count)]


class WholeScales(SuperScales):
    """The same as int32 of each group; minimums, too, as int16 of two groups each, or as float32.

    factor, minimum_factor: of all scales and of whole minimums, <n x f32>.
    """

    in_vector: ClassVar[int] = 1  # groups whose scales share a vector

    @classmethod
    def nbytes(cls, layout: BlockLayout, target: Target) -> int:
        groups = layout.parts * layout.groups
        minimums = 1 + groups // 2 if layout.whole_minimums(target) else groups * layout.minimum
        return 4 * target.lanes * (cls._minimums_from(layout) + minimums)

    @classmethod
    def _minimums_from(cls, layout: BlockLayout) -> int:
        """How many vectors come before the minimums."""
        return 1 + layout.parts * layout.groups // cls.in_vector

    def fill(self, block: Value) -> None:
        e, layout = self._e, self._layout
        header = _header(e, layout, block)
        (factor, scales), *rest = layout.integers(e, header)
        scales = [number.to(I32) for number in scales]
        vectors = [factor, *self._stored(scales)]
        if layout.whole_minimums(e.target):
            [(minimum_factor, minimums)] = rest
            vectors += [minimum_factor, *_words(minimums[::2], minimums[1::2])]
        elif layout.minimum:
            vectors += _with_centre(e, *layout.scales(e, header), self._centre)
        self._store(vectors)

    def _stored(self, scales: list[Value]) -> list[Value]:
        """The vectors of all groups' scales."""
        return scales if self._layout.wide_sums(self._e.target) else [number & 0xFFFF for number in scales]

    def __call__(self, part: Value) -> tuple[list[Value], list[Value]]:
        """Scales of a part's groups; their minimums wait for the end of the super-block."""
        groups = self._layout.groups
        return self._vectors(part * groups + 1, groups, I32), []

    @property
    def factor(self) -> Value:
        return self._vectors(self._e.i64(0), 1, F32)[0]

    @property
    def _at_minimums(self) -> Value:
        return self._e.i64(self._minimums_from(self._layout))

    @property
    def minimum_factor(self) -> Value:
        return self._vectors(self._at_minimums, 1, F32)[0]

    def words(self, pair: Value) -> Value:
        """Minimums of two groups."""
        return self._vectors(pair + self._at_minimums + 1, 1, I32)[0]

    def minimums(self, part: Value) -> list[Value]:
        """Those of a part's groups, as float32."""
        groups = self._layout.groups
        return self._vectors(part * groups + self._at_minimums, groups, F32)


class PairedScales(WholeScales):
    """The same as int16 of two groups each, the first one's in the high halves."""

    in_vector = 2

    def _stored(self, scales: list[Value]) -> list[Value]:
        return _words(scales[1::2], scales[::2])

    def of_pair(self, pair: Value) -> Value:
        """Scales of two groups."""
        return self._vectors(pair + 1, 1, I32)[0]


def _words(lows: list[Value], highs: list[Value]) -> list[Value]:
    """int16 of both numbers side by side."""
    return [(low & 0xFFFF) | (high << 16) for low, high in zip(lows, highs, strict=True)]


def table_bytes(layout: BlockLayout, target: Target, opened: bool) -> int:
    """Bytes of the scales of a panel's super-block, as products read them; opened: those of panels taken apart."""
    return _kind(layout, target, opened).nbytes(layout, target)


def scale_table(e: Emitter, layout: BlockLayout, table: Value, opened: bool) -> SuperScales:
    """Those scales, in memory from `table` on."""
    return _kind(layout, e.target, opened)(e, layout, table, layout.centre(e.target))


def _kind(layout: BlockLayout, target: Target, opened: bool) -> type[SuperScales]:
    if layout.paired(target, opened):
        return PairedScales
    return WholeScales if layout.whole_scales(target) else SuperScales


def _header(e: Emitter, layout: BlockLayout, block: Value) -> list[Value]:
    """Read the fields of the header of a panel's block, each a vector of the panel's rows."""
    n, at, header = e.target.lanes, block, []
    for _, ty in layout.header:
        header.append(e.load(at, vec(ty, n)))
        at = at + n * (ty.width // 8)
    return header


def _with_centre(e: Emitter, scales: list[Value], minimums: list[Value], centre: int) -> list[Value]:
    if not centre:
        return minimums
    return [e.fma(scale, e.const(scale.type, centre), m) for scale, m in zip(scales, minimums, strict=True)]
