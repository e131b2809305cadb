"""Matrix products.  Enters: activation rows (int8 codes with a scale per 32, or float32) and weight panels; leaves:
float32 output rows, y[m, r] = sum_k x[m, k] * w[r, k] (+ bias[r], or + what y held).

One kernel serves decode (one row) and prefill (many): it walks tasks of `chunk` panels by `token_block` rows, which
threads draw from a shared ticket counter, so a thread that a neighbour slows down does less.  Every output is the sum
of its blocks in order of k, whatever the batch: results do not depend on threads, tiles or batch size.
"""

from __future__ import annotations

from .emit import F32, I8, I32, I64, Emitter, Value, vec
from .jit import Kernel
from .panels import BLOCK, LAYOUTS, Layout, load_float, unpack
from .records import Fields, Record

# n_rows: address of the count of activation rows.  Strides are bytes from row to row; steps: blocks of 32 columns, or
# columns for float formats.  scales float32 and corrections int32/float32 are [row, block].
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
        if layout.is_float:  # one row: several panels at once
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
    body = _float_step if layout.is_float else _integer_step
    with e.loop(0, a.steps) as i:
        for q in range(panels):
            body(e, layout, a, starts[q] + i * layout.step_bytes(n), rows, i, sums[q])
    for outs, lane_sums in zip(outputs, sums, strict=True):
        for out, total in zip(outs, lane_sums, strict=True):
            e.store(total.value, out)


def _float_step(e: Emitter, layout: Layout, a: Fields, step: Value, rows: list[Value], i: Value, sums: list) -> None:
    n = e.target.lanes
    weights = load_float(e, layout, step, n)
    for row, total in zip(rows, sums, strict=True):
        x = e.broadcast(a.x + row * a.x_stride + i * 4, F32, n)
        total.set(e.fma(weights, x, total.value))


def _integer_step(e: Emitter, layout: Layout, a: Fields, step: Value, rows: list[Value], i: Value, sums: list) -> None:
    n = e.target.lanes
    if len(rows) == 1:  # bound by memory; past the end of the weights a prefetch does nothing
        for line in range(0, layout.step_bytes(n), CACHE_LINE):
            e.prefetch(step + (PREFETCH_BYTES + line))
    scales, minimums, weights = unpack(e, layout, step)
    correction = layout.correction(e.target)
    for row, total in zip(rows, sums, strict=True):
        codes = a.x + row * a.x_stride + i * BLOCK
        quads = [e.broadcast(codes + 4 * j, I32, n).view(vec(I8, 4 * n)) for j in range(8)]
        at = row * a.block_stride + i * 4
        start = e.broadcast(a.corrections + at, I32, n) if isinstance(correction, int) else e.zero(vec(I32, n))
        dot = e.target.dot_block(e, start, weights, quads, layout.bound()).to(F32)
        result = e.fma(dot, scales * e.broadcast(a.scales + at, F32, n), total.value)
        if minimums is not None:
            result = e.fma(minimums, e.broadcast(a.corrections + at, F32, n), result)
        total.set(result)


def matmul_kernel(name: str, add: bool) -> Kernel:
    """The kernel for weights of GGUF type `name`."""
    return Kernel(matmul, (name, add))
