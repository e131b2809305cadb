"""Products with int8 activations.  Enters: panels of codes, tiles of activations; leaves: each row's sums of products.

Whole numbers are exact in any order, so LLVM may take a block's instructions in the order that it likes.  It likes to
start many at once, and then what is computed waits on the stack for registers: 10 to 30 vectors of each block of AVX2,
where prompts took up to a quarter longer.  `Emitter.settle`, addresses of which LLVM does not know that they are the
same (`Emitter.opaque`) and sums that stay in memory (`Emitter.stored`) say what has to be done before what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from .activations import ROW_BYTES
from .emit import Emitter
from .layouts import BLOCK, BlockLayout
from .panels import open_block, unpack
from .records import Fields
from .target import Steps
from .values import F32, I32, Local, Value, Variable, vec

CACHE_LINE = 64
PREFETCH_BYTES = 4096  # how far ahead a single row asks for weights: decoding gains 8 % (2 to 8 KiB do alike)

Scales = Callable[[], tuple[list[Value], list[Value]]]  # those of a panel's 32 columns, and the minimums


def add_blocks(
    e: Emitter, layout: BlockLayout, a: Fields, panels: list[Value], row: Value, sums: Sequence[Sequence[Local]]
) -> None:
    """Panels by the rows from `row` on, all of one tile: sums[p][r] <n x f32> += their products over all columns."""
    n, tile, alone = e.target.lanes, e.target.tile, len(sums[0]) == 1
    again = e.target.loads_again(layout, alone)
    header, size = layout.header_bytes(n), layout.part_bytes(n)
    record, first = a.x + row // tile * a.x_stride, row % tile
    # Of the first row's codes and correction.  Were they not opaque, LLVM would address one from the other; a product
    # with an indexed operand is two instructions to the CPU, and prompts take up to twice as long.
    at = [e.var(e.opaque(place)) for place in (record + first * ROW_BYTES, record + first * 4 + a.correction)]
    with e.loop(0, a.steps) as i:
        blocks = [panel + i * layout.step_bytes(n) for panel in panels]
        ahead = e.i64(PREFETCH_BYTES)
        if alone and len(panels) > 1:  # what follows a panel is its neighbour, which is read already: skip that
            size_of = panels[1] - panels[0]
            ahead = e.select(i * layout.step_bytes(n) + ahead < size_of, ahead, ahead + size_of * (len(panels) - 1))
        if alone:
            for block in blocks:
                _prefetch(e, block + ahead, header)
        scales_of = [open_block(e, layout, block) for block in blocks]
        inner = sums  # of a super-block before the activations' scale, which all its parts share
        if layout.parts > 1:
            inner = [of_panel[0].more([e.zero(vec(F32, n)) for _ in of_panel]) for of_panel in sums]
        with e.loop(0, layout.parts) if layout.parts > 1 else nullcontext(e.i64(0)) as part:
            codes = [e.var(block + header + part * size) for block in blocks]
            if alone:
                for address in codes:
                    _prefetch(e, address.value + ahead, size)
            weights = [unpack(e, layout, address, layout.order(e.target.together), again) for address in codes]
            scales = [partial(of_part, part) for of_part in scales_of]
            _add_part(e, layout, weights, scales, at, codes, inner)
            for place in at:
                place.set(e.opaque(place.value + a.block_stride))
        if inner is not sums:
            for r in range(len(sums[0])):
                scale = e.broadcast(at[0].value - a.block_stride + (ROW_BYTES * r + BLOCK), F32, n)
                for total, part_sums in zip(sums, inner, strict=True):
                    total[r].set(e.fma(part_sums[r].value, scale, total[r].value))


def _prefetch(e: Emitter, address: Value, nbytes: int) -> None:
    """A single row is bound by memory: ask for weights that come later (past the last ones this does nothing)."""
    for line in range(0, nbytes, CACHE_LINE):
        e.prefetch(address + line)


def _add_part(
    e: Emitter, layout: BlockLayout, weights: list[Iterator[Value]], scales_of: Sequence[Scales], at: list[Variable],
    codes: list[Variable], sums: Sequence[Sequence[Local]],
) -> None:  # fmt: skip
    """Add the products of 32 columns.

    weights, scales_of, codes: of each panel its vectors, its scales, and the address of what is left of the vectors;
    at: addresses of the first row's codes and correction.  The activations' scale is among the factors where each 32
    columns have their own.
    """
    n, tile, groups, correction = e.target.lanes, e.target.tile, layout.groups, layout.correction(e.target)
    rows, order, centre = range(len(sums[0])), layout.order(e.target.together), layout.centre(e.target)
    has_start = correction is not None and correction.factor != 0
    halves = correction is not None and correction.halves

    def corrected(r: int, i: int, ty: Any) -> Value:
        return e.broadcast(at[1].value + 4 * (tile * i + r), ty, n)

    def columns(i: int, r: int, count: int) -> Value:
        return e.repeated_bytes(at[0].value + (ROW_BYTES * r + 4 * i), count, 4 * n)

    def steps(g: int) -> Steps:
        for i in order[g * 8 // groups : (g + 1) * 8 // groups]:
            yield [next(w) for w in weights], partial(columns, i)

    for g in range(groups):
        starts = [corrected(r, g, I32) if has_start else e.zero(vec(I32, n)) for r in rows]
        dots = e.target.dots(e, starts, steps(g), layout.bound(), halves)
        if e.target.registers < 32:
            e.settle(dots)
        factors, offsets = [], []
        for scales, minimums in (now() for now in scales_of):
            factors.append(scales[g])
            if minimums:
                offsets.append(
                    e.fma(scales[g], e.const(scales[g].type, centre), minimums[g]) if centre else minimums[g]
                )
        for r in rows:
            own_scale = None if layout.parts > 1 else e.broadcast(at[0].value + (ROW_BYTES * r + BLOCK), F32, n)
            for p, factor in enumerate(factors):
                total = sums[p][r].value
                total = e.fma(dots[p][r].to(F32), factor if own_scale is None else factor * own_scale, total)
                if offsets:
                    total = e.fma(offsets[p], corrected(r, g + groups * has_start, F32), total)
                sums[p][r].set(total)
        if groups > 1 and e.target.is_arm:  # LLVM starts the next group there while this one's sums wait
            _settle_locals(e, sums, at + codes)


def _settle_locals(e: Emitter, sums: Sequence[Sequence[Local]], addresses: list[Variable]) -> None:
    """Compute all sums before what is read by these addresses from now on."""
    values = [[total.value for total in of_panel] for of_panel in sums]
    e.settle(values, addresses)
    for of_panel, now in zip(sums, values, strict=True):
        for total, value in zip(of_panel, now, strict=True):
            total.set(value)
