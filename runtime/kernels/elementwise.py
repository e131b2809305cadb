"""Everything that works row by row.  Enters: float32 rows; leaves: float32 rows or the int8 codes that matmul reads
(activations.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .activations import SINK_FIELDS, Sink, put
from .emit import F32, I64, Emitter, Value, vec
from .jit import Kernel
from .layouts import BLOCK, Correction, FloatLayout
from .panels import LAYOUTS, block_values, load_float
from .records import Fields, Record

TASK_BLOCKS = 32  # blocks of one task, at least: drawing one takes as long as a few blocks

EMBED = Record("n_rows", "tokens", "table", "row_bytes", "columns", "out", "out_stride")
NORM = Record("n_rows", "row_index", "x", "x_stride", "columns", "weight", "epsilon", *SINK_FIELDS)
SWIGLU = Record("n_rows", "gate", "up", "x_stride", "columns", *SINK_FIELDS)
QUANTIZE = Record("n_rows", "x", "x_stride", "columns", *SINK_FIELDS)


def _tail(e: Emitter, sink: Sink, a: Fields, row: Value, first: Value, element: Callable[[Value], Value]) -> None:
    """Columns that fill no block: float32 only (a format with blocks never has them)."""
    if not sink.float32:
        return
    with e.loop(first, a.columns) as k:
        e.store(element(k), a.out + row * a.out_stride + k * 4)


@contextmanager
def tasks(e: Emitter, count: Value, at_least: int) -> Iterator[Value]:
    """`for i in range(count)`, drawn by threads in tasks of `at_least` indices, or, of many, in two tasks a thread.

    Eight tasks a thread, as products have, cost the prompts of a small model a tenth.
    """
    _, _, threads, ticket = e.args
    size = e.max(count // (threads * 2), at_least)
    with e.repeat_while() as go_on_if:
        first = e.atomic_add(ticket, e.i64(1)) * size
        go_on_if(first < count)
        with e.loop(first, e.min(first + size, count)) as i:
            yield i


def rms_norm(
    e: Emitter, indexed: bool, float32: bool, codes: bool, corrections: tuple[Correction, ...], shared: int
) -> None:
    """Program step: x / sqrt(mean(x^2) + epsilon) * weight (Zhang and Sennrich 2019).  Record: NORM.

    indexed: row i is x[row_index[i]] (int64), which gathers the rows that want logits.
    """
    sink, width = Sink(float32, codes, corrections, shared), e.target.lanes
    a = NORM.read(e, e.args[0])
    epsilon, blocks = a.float32("epsilon"), a.columns // BLOCK
    wide = a.columns // width * width
    with tasks(e, e.load(a.n_rows, I64), 1) as row:
        x = a.x + (e.load(a.row_index + row * 8, I64) if indexed else row) * a.x_stride
        squares = e.var(e.zero(vec(F32, width)))
        with e.loop(0, wide, width) as k:
            v = e.load(x + k * 4, vec(F32, width))
            squares.set(e.fma(v, v, squares.value))
        total = e.var(e.sum(squares.value))
        with e.loop(wide, a.columns) as k:
            v = e.load(x + k * 4, F32)
            total.set(e.fma(v, v, total.value))
        factor = 1.0 / e.sqrt(total.value / a.columns.to(F32) + epsilon)

        def normed(block: Value) -> Value:
            at = block * (4 * BLOCK)
            return e.load(x + at, vec(F32, BLOCK)) * factor.splat(BLOCK) * e.load(a.weight + at, vec(F32, BLOCK))

        with e.loop(0, blocks, sink.columns // BLOCK) as block:
            put(e, sink, a, row, block, normed)
        _tail(
            e, sink, a, row, blocks * BLOCK, lambda k: e.load(x + k * 4, F32) * factor * e.load(a.weight + k * 4, F32)
        )


def _by_block(e: Emitter, sink: Sink, a: Fields, element: Callable[[Value, Value, int], Value]) -> None:
    """Walk all blocks of all rows, and the rows' tails, so that one long row is shared too."""
    n = sink.columns // BLOCK  # blocks that go together; they divide the columns where n > 1
    whole = a.columns // BLOCK
    groups = (a.columns + (sink.columns - 1)) // sink.columns
    with tasks(e, e.load(a.n_rows, I64) * groups, TASK_BLOCKS // n) as pair:
        row, block = pair // groups, pair % groups * n
        with e.when(block < whole):
            put(e, sink, a, row, block, lambda b: element(row, b * BLOCK, BLOCK))
        with e.when(block >= whole):
            _tail(e, sink, a, row, block * BLOCK, lambda k: element(row, k, 1))


def swiglu(e: Emitter, float32: bool, codes: bool, corrections: tuple[Correction, ...], shared: int) -> None:
    """Program step: silu(gate) * up, silu(x) = x / (1 + e^-x) (Shazeer 2020).  Record: SWIGLU."""
    a = SWIGLU.read(e, e.args[0])

    def element(row: Value, column: Value, n: int) -> Value:
        at, ty = row * a.x_stride + column * 4, vec(F32, n)
        gate = e.load(a.gate + at, ty)
        return gate / (e.exp(-gate) + 1.0) * e.load(a.up + at, ty)

    _by_block(e, Sink(float32, codes, corrections, shared), a, element)


def quantize(e: Emitter, float32: bool, codes: bool, corrections: tuple[Correction, ...], shared: int) -> None:
    """Program step: float32 rows -> int8 codes (and a copy, where a float format reads them too).  Record: QUANTIZE."""
    a = QUANTIZE.read(e, e.args[0])

    def element(row: Value, column: Value, n: int) -> Value:
        return e.load(a.x + row * a.x_stride + column * 4, vec(F32, n))

    _by_block(e, Sink(float32, codes, corrections, shared), a, element)


def embed(e: Emitter, name: str) -> None:
    """Program step: out[i] = row tokens[i] (int64) of the table of GGUF type `name`, as float32.  Record: EMBED."""
    layout = LAYOUTS[name]
    a = EMBED.read(e, e.args[0])
    wide = e.target.lanes if isinstance(layout, FloatLayout) else layout.step_columns  # columns at a time
    with tasks(e, e.load(a.n_rows, I64), 1) as row:
        source = a.table + e.load(a.tokens + row * 8, I64) * a.row_bytes
        out, steps = a.out + row * a.out_stride, a.columns // wide
        with e.loop(0, steps) as i:
            target = out + i * (4 * wide)
            if isinstance(layout, FloatLayout):
                e.store(load_float(e, layout, source + i * layout.step_bytes(wide), wide), target)
            else:
                for part, values in enumerate(block_values(e, layout, source + i * layout.file_step_bytes())):
                    e.store(values, target + part * (4 * BLOCK))
        if isinstance(layout, FloatLayout):
            with e.loop(steps * wide, a.columns) as k:
                e.store(load_float(e, layout, source + k * layout.file_step_bytes(), 1), out + k * 4)


def embed_kernel(name: str) -> Kernel:
    return Kernel(embed, (name,))


def norm_kernel(sink: Sink, indexed: bool = False) -> Kernel:
    return Kernel(rms_norm, (indexed, *sink.params()))


def swiglu_kernel(sink: Sink) -> Kernel:
    return Kernel(swiglu, sink.params())


def quantize_kernel(sink: Sink) -> Kernel:
    return Kernel(quantize, sink.params())
