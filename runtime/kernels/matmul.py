"""Matrix products.  Enters: activation rows (int8 codes with a scale per 32, or float32) and weight panels; leaves:
float32 output rows, y[m, r] = sum_k x[m, k] * w[r, k] (+ bias[r], or + what y held).

One kernel serves decode (one row) and prefill (many): it walks tasks of `chunk` panels by `token_block` rows, which
threads draw from a shared ticket counter, so a thread that a neighbour slows down does less.  Every output is the sum
of its blocks in order of k, whatever the batch: results do not depend on threads, tiles or batch size.
"""

from __future__ import annotations

from contextlib import nullcontext

from .emit import F32, I8, I32, I64, Emitter, Value, Variable, vec
from .jit import Kernel
from .layouts import BLOCK, BlockLayout, FloatLayout, Layout
from .panels import LAYOUTS, load_float, open_block, unpack
from .records import Fields, Record

# n_rows: address of the count of activation rows.  Strides are bytes from row to row; steps: blocks of the weights, or
# columns for float types.  scales float32 [row, block of 32] with block_stride; corrections int32 or float32
# [row, block of 32, group], with groups times that stride.
MATMUL = Record(
    "n_rows", "steps", "x", "x_stride", "scales", "corrections", "block_stride", "token_block", "chunk", "n_matrices",
    "matrices",
)  # fmt: skip
# One of the matrices of a step: y float32 rows of y_stride bytes; bias float32 [rows] with bias_step 4*lanes, or one
# vector of zeros with bias_step 0.
MATRIX = Record("panels", "panel_bytes", "n_panels", "n_chunks", "y", "y_stride", "bias", "bias_step")

CACHE_LINE = 64
PREFETCH_BYTES = 4096  # how far ahead a single row asks for weights: decoding gains 8 % (2 to 8 KiB do alike)
FLOAT_PANELS = 4  # panels that a single row of a float product takes at once: four chains hide the FMA's latency


def matmul(e: Emitter, name: str, add: bool) -> None:
    """Program step.  name: GGUF type of the weights; add: y += bias + instead of y = bias +.  Record: MATMUL."""
    layout = LAYOUTS[name]
    record, _, _, ticket = e.args
    a = MATMUL.read(e, record)
    n_rows = e.load(a.n_rows, I64)
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
        first_row = task // n_chunks * a.token_block
        end_row = e.min(first_row + a.token_block, n_rows)
        first = chunk.value * a.chunk
        end = e.min(first + a.chunk, w.n_panels)
        p = e.var(first)
        if isinstance(layout, FloatLayout):  # one row: several panels at once
            with e.when((end_row - first_row).equals(1)), e.repeat_while() as go_on_if_wide:
                go_on_if_wide(p.value + FLOAT_PANELS <= end)
                _tile(e, layout, a, w, p.value, first_row, 1, FLOAT_PANELS, add)
                p.set(p.value + FLOAT_PANELS)
        with e.loop(p.value, end) as panel:
            row = e.var(first_row)
            tokens = e.target.tile
            while tokens:
                with e.repeat_while() as go_on_if_full:
                    go_on_if_full(row.value + tokens <= end_row)
                    _tile(e, layout, a, w, panel, row.value, tokens, 1, add)
                    row.set(row.value + tokens)
                tokens //= 2


def _tile(
    e: Emitter, layout: Layout, a: Fields, w: Fields, panel: Value, row: Value, tokens: int, panels: int, add: bool
) -> None:
    """`panels` panels by `tokens` rows over all columns."""
    n = e.target.lanes
    outputs = [[w.y + (row + m) * w.y_stride + (panel + q) * (4 * n) for m in range(tokens)] for q in range(panels)]
    sums = []
    for q, outs in enumerate(outputs):
        bias = e.load(w.bias + (panel + q) * w.bias_step, vec(F32, n))
        sums.append([e.var(e.load(out, vec(F32, n)) + bias if add else bias) for out in outs])
    starts = [w.panels + (panel + q) * w.panel_bytes for q in range(panels)]
    rows = [row + m for m in range(tokens)]
    with e.loop(0, a.steps) as i:
        for start, lane_sums in zip(starts, sums, strict=True):
            step = start + i * layout.step_bytes(n)
            if isinstance(layout, FloatLayout):
                _float_step(e, layout, a, step, rows, i, lane_sums)
            else:
                _block_step(e, layout, a, step, rows, i, lane_sums)
    for outs, lane_sums in zip(outputs, sums, strict=True):
        for out, total in zip(outs, lane_sums, strict=True):
            e.store(total.value, out)


def _float_step(
    e: Emitter, layout: FloatLayout, a: Fields, step: Value, rows: list[Value], i: Value, sums: list[Variable]
) -> None:
    n = e.target.lanes
    weights = load_float(e, layout, step, n)
    for row, total in zip(rows, sums, strict=True):
        x = e.broadcast(a.x + row * a.x_stride + i * 4, F32, n)
        total.set(e.fma(weights, x, total.value))


def _block_step(
    e: Emitter, layout: BlockLayout, a: Fields, step: Value, rows: list[Value], i: Value, sums: list[Variable]
) -> None:
    n, alone = e.target.lanes, len(rows) == 1
    header, size = layout.header_bytes(n), layout.part_bytes(n)
    if alone:
        _prefetch(e, step, header)
    scales_of = open_block(e, layout, step)
    with e.loop(0, layout.parts) if layout.parts > 1 else nullcontext(e.i64(0)) as part:
        codes = step + header + part * size
        if alone:
            _prefetch(e, codes, size)
        scales, minimums = scales_of(part)
        weights = unpack(e, layout, codes)
        block = i * layout.parts + part
        for row, total in zip(rows, sums, strict=True):
            total.set(_add_block(e, layout, a, row, block, weights, scales, minimums, total.value))


def _prefetch(e: Emitter, address: Value, nbytes: int) -> None:
    """A single row is bound by memory: ask for weights that come later (past their end this does nothing)."""
    for line in range(0, nbytes, CACHE_LINE):
        e.prefetch(address + (PREFETCH_BYTES + line))


def _add_block(
    e: Emitter, layout: BlockLayout, a: Fields, row: Value, block: Value, weights: list[Value],
    scales: list[Value], minimums: list[Value], total: Value,
) -> Value:  # fmt: skip
    """`total` <n x f32> plus the products of 32 columns of one row with all lanes.

    Groups of 16 columns are two shorter dot products, whose sum the activations' scale multiplies once.
    """
    n, groups, correction = e.target.lanes, layout.groups, layout.correction(e.target)
    codes = a.x + row * a.x_stride + block * BLOCK
    quads = [e.broadcast(codes + 4 * j, I32, n).view(vec(I8, 4 * n)) for j in range(8)]
    at = row * a.block_stride + block * 4
    corrections = [a.corrections + at * groups + 4 * g for g in range(groups)]
    dots = []
    for g, place in enumerate(corrections):
        start = e.zero(vec(I32, n))
        if correction is not None and correction.factor is not None:
            start = e.broadcast(place, I32, n)
        here = slice(g * 8 // groups, (g + 1) * 8 // groups)
        dots.append(e.target.dot_block(e, start, weights[here], quads[here], layout.bound()).to(F32))
    scale = e.broadcast(a.scales + at, F32, n)
    if groups == 1:
        total = e.fma(dots[0], scales[0] * scale, total)
    else:
        total = e.fma(e.fma(dots[1], scales[1], dots[0] * scales[0]), scale, total)
    for minimum, place in zip(minimums, corrections[: len(minimums)], strict=True):
        total = e.fma(minimum, e.broadcast(place, F32, n), total)
    return total


def matmul_kernel(name: str, add: bool) -> Kernel:
    """The kernel for weights of GGUF type `name`."""
    return Kernel(matmul, (name, add))
