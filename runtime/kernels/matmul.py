"""Matrix products.  Enters: activation rows (tiles of int8 codes, or float32) and weight panels; leaves: float32 output
rows, y[m, r] = sum_k x[m, k] * w[r, k] (+ bias[r], or + what y held).

One kernel serves decode (one row) and prefill (many): it walks tasks of `chunk` panels by `token_block` rows, which
threads draw from a shared ticket counter, so a thread that a neighbour slows down does less.  Every output is the sum
of its blocks in order of k, whatever the batch: results do not depend on threads, tiles or batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from .emit import Emitter
from .jit import Kernel
from .layouts import BlockLayout, FloatLayout, Layout
from .panels import LAYOUTS
from .products_f32 import float_step
from .products_int8 import Following, add_blocks, open_panel
from .records import Fields, Record
from .values import F32, I64, Local, Value, vec

# n_rows: address of the count of activation rows, or for experts of the list of blocks (experts.py); steps: blocks of
# the weights, or columns for float types.  x: float32 rows x_stride bytes apart, or tiles of int8 codes
# (activations.py) x_stride bytes apart with records of block_stride bytes, in which the weights' correction lies at
# byte `correction`.  token_block: rows of a task at most, a multiple of the target's tile (for experts the blocks say).
# opened: for each thread opened_stride bytes, where it keeps a panel's scales taken apart (`opened_bytes` a block).
MATMUL = Record(
    "n_rows", "steps", "x", "x_stride", "block_stride", "correction", "token_block", "chunk", "n_matrices", "matrices",
    "opened", "opened_stride",
)  # fmt: skip
# One of the matrices of a step: y float32 rows of y_stride bytes; bias float32 [rows] with bias_step 4*lanes, or one
# vector of zeros with bias_step 0.
MATRIX = Record("panels", "panel_bytes", "n_panels", "n_chunks", "y", "y_stride", "bias", "bias_step")


def matmul(e: Emitter, name: str, add: bool, activations: str, experts: bool) -> None:
    """Program step.  name: GGUF type of the weights; add: y += bias + instead of y = bias +.  Record: MATMUL.

    activations: "int8" (codes with a scale per 32) or "f32", the only one of float types.  experts: each matrix is
    many, one after the other, with as many biases; a block of rows meets the one that it names.
    """
    layout = LAYOUTS[name]
    record, thread, _, ticket = e.args
    a = MATMUL.read(e, record)
    opened = a.opened + thread * a.opened_stride if opens_panels(layout, activations) else None
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
        if streams > widest and _is_integer(layout, activations):
            with e.repeat_while() as go_on_if_alone:
                go_on_if_alone((first_row + 1).equals(end_row) & (panel.value + streams <= end))
                _tile(e, layout, activations, a, w, before, panel.value, first_row, 1, streams, add)
                panel.set(panel.value + streams)
        for panels in dict.fromkeys((widest, 1)):
            with e.repeat_while() as go_on_if_wide:
                go_on_if_wide(panel.value + panels <= end)
                _rows(e, layout, activations, a, w, before, panel.value, panels, first_row, end_row, add, opened)
                panel.set(panel.value + panels)


def _shape(e: Emitter, layout: Layout, activations: str) -> tuple[int, int]:
    """Panels and rows of one micro-kernel call."""
    if activations == "f32" and isinstance(layout, BlockLayout):
        return 1, e.target.shapes[0][1]  # two panels take twice as long to compile
    return e.target.shapes[0] if isinstance(layout, FloatLayout) else e.target.shape(layout)


def _rows(
    e: Emitter, layout: Layout, activations: str, a: Fields, w: Fields, before: Value, panel: Value, panels: int,
    first: Value, end: Value, add: bool, opened: Value | None,
) -> None:  # fmt: skip
    """`panels` panels by rows first..end-1, in tiles as high as there are rows left."""
    height = _shape(e, layout, activations)[1]
    row, following = e.var(first), None
    if _is_integer(layout, activations) and e.target.asks_ahead:
        asking = (end - first) // height * a.steps * layout.parts  # times 32 columns of a full tile
        next_panel = e.var(w.panels + (before + panel + panels) * w.panel_bytes)
        following = Following(next_panel, panels * w.panel_bytes // e.max(asking, 1))
    if opened is not None and isinstance(layout, BlockLayout):
        assert panels == 1
        with e.when(first + height <= end):
            open_panel(e, layout, a.steps, w.panels + (before + panel) * w.panel_bytes, opened)
    for rows in (height, *(n for n in (8, 4, 2, 1) if n < height)):
        with e.repeat_while() as go_on_if_full:
            go_on_if_full(row.value + rows <= end)
            full = (following, opened) if rows == height else (None, None)
            _tile(e, layout, activations, a, w, before, panel, row.value, rows, panels, add, *full)
            row.set(row.value + rows)


def _tile(
    e: Emitter, layout: Layout, activations: str, a: Fields, w: Fields, before: Value, panel: Value, row: Value,
    rows: int, panels: int, add: bool, following: Following | None = None, opened: Value | None = None,
) -> None:  # fmt: skip
    """`panels` panels by `rows` rows over all columns; following, opened: as products of integers take them."""
    n = e.target.lanes
    outputs = [[w.y + (row + m) * w.y_stride + (panel + q) * (4 * n) for m in range(rows)] for q in range(panels)]
    sums: list[Sequence[Local]] = []
    for q, outs in enumerate(outputs):
        bias = e.load(w.bias + (before + panel + q) * w.bias_step, vec(F32, n))
        first = [e.load(out, vec(F32, n)) + bias if add else bias for out in outs]
        in_memory = _is_integer(layout, activations) and not e.target.keeps_sums(layout, panels * rows)
        sums.append(e.stored(first) if in_memory else [e.var(value) for value in first])
    starts = [w.panels + (before + panel + q) * w.panel_bytes for q in range(panels)]
    if _is_integer(layout, activations):
        add_blocks(e, layout, a, starts, row, sums, following, opened)
    else:
        sources = [row + m for m in range(rows)]
        with e.loop(0, a.steps) as i:
            for start, totals in zip(starts, sums, strict=True):
                float_step(e, layout, a, start + i * layout.step_bytes(n), sources, i, totals)
    for outs, totals in zip(outputs, sums, strict=True):
        for out, total in zip(outs, totals, strict=True):
            e.store(total.value, out)


def opens_panels(layout: Layout, activations: str) -> bool:
    """Whether full tiles find a panel's scales taken apart: once for all of them instead of once for each.

    Prompts in Q4_K take 2 to 3 % less time so, in Q6_K 3 to 18 %.
    """
    return _is_integer(layout, activations) and layout.parts > 1


def _is_integer(layout: Layout, activations: str) -> TypeGuard[BlockLayout]:
    """Whether int8 activations meet integer codes."""
    return activations == "int8" and isinstance(layout, BlockLayout)


def matmul_kernel(name: str, add: bool, activations: str = "int8", experts: bool = False) -> Kernel:
    """The kernel for weights of GGUF type `name`; types of integer codes read activations as "int8" or "f32"."""
    return Kernel(matmul, (name, add, "f32" if LAYOUTS[name].is_float else activations, experts))
