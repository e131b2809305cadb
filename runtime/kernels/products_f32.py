"""Products with float32 activations.  Enters: weights of a panel and float32 rows; leaves: each row's sums of products.

Float types are multiplied so always.  Types of integer codes are when no digit may be lost (`--activations f32`): the
weights of 32 columns are made of their codes, on the stack, and meet the activations as they are, with no rounding but
that of float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from .emit import Emitter
from .layouts import BLOCK, BlockLayout, FloatLayout, Layout
from .panels import load_float, unpack
from .records import Fields
from .scales import open_block
from .values import F32, I32, Local, Value, vec


def float_step(
    e: Emitter, layout: Layout, a: Fields, step: Value, rows: list[Value], i: Value, sums: Sequence[Local]
) -> None:
    """sums[r] <n x f32> += w * x[rows[r]] over the columns of step `i` of a panel, whose weights are at `step`."""
    if isinstance(layout, FloatLayout):
        _multiply(e, a, load_float(e, layout, step, e.target.lanes), rows, i, sums)
        return
    n, size = e.target.lanes, layout.part_bytes(e.target.lanes)
    scales_of = open_block(e, layout, step)
    codes, table = step + layout.header_bytes(n), e.scratch(4 * n * BLOCK)
    with e.loop(0, layout.parts) if layout.parts > 1 else nullcontext(e.i64(0)) as part:
        scales, minimums = scales_of(part)
        for k, code in enumerate(_whole_codes(e, layout, codes + part * size)):
            group = k * layout.groups // BLOCK
            weights = e.fma(code, scales[group], minimums[group]) if minimums else code * scales[group]
            e.store(weights, table + 4 * n * k)
        first = (i * layout.parts + part) * BLOCK
        with e.loop(0, BLOCK) as column:  # unrolled it takes four times as long to compile
            _multiply(e, a, e.load(table + column * (4 * n), vec(F32, n)), rows, first + column, sums)


def _whole_codes(e: Emitter, layout: BlockLayout, codes: Value) -> list[Value]:
    """What the codes of 32 columns of a panel stand for before their scale: <n x f32> for each column, exact."""
    zero, flipped = layout.zero, 0
    if layout.signed:  # made unsigned, if the target has not stored them so
        zero, flipped = 128, 0 if e.target.weight_offset else -0x7F7F7F80
    found = []
    for quad in unpack(e, layout, e.var(codes)):
        word = quad.view(vec(I32, e.target.lanes)) ^ flipped
        found += [(((word >> 8 * c) & 0xFF) - zero).to(F32) for c in range(4)]
    return found


def _multiply(e: Emitter, a: Fields, weights: Value, rows: list[Value], column: Value, sums: Sequence[Local]) -> None:
    """Add `weights` <n x f32> of one column of all lanes, times each row's activation of that column."""
    for row, total in zip(rows, sums, strict=True):
        x = e.broadcast(a.x + row * a.x_stride + column * 4, F32, e.target.lanes)
        total.set(e.fma(weights, x, total.value))
