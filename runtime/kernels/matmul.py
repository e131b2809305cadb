"""Matrix products.  Enters: activation rows (tiles of int8 codes, or float32) and weight panels; leaves: float32 output
rows, y[m, r] = sum_k x[m, k] * w[r, k] (+ bias[r], or + what y held).

One kernel serves decode (one row) and prefill (many): it walks tasks of `chunk` panels by `token_block` rows, which
threads draw from a shared ticket counter, so a thread that a neighbour slows down does less.  Every output is the sum
of its blocks in order of k, whatever the batch: results do not depend on threads, tiles or batch size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

from .activations import ROW_BYTES
from .emit import F32, I32, I64, Emitter, Value, Variable, vec
from .jit import Kernel
from .layouts import BLOCK, BlockLayout, FloatLayout, Layout
from .panels import LAYOUTS, open_block, unpack
from .products_f32 import float_step
from .records import Fields, Record
from .target import Steps

# n_rows: address of the count of activation rows, or for experts of the list of blocks (experts.py); steps: blocks of
# the weights, or columns for float types.  x: float32 rows x_stride bytes apart, or tiles of int8 codes
# (activations.py) x_stride bytes apart with records of block_stride bytes, in which the weights' correction lies at
# byte `correction`.  token_block: rows of a task at most, a multiple of the target's tile (for experts the blocks say).
MATMUL = Record(
    "n_rows", "steps", "x", "x_stride", "block_stride", "correction", "token_block", "chunk", "n_matrices", "matrices",
)  # fmt: skip
# One of the matrices of a step: y float32 rows of y_stride bytes; bias float32 [rows] with bias_step 4*lanes, or one
# vector of zeros with bias_step 0.
MATRIX = Record("panels", "panel_bytes", "n_panels", "n_chunks", "y", "y_stride", "bias", "bias_step")

CACHE_LINE = 64
PREFETCH_BYTES = 4096  # how far ahead a single row asks for weights: decoding gains 8 % (2 to 8 KiB do alike)


def matmul(e: Emitter, name: str, add: bool, activations: str, experts: bool) -> None:
    """Program step.  name: GGUF type of the weights; add: y += bias + instead of y = bias +.  Record: MATMUL.

    activations: "int8" (codes with a scale per 32) or "f32", the only one of float types.  experts: each matrix is
    many, one after the other, with as many biases; a block of rows meets the one that it names.
    """
    layout = LAYOUTS[name]
    record, _, _, ticket = e.args
    a = MATMUL.read(e, record)
    n_rows = token_blocks = e.load(a.n_rows, I64)
    if not experts:
        token_blocks = (n_rows + a.token_block - 1) // a.token_block
    chunks = e.var(e.i64(0))
    with e.loop(0, a.n_matrices) as i:
        chunks.set(chunks.value + MATRIX.read(e, a.matrices + i * (8 * MATRIX.size)).n_chunks)
    n_chunks = chunks.value
    with e.repeat_while() as go_on_if:
        task = e.atomic_add(ticket, e.i64(1))
        go_on_if(task < token_blocks * n_chunks)
        chunk = e.var(task % n_chunks)
        matrix_at = e.var(a.matrices)
        with e.repeat_while() as not_yet:
            here = MATRIX.read(e, matrix_at.value)
            not_yet(chunk.value >= here.n_chunks)
            chunk.set(chunk.value - here.n_chunks)
            matrix_at.set(matrix_at.value + 8 * MATRIX.size)
        w = MATRIX.read(e, matrix_at.value)
        before = e.i64(0)  # panels of the experts before this one
        if experts:
            block = a.n_rows + 8 + task // n_chunks * 24
            expert, first_row, end_row = (e.load(block + 8 * i, I64) for i in range(3))
            before = expert * w.n_panels
        else:
            first_row = task // n_chunks * a.token_block
            end_row = e.min(first_row + a.token_block, n_rows)
        first = chunk.value * a.chunk
        end = e.min(first + a.chunk, w.n_panels)
        panel = e.var(first)
        widest, streams = _shape(e, layout, activations)[0], e.target.streams
        if streams > widest and isinstance(layout, BlockLayout) and activations == "int8":
            with e.repeat_while() as go_on_if_alone:
                go_on_if_alone((first_row + 1).equals(end_row) & (panel.value + streams <= end))
                _tile(e, layout, activations, a, w, before, panel.value, first_row, 1, streams, add)
                panel.set(panel.value + streams)
        for panels in dict.fromkeys((widest, 1)):
            with e.repeat_while() as go_on_if_wide:
                go_on_if_wide(panel.value + panels <= end)
                _rows(e, layout, activations, a, w, before, panel.value, panels, first_row, end_row, add)
                panel.set(panel.value + panels)


def _shape(e: Emitter, layout: Layout, activations: str) -> tuple[int, int]:
    """Panels and rows of one micro-kernel call."""
    if activations == "f32" and isinstance(layout, BlockLayout):
        return 1, e.target.shapes[0][1]  # two panels take twice as long to compile
    return e.target.shapes[0 if isinstance(layout, FloatLayout) else 1 if layout.parts == 1 else 2]


def _rows(
    e: Emitter, layout: Layout, activations: str, a: Fields, w: Fields, before: Value, panel: Value, panels: int,
    first: Value, end: Value, add: bool,
) -> None:  # fmt: skip
    """`panels` panels by rows first..end-1, in tiles as high as there are rows left."""
    height = _shape(e, layout, activations)[1]
    row = e.var(first)
    for rows in (height, *(n for n in (8, 4, 2, 1) if n < height)):
        with e.repeat_while() as go_on_if_full:
            go_on_if_full(row.value + rows <= end)
            _tile(e, layout, activations, a, w, before, panel, row.value, rows, panels, add)
            row.set(row.value + rows)


def _tile(
    e: Emitter, layout: Layout, activations: str, a: Fields, w: Fields, before: Value, panel: Value, row: Value,
    rows: int, panels: int, add: bool,
) -> None:  # fmt: skip
    """`panels` panels by `rows` rows over all columns."""
    n = e.target.lanes
    outputs = [[w.y + (row + m) * w.y_stride + (panel + q) * (4 * n) for m in range(rows)] for q in range(panels)]
    sums = []
    for q, outs in enumerate(outputs):
        bias = e.load(w.bias + (before + panel + q) * w.bias_step, vec(F32, n))
        sums.append([e.var(e.load(out, vec(F32, n)) + bias if add else bias) for out in outs])
    starts = [w.panels + (before + panel + q) * w.panel_bytes for q in range(panels)]
    if activations == "f32" or isinstance(layout, FloatLayout):
        sources = [row + m for m in range(rows)]
        with e.loop(0, a.steps) as i:
            for start, lane_sums in zip(starts, sums, strict=True):
                float_step(e, layout, a, start + i * layout.step_bytes(n), sources, i, lane_sums)
    else:
        _block_loop(e, layout, a, starts, row, sums)
    for outs, lane_sums in zip(outputs, sums, strict=True):
        for out, total in zip(outs, lane_sums, strict=True):
            e.store(total.value, out)


def _block_loop(
    e: Emitter, layout: BlockLayout, a: Fields, panels: list[Value], row: Value, sums: list[list[Variable]]
) -> None:
    """Panels by the rows from `row` on, all of one tile: sums[p][r] <n x f32> += their products over all columns."""
    n, tile, alone = e.target.lanes, e.target.tile, len(sums[0]) == 1
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
            inner = [[e.var(e.zero(vec(F32, n))) for _ in of_panel] for of_panel in sums]
        with e.loop(0, layout.parts) if layout.parts > 1 else nullcontext(e.i64(0)) as part:
            codes = [block + header + part * size for block in blocks]
            if alone:
                for address in codes:
                    _prefetch(e, address + ahead, size)
            weights = [unpack(e, layout, address, layout.order(e.target.together)) for address in codes]
            _add_block(e, layout, weights, [of_part(part) for of_part in scales_of], [v.value for v in at], inner)
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


def _add_block(
    e: Emitter, layout: BlockLayout, weights: list[Iterator[Value]], scales: list[tuple[list[Value], list[Value]]],
    places: list[Value], sums: list[list[Variable]],
) -> None:  # fmt: skip
    """Add the products of 32 columns; weights, scales and minimums of each panel; places: of codes and correction.

    The activations' scale is among the factors where each 32 columns have their own.
    """
    n, tile, groups, correction = e.target.lanes, e.target.tile, layout.groups, layout.correction(e.target)
    codes, corrections = places
    rows, order = range(len(sums[0])), layout.order(e.target.together)

    def corrected(r: int, g: int, ty: Any) -> Value:
        return e.broadcast(corrections + 4 * (tile * g + r), ty, n)

    def columns(i: int, r: int, count: int) -> Value:
        return e.repeated_bytes(codes + (ROW_BYTES * r + 4 * i), count, 4 * n)

    def steps(g: int) -> Steps:
        for i in order[g * 8 // groups : (g + 1) * 8 // groups]:
            yield [next(w) for w in weights], partial(columns, i)

    has_start = correction is not None and correction.factor is not None
    for g in range(groups):
        starts = [corrected(r, g, I32) if has_start else e.zero(vec(I32, n)) for r in rows]
        dots = e.target.dots(e, starts, steps(g), layout.bound())
        for r in rows:
            own_scale = None if layout.parts > 1 else e.broadcast(codes + (ROW_BYTES * r + BLOCK), F32, n)
            for p, (factors, minimums) in enumerate(scales):
                factor = factors[g] if own_scale is None else factors[g] * own_scale
                total = e.fma(dots[p][r].to(F32), factor, sums[p][r].value)
                if minimums:
                    total = e.fma(minimums[g], corrected(r, g, F32), total)
                sums[p][r].set(total)


def matmul_kernel(name: str, add: bool, activations: str = "int8", experts: bool = False) -> Kernel:
    """The kernel for weights of GGUF type `name`; types of integer codes read activations as "int8" or "f32"."""
    return Kernel(matmul, (name, add, "f32" if LAYOUTS[name].is_float else activations, experts))
