"""Products of super-blocks where two groups meet their scales at once.  Enters: panels of codes, tiles of activations;
leaves: each row's sum of a super-block's products times whole scales.

What multiplies is all that Zen 5 waits for (`Target.has_spare_units`): in Q4_K 8 products of scales and 4 of minimums
beside 64 of codes.  So the sums of two groups are put side by side, as int16 in one vector, and one instruction
multiplies both by their scales: prompts of a 1B model take 1 to 4 % less time in Q4_K_M, 5 to 7 % in Q2_K, 2 % in Q3_K.

Such a sum need not fit 16 bits, which it does unless activations are large all over a group: 15 * 127 * 32 = 60960 in
Q4_K.  Quantizing tells (`Correction.largest`); a super-block with such a row is multiplied row by row in 32 bits,
which takes longer and gives the same sums.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

from .activations import row_bytes
from .emit import Emitter
from .groups import Weights, corrected, dots_of_group, settle_locals
from .layouts import LARGEST_SUM, BlockLayout
from .scales import PairedScales
from .values import I8, I16, I32, Local, Value, Variable, vec

IN_REGISTERS = 8  # sums that wait there for their neighbours; more wait in memory
Strides = tuple[Value, Value]
WeightsOf = Callable[[Value], list[Weights]]  # of a part's number


def add_pairs(
    e: Emitter, layout: BlockLayout, scales: Sequence[PairedScales], at: list[Variable], per_part: Strides,
    largest_at: Value, sums: Sequence[Sequence[Local]], next_part: WeightsOf, weights_of: WeightsOf,
) -> None:  # fmt: skip
    """sums[p][r] <n x i32> += the super-block's products of panel p and row r; at is moved on behind its parts.

    at: addresses of the first row's codes and correction; per_part: from those to the next part's; largest_at: address
    of what `Correction.largest` tells of the first row.
    next_part, weights_of: a part's codes, the former for parts in their order, who asks memory for what follows.
    """
    if layout.paired_limit() >= LARGEST_SUM:
        _add_side_by_side(e, layout, scales, at, per_part, sums, next_part)
        return
    rows = range(len(sums[0]))
    largest = functools.reduce(e.max, [e.load(largest_at + 4 * r, I32) for r in rows])
    limit = layout.paired_limit()
    with e.when(largest <= limit):
        _add_side_by_side(e, layout, scales, at, per_part, sums, next_part)
    with e.when(largest > limit):
        _add_row_by_row(e, layout, scales, at, per_part, sums, weights_of)


def _add_side_by_side(
    e: Emitter, layout: BlockLayout, scales: Sequence[PairedScales], at: list[Variable], per_part: Strides,
    sums: Sequence[Sequence[Local]], next_part: WeightsOf,
) -> None:  # fmt: skip
    """As `add_pairs`, for groups whose sums fit 16 bits."""
    n, groups, rows = e.target.lanes, layout.groups, range(len(sums[0]))
    zero, words = e.zero(vec(I32, n)), vec(I16, 2 * n)
    firsts: list[Sequence[Local]] = []
    for of_panel in sums:
        few = len(sums) * len(of_panel) <= IN_REGISTERS
        firsts.append([e.var(zero) for _ in of_panel] if few else e.unset(zero.type, len(of_panel)))
    # The first group's are in the high halves, so that sums are shifted that wait.  Opaque: LLVM would merge them by a
    # permutation, for which products wait (1 to 2 % of the time).
    low_half = e.opaque(e.i64(0x0000FFFF0000FFFF)).splat(n // 2).view(zero.type)
    with e.loop(0, layout.parts, 2 // groups) as part:
        for number in range(2):
            if number % groups == 0:
                weights = next_part(part + number // groups)
            dots = dots_of_group(e, layout, weights, at[0].value, number % groups, [zero] * len(rows))
            if number == 0:
                for kept, of_group in zip(firsts, dots, strict=True):
                    for first, value in zip(kept, of_group, strict=True):
                        first.set(value)
                e.settle(dots, at)
            record = at[1].value
            if number % groups == groups - 1:
                for place, further in zip(at, per_part, strict=True):
                    place.set(e.opaque(place.value + further))
        for r in rows:
            shift = corrected(e, record, r, 0, I32).view(words) if layout.zero else None
            for of_scales, of_panel, kept, last in zip(scales, sums, firsts, dots, strict=True):
                both = (kept[r].value << 16) | (last[r] & low_half)
                if shift is not None:
                    both = (both.view(words) + shift).view(zero.type)
                pair = of_scales.of_pair(part * groups // 2)
                of_panel[r].set(e.target.add_words(e, of_panel[r].value, both, pair))
        settle_locals(e, sums, at)


def _add_row_by_row(
    e: Emitter, layout: BlockLayout, scales: Sequence[PairedScales], at: list[Variable], per_part: Strides,
    sums: Sequence[Sequence[Local]], weights_of: WeightsOf,
) -> None:  # fmt: skip
    """As `add_pairs`, in 32 bits."""
    n, groups, n_rows = e.target.lanes, layout.groups, len(sums[0])
    zero, size = e.zero(vec(I32, n)), 4 * n
    held = e.scratch(size * len(sums) * n_rows)
    with e.loop(0, n_rows) as r:
        totals, first = [e.var(zero) for _ in sums], e.var(at[0].value + r * row_bytes(layout.scale_columns))
        with e.loop(0, layout.parts, 2 // groups) as part:
            for number in range(2):
                g = number % groups
                if g == 0:
                    weights = weights_of(part + number // groups)
                dots = dots_of_group(e, layout, weights, first.value, g, [zero])
                if layout.zero:
                    zeros = [Weights(first, itertools.repeat(e.const(vec(I8, 4 * n), layout.zero)))]
                    [[taken]] = dots_of_group(e, layout, zeros, first.value, g, [zero])
                    dots = [[dot - taken] for [dot] in dots]
                for of_scales, total, [dot] in zip(scales, totals, dots, strict=True):
                    pair = of_scales.of_pair(part * groups // 2)
                    total.set(total.value + dot * (pair >> 16 * (1 - number)).to(I16).to(I32))
                if g == groups - 1:
                    first.set(first.value + per_part[0])
        for p, total in enumerate(totals):
            e.store(total.value, held + (r + p * n_rows) * size)
    for place, further in zip(at, per_part, strict=True):
        place.set(place.value + further * layout.parts)
    for p, of_panel in enumerate(sums):
        for i, of_row in enumerate(of_panel):
            of_row.set(e.load(held + (p * n_rows + i) * size, zero.type))
