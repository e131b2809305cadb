"""Scales of weights, taken apart.  Enters: headers of a panel's blocks; leaves: each group's scale and minimum, as
vectors of the panel's rows.

Types with blocks of 32 columns have one of each, which is computed when it is asked for.  Those of a super-block are
computed all at once and wait in memory (`SuperScales`), so that the loop over its parts stays small.
"""

from __future__ import annotations

from collections.abc import Callable

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
        here = SuperScales(e, layout, e.scratch(SuperScales.nbytes(layout, e.target, whole=False)), centre)
        here.fill(block)
        return here

    def of_part(part: Value) -> tuple[list[Value], list[Value]]:
        scales, minimums = layout.scales(e, _header(e, layout, block))
        return scales, _with_centre(e, scales, minimums, centre)

    return of_part


class SuperScales:
    """Scales and minimums of a super-block of a panel, in memory from `table` on.

    whole: scales are int16 in <n x i32>, to be multiplied by `factor`; centre: as in `open_block`.
    """

    def __init__(self, e: Emitter, layout: BlockLayout, table: Value, centre: int = 0, whole: bool = False):
        self._e, self._layout, self._table, self._centre, self._whole = e, layout, table, centre, whole

    @staticmethod
    def nbytes(layout: BlockLayout, target: Target, whole: bool) -> int:
        return 4 * target.lanes * (layout.parts * layout.groups * (1 + layout.minimum) + whole)

    def fill(self, block: Value) -> None:
        """Compute all from the header of the block at this address."""
        e, size = self._e, 4 * self._e.target.lanes
        header = _header(e, self._layout, block)
        scales, minimums = self._layout.scales(e, header)
        vectors = _with_centre(e, scales, minimums, self._centre)
        if self._whole:
            (factor, numbers), *_ = self._layout.integers(e, header)
            vectors = [*(number & 0xFFFF for number in numbers), *vectors, factor]
        else:
            vectors = scales + vectors
        for i, vector in enumerate(vectors):
            e.store(vector, self._table + size * i)

    def __call__(self, part: Value) -> tuple[list[Value], list[Value]]:
        """Scales and minimums of a part's groups."""
        return self._vectors(part, 0, I32 if self._whole else F32), self.minimums(part)

    def minimums(self, part: Value) -> list[Value]:
        return self._vectors(part, 1, F32) if self._layout.minimum else []

    @property
    def factor(self) -> Value:
        """<n x f32>"""
        e, count = self._e, self._layout.parts * self._layout.groups * (1 + self._layout.minimum)
        return e.load(self._table + 4 * e.target.lanes * count, vec(F32, e.target.lanes))

    def _vectors(self, part: Value, kind: int, element: object) -> list[Value]:
        e, groups, n = self._e, self._layout.groups, self._e.target.lanes
        at = self._table + part * (4 * n * groups) + 4 * n * groups * self._layout.parts * kind
        return [e.load(at + 4 * n * g, vec(element, n)) for g in range(groups)]


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
