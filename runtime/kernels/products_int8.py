"""Products with int8 activations.  Enters: panels of codes, tiles of activations; leaves: each row's sums of products.

Whole numbers are exact in any order, so LLVM may take a block's instructions in the order that it likes.  It likes to
start many at once, and then what is computed waits on the stack for registers: 10 to 30 vectors of each block of AVX2,
where prompts took up to a quarter longer.  `Emitter.settle`, addresses of which LLVM does not know that they are the
same (`Emitter.opaque`) and sums that stay in memory (`Emitter.stored`) say what has to be done before what.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from .activations import row_bytes
from .emit import CACHE_LINE, Emitter
from .groups import Weights, corrected, dots_of_group, settle_locals
from .layouts import ANCHOR, ANCHOR_BITS, BLOCK, BlockLayout
from .opened import OpenedBlock, opened_bytes, opened_codes
from .panels import unpack
from .products_paired import add_pairs
from .records import Fields
from .scales import PairedScales, ScalesOf, SuperScales, WholeScales, open_block, scale_table, table_bytes
from .values import F32, I32, Local, Value, Variable, vec

# How far ahead lower tiles ask for weights, all panels together.  Decoding gains 8 % on an Intel server, where 4 to 16
# KiB do alike; on Zen 5, 4 KiB take 0 to 12 % longer for a single row, 3 to 30 % for 2 to 8, and 16 KiB 2 to 8 %.
PREFETCH_BYTES = 8192
ROWS_AHEAD = 8  # times 32 columns of activations, as `Target.asks_for_rows` has it; 4 gain half, 16 as much
UNROLLED = 4  # pairs of minimums in a turn, all of Q4_K's: prompts take 0 to 1 % less time than with one
FAR_BYTES = 128 << 10  # as `Target.asks_afar` has it; 32 KiB gain as much, 512 half

Scales = Callable[[], tuple[list[Value], list[Value]]]  # those of a panel's 32 columns, and the minimums


@dataclass(frozen=True)
class Following:
    """The panels after these, for which full tiles ask a little at a time: in each 32 columns `step` bytes further.

    So memory is waited for less: on AVX-512 prompts take 2 % less time with 2048 columns, 7 % with 8192 (on AVX2 and
    AVX-VNNI, which take longer to multiply, as much as without).  Few tiles ask for more at a time: products of 12 and
    24 rows take 25 to 50 % less time so (Zen 5), with AVX2 those of 8 to 24 rows 15 to 45 %.

    most: `step` of one tile; panels: so many places are asked for, panel_bytes apart.
    """

    at: Variable
    step: Value
    most: int
    panels: int = 1
    panel_bytes: Value | int = 0

    def ask(self, e: Emitter) -> None:
        places = [self.at.value + self.panel_bytes * q for q in range(self.panels)]
        for place in places:
            e.prefetch(place)
        with e.when(self.step > CACHE_LINE):
            for place in places:
                e.prefetch(place + CACHE_LINE, self.most - CACHE_LINE)
        self.at.set(self.at.value + self.step)


@dataclass(frozen=True)
class Onward:
    """What a thread reads behind its panels, which end at address `end`: `jump` bytes from there on.

    Tiles of few rows ask for that, too.  Asking past the end instead, for what other threads read, a model of 135M
    parameters generated 4 to 5 % slower, eight sequences at once 10 %.
    """

    end: Value
    jump: Value


@dataclass(frozen=True)
class Opened:
    """Blocks of panels that were taken apart (opened.py): `steps` of them from number `first` on.

    places: for each panel, where the first of them is.
    """

    places: list[Value]
    first: Value
    steps: Value


def add_blocks(
    e: Emitter, layout: BlockLayout, a: Fields, panels: list[Value], row: Value, sums: Sequence[Sequence[Local]],
    following: Following | None = None, onward: Onward | None = None, opened: Opened | None = None,
) -> None:  # fmt: skip
    """Panels by the rows from `row` on, all of one tile: sums[p][r] <n x f32> += their products over all columns.

    opened: the products are those of these blocks only.

    A single row, which memory bounds, asks for what it reads next itself, and so do tiles of few rows where the target
    asks ahead (products of 4 and 8 rows take 8 to 25 % less time with AVX-512, those of 2 rows 2 to 30 % without).
    """
    n, tile, alone = e.target.lanes, e.target.tile, len(sums[0]) == 1
    again, whole = e.target.loads_again(layout, alone), layout.whole_scales(e.target)
    few = alone or (e.target.asks_ahead and (len(panels), len(sums[0])) != e.target.shape(layout))
    header, size = layout.header_bytes(n), layout.part_bytes(n)
    record, first = a.x + row // tile * a.x_stride, row % tile
    steps, step_bytes = a.steps, layout.step_bytes(n)
    if opened is not None:
        record = record + opened.first * a.block_stride
        panels = [panel + opened.first * step_bytes for panel in panels]
        steps = opened.steps
    # Of the first row's codes and correction.  Were they not opaque, LLVM would address one from the other; a product
    # with an indexed operand is two instructions to the CPU, and prompts take up to twice as long.
    stride, per_part = row_bytes(layout.scale_columns), _part_strides(e, layout, a)
    at = [e.var(e.opaque(place)) for place in (record + first * stride, record + first * 4 + a.correction)]
    scales_at = e.var(record + first * 4 + tile * layout.step_columns)  # of a super-block's record
    centre, supers = layout.centre(e.target), []
    if opened is None and layout.parts > 1:
        table_size = table_bytes(layout, e.target, opened=False)
        supers = [scale_table(e, layout, e.scratch(table_size), opened=False) for _ in panels]
    with e.loop(0, steps) as i:
        blocks = [panel + i * step_bytes for panel in panels]
        ahead = _ask_for_blocks(e, layout, panels, blocks, i, onward, alone) if few else None
        apart = []
        if opened is not None:
            apart = [OpenedBlock(e, layout, place + i * opened_bytes(layout, e.target)) for place in opened.places]
            supers = [block.scales for block in apart]
        else:
            for here, block in zip(supers, blocks, strict=bool(supers)):
                here.fill(block)
        scales_of: Sequence[ScalesOf] = supers or [open_block(e, layout, block, centre) for block in blocks]
        inner = sums  # of a super-block before the activations' scale, which all its parts share
        if layout.parts > 1:
            zero = e.zero(vec(I32 if whole else F32, n))
            inner = [of_panel[0].more([zero] * len(of_panel)) for of_panel in sums]
        order = layout.order(e.target.together)

        def weights_of(part: Value) -> list[Weights]:
            if apart and e.target.opens_codes(layout):  # opaque: else LLVM has a pointer for each of the eight vectors
                opened_at = [e.var(e.opaque(block.codes(part))) for block in apart]
                return [Weights(codes, opened_codes(e, codes, order, again)) for codes in opened_at]
            packed_at = [e.var(block + header + part * size) for block in blocks]
            return [Weights(codes, unpack(e, layout, codes, order, again)) for codes in packed_at]

        def next_part(part: Value) -> list[Weights]:
            if following is not None:
                following.ask(e)
                if e.target.asks_for_rows:
                    further = a.block_stride * (ROWS_AHEAD // layout.parts)
                    e.prefetch(at[0].value + further, stride * len(sums[0]))
                    if layout.parts == 1:
                        e.prefetch(at[1].value + further)
            weights = weights_of(part)
            for of_panel in weights if ahead is not None else ():
                e.prefetch(of_panel.codes.value + ahead, size)
            return weights

        if pairs := [block for block in supers if isinstance(block, PairedScales)]:
            largest_at = scales_at.value + 4 * tile
            add_pairs(e, layout, pairs, at, per_part, largest_at, inner, next_part, weights_of)
        else:
            with e.loop(0, layout.parts) if layout.parts > 1 else nullcontext(e.i64(0)) as part:
                _add_part(e, layout, next_part(part), [partial(of_part, part) for of_part in scales_of], at, inner)
                for place, further in zip(at, per_part, strict=True):
                    place.set(e.opaque(place.value + further))
        if whole:
            inner = _as_floats(e, layout, supers, at[1].value - per_part[1] * layout.parts, inner)
        if inner is not sums:
            _add_super_block(e, sums, inner, scales_at.value)
            for place, further in zip(at, per_part, strict=True):
                place.set(e.opaque(place.value + (a.block_stride - further * layout.parts)))
            scales_at.set(scales_at.value + a.block_stride)


def _ask_for_blocks(
    e: Emitter, layout: BlockLayout, panels: list[Value], blocks: list[Value], i: Value, onward: Onward | None,
    alone: bool,
) -> Value:  # fmt: skip
    """Ask for the headers of what a tile of few rows reads next, and return how far ahead of its blocks that is.

    blocks: number `i` of each panel.
    """
    ahead = e.i64(PREFETCH_BYTES // len(panels))
    if len(panels) > 1:  # what follows a panel is its neighbour, which is read already
        size_of = panels[1] - panels[0]
        here = i * layout.step_bytes(e.target.lanes) + ahead
        ahead = e.select(here < size_of, ahead, ahead + size_of * (len(panels) - 1))
    if onward is not None:  # opaque: with AVX2, LLVM spills sums of Q5_1 otherwise
        ahead = e.opaque(e.select(blocks[-1] + ahead >= onward.end, ahead + onward.jump, ahead))
    for block in blocks:
        e.prefetch(block + ahead, layout.header_bytes(e.target.lanes))
        if alone and e.target.asks_afar(layout):
            e.prefetch(block + FAR_BYTES)
    return ahead


def _add_super_block(
    e: Emitter, sums: Sequence[Sequence[Local]], inner: Sequence[Sequence[Local]], scales_at: Value
) -> None:  # fmt: skip
    """sums += inner times the rows' scales, float32 one after the other at `scales_at`."""
    for r in range(len(sums[0])):
        scale = e.broadcast(scales_at + 4 * r, F32, e.target.lanes)
        for total, of_block in zip(sums, inner, strict=True):
            total[r].set(e.fma(of_block[r].value, scale, total[r].value))


def _part_strides(e: Emitter, layout: BlockLayout, a: Fields) -> tuple[Value, Value]:
    """Bytes from 32 columns' codes and correction to those of the next."""
    if layout.parts == 1:
        return a.block_stride, a.block_stride
    correction = layout.correction(e.target)
    values = (correction.factors or correction.groups * correction.sums) if correction else 0
    return e.i64(e.target.tile * BLOCK), e.i64(4 * e.target.tile * values)


def _add_part(
    e: Emitter, layout: BlockLayout, weights: list[Weights], scales_of: Sequence[Scales], at: list[Variable],
    sums: Sequence[Sequence[Local]],
) -> None:  # fmt: skip
    """Add the products of 32 columns.

    scales_of: the scales of each panel; at: addresses of the first row's codes and correction.  The activations' scale
    is among the factors where each 32 columns have their own.  Sums are of whole numbers where the scales are
    (`BlockLayout.whole_scales`).
    """
    n, groups, correction = e.target.lanes, layout.groups, layout.correction(e.target)
    rows = range(len(sums[0]))
    has_start = correction is not None and correction.factor != 0
    halves = correction is not None and correction.halves
    anchored = layout.anchored(e.target)
    offset_first = layout.parts == 1 and e.target.registers >= 32  # the order in which LLVM copies no totals

    def adder(r: int) -> Callable[[Value, Value, Value], Value]:
        """What adds to a row's total: dots times the panel's factor."""
        if layout.wide_sums(e.target):
            return lambda total, dots, factor: total + dots * factor
        if layout.whole_scales(e.target):
            return lambda total, dots, factor: e.target.add_scaled(e, total, dots, factor)
        if layout.parts > 1:
            return lambda total, dots, factor: e.fma(dots.to(F32), factor, total)
        scale = e.broadcast(at[0].value + (row_bytes(BLOCK) * r + BLOCK), F32, n)
        if not anchored:
            return lambda total, dots, factor: e.fma(dots.to(F32), factor * scale, total)
        return lambda total, dots, factor: e.fma(e.fma(dots.view(scale.type), factor, factor * -ANCHOR), scale, total)

    for g in range(groups):
        none = e.const(vec(I32, n), ANCHOR_BITS if anchored else 0)
        starts = [corrected(e, at[1].value, r, g, I32) if has_start else none for r in rows]
        dots = dots_of_group(e, layout, weights, at[0].value, g, starts, halves)
        if e.target.registers < 32:
            e.settle(dots)
        factors, offsets = [], []
        for scales, minimums in (now() for now in scales_of):
            factors.append(scales[g])
            if minimums:
                offsets.append(minimums[g])
        for r in rows:
            added = adder(r)
            for p, factor in enumerate(factors):
                total = sums[p][r].value
                of_row = corrected(e, at[1].value, r, g + layout.parts * groups * has_start, F32) if offsets else None
                if of_row is not None and offset_first:
                    total = e.fma(offsets[p], of_row, total)
                total = added(total, dots[p][r], factor)
                if of_row is not None and not offset_first:
                    total = e.fma(offsets[p], of_row, total)
                sums[p][r].set(total)
        # LLVM starts the next group on ARM while this one's sums wait, and on x86 makes two instructions of add_scaled
        # so that it need not wait for this group's.
        if groups > 1 and (e.target.is_arm or (layout.whole_scales(e.target) and e.target.registers >= 32)):
            settle_locals(e, sums, at + [of_panel.codes for of_panel in weights])


def _as_floats(
    e: Emitter, layout: BlockLayout, blocks: Sequence[SuperScales], correction: Value, sums: Sequence[Sequence[Local]]
) -> list[list[Variable]]:  # fmt: skip
    """Sums of whole numbers of a super-block times the blocks' factors, plus minimums times the activations' sums.

    correction: the address of the first row's in the super-block's first record.
    """
    whole = [block for block in blocks if isinstance(block, WholeScales)]
    minimums = []
    if layout.whole_minimums(e.target):
        minimums = _whole_minimums(e, layout, whole, correction, len(sums[0]))
    floats = [
        [e.var(total.value.to(F32) * block.factor) for total in of_panel]
        for block, of_panel in zip(whole, sums, strict=True)
    ]
    for block, of_panel, of_minimums in zip(whole, floats, minimums, strict=bool(minimums)):
        for total, below in zip(of_panel, of_minimums, strict=True):
            total.set(e.fma(below.value.to(F32), block.minimum_factor, total.value))
    if minimums or not layout.minimum:
        return floats
    first = e.var(e.opaque(correction))
    sums_from = layout.parts * layout.groups * (layout.centre(e.target) != 0)
    with e.loop(0, layout.parts) as part:
        for block, of_panel in zip(whole, floats, strict=True):
            for g, offset in enumerate(block.minimums(part)):
                for r, total in enumerate(of_panel):
                    total.set(e.fma(offset, corrected(e, first.value, r, sums_from + g, F32), total.value))
        first.set(e.opaque(first.value + 4 * e.target.tile * layout.groups))
    return floats


def _whole_minimums(
    e: Emitter, layout: BlockLayout, blocks: list[WholeScales], correction: Value, rows: int
) -> list[list[Variable]]:
    """A super-block's minimums times the activations' sums, <n x i32>; correction: as `_as_floats` has it."""
    described, pairs = layout.correction(e.target), layout.parts * layout.groups // 2
    assert described is not None
    zero = e.zero(vec(I32, e.target.lanes))
    minimums = [[e.var(zero) for _ in range(rows)] for _ in blocks]
    first = e.var(e.opaque(correction + 4 * e.target.tile * described.words_from(layout.parts)))
    with e.loop(0, pairs, UNROLLED) as pair:
        for i in range(UNROLLED):
            for block, of_panel in zip(blocks, minimums, strict=True):
                words = block.words(pair + i)
                for r, total in enumerate(of_panel):
                    total.set(e.target.add_words(e, total.value, words, corrected(e, first.value, r, 0, I32)))
            first.set(e.opaque(first.value + 4 * e.target.tile))
    return minimums
