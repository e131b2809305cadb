"""Everything that works row by row.  Enters: float32 rows; leaves: float32 rows or the int8 codes that matmul reads
(activations.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .activations import SINK_FIELDS, Sink, put, put_tail
from .emit import Emitter
from .functions import FUNCTIONS, gate, tanh
from .jit import Kernel
from .layouts import BLOCK, Correction, FloatLayout
from .panels import LAYOUTS, block_values, load_float
from .records import Fields, Record
from .values import F32, I64, Value, vec

# How far ahead quantizing asks for rows: of 512 by 8192 elements it takes a quarter to two fifths less time so (Zen 5;
# 2 KiB gain less, 8 as much).
QUANTIZE_AHEAD = 4096
TASK_BLOCKS = 32  # blocks of one task, at least: drawing one takes as long as a few blocks

EMBED = Record("n_rows", "index", "table", "row_bytes", "columns", "scale", "out", "out_stride")
ACTIVATE = Record("n_rows", "row_index", "x", "up", "x_stride", "columns", *SINK_FIELDS)
ADD = Record("n_rows", "x", "x_stride", "columns", "scale", "out", "out_stride")
CLAMP = Record("n_rows", "x", "x_stride", "columns", "limit", "out", "out_stride")
RESCALE = Record("n_rows", "x", "x_stride", "columns", "scale", "cap", "out", "out_stride")
SCALE_ROWS = Record("n_rows", "scales", "x", "x_stride", "columns", "out", "out_stride")
QUANTIZE = Record("n_rows", "x", "x_stride", "columns", *SINK_FIELDS)


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


def by_block(
    e: Emitter, sink: Sink, a: Fields, n_rows: Value, element: Callable[[Value, Value, int], Value],
    place: Callable[[Value], Value] = lambda row: row,
) -> None:  # fmt: skip
    """Walk all blocks of all rows, and the rows' tails, so that one long row is shared too.

    element(row, column, how many) goes to row place(row) of the sink.
    """
    n = sink.columns // BLOCK  # blocks that go together; they divide the columns where n > 1
    whole = a.columns // BLOCK
    groups = (a.columns + (sink.columns - 1)) // sink.columns
    with tasks(e, n_rows * groups, TASK_BLOCKS // n) as task:
        row, block = task // groups, task % groups * n
        target = place(row)
        with e.when(block < whole):
            put(e, sink, a, target, block, lambda b: element(row, b * BLOCK, BLOCK))
        with e.when(block >= whole):
            put_tail(e, sink, a, target, block * BLOCK, lambda k: element(row, k, 1))


def activate(
    e: Emitter, function: str, gated: bool, indexed: bool, float32: bool, codes: bool,
    corrections: tuple[Correction, ...], shared: int,
) -> None:  # fmt: skip
    """Program step: function(x), a name of FUNCTIONS; gated: of a gate and `up`, a name of GATES.  Record: ACTIVATE.

    indexed: the n_rows rows row_index[i] (int64), in their places; the others stay as they are.
    """
    a = ACTIVATE.read(e, e.args[0])

    def place(i: Value) -> Value:
        return e.load(a.row_index + i * 8, I64) if indexed else i

    def element(i: Value, column: Value, n: int) -> Value:
        at, ty = place(i) * a.x_stride + column * 4, vec(F32, n)
        x = e.load(a.x + at, ty)
        return gate(e, function, x, e.load(a.up + at, ty)) if gated else FUNCTIONS[function](e, x)

    by_block(e, Sink(float32, codes, corrections, shared), a, e.load(a.n_rows, I64), element, place)


def _by_vector(e: Emitter, a: Fields, element: Callable[[Value, Value, int], Value]) -> None:
    """out = element(address in x, address in out, how many) for all columns of all rows, a vector at a time."""
    width = 2 * e.target.lanes
    groups = (a.columns + (width - 1)) // width
    with tasks(e, e.load(a.n_rows, I64) * groups, TASK_BLOCKS) as task:
        row, first = task // groups, task % groups * width
        x, out = a.x + row * a.x_stride, a.out + row * a.out_stride
        with e.when(first + width <= a.columns):
            e.store(element(x + first * 4, out + first * 4, width), out + first * 4)
        with e.when(first + width > a.columns), e.loop(first, a.columns) as k:
            e.store(element(x + k * 4, out + k * 4, 1), out + k * 4)


def add(e: Emitter) -> None:
    """Program step: out += scale * x.  Record: ADD."""
    a = ADD.read(e, e.args[0])
    scale = a.float32("scale")
    _by_vector(
        e, a, lambda x, out, n: e.fma(e.load(x, vec(F32, n)), scale.splat(n), e.load(out, vec(F32, n)))
    )  # fmt: skip


def rescale(e: Emitter, capped: bool) -> None:
    """Program step: out = scale * x; capped: then cap * tanh(that / cap), inside +-cap.  Record: RESCALE."""
    a = RESCALE.read(e, e.args[0])
    scale, cap = a.float32("scale"), a.float32("cap")

    def element(x: Value, out: Value, n: int) -> Value:
        y = e.load(x, vec(F32, n)) * scale.splat(n)
        return tanh(e, y / cap.splat(n)) * cap.splat(n) if capped else y

    _by_vector(e, a, element)


def clamp(e: Emitter) -> None:
    """Program step: out = x, held inside +-limit; NaN stays.  Record: CLAMP."""
    a = CLAMP.read(e, e.args[0])
    limit = a.float32("limit")

    def element(x: Value, out: Value, n: int) -> Value:
        return e.min(limit.splat(n), e.max(-limit.splat(n), e.load(x, vec(F32, n))))

    _by_vector(e, a, element)


def scale_rows(e: Emitter) -> None:
    """Program step: row i of out = scales[i] (float32) * row i of x.  Record: SCALE_ROWS."""
    a = SCALE_ROWS.read(e, e.args[0])
    with tasks(e, e.load(a.n_rows, I64), TASK_BLOCKS) as row, e.loop(0, a.columns) as k:
        scale = e.load(a.scales + row * 4, F32)
        e.store(e.load(a.x + row * a.x_stride + k * 4, F32) * scale, a.out + row * a.out_stride + k * 4)


def quantize(e: Emitter, float32: bool, codes: bool, corrections: tuple[Correction, ...], shared: int) -> None:
    """Program step: float32 rows -> int8 codes (and a copy, where a float format reads them too).  Record: QUANTIZE."""
    a = QUANTIZE.read(e, e.args[0])

    def element(row: Value, column: Value, n: int) -> Value:
        at = a.x + row * a.x_stride + column * 4
        e.prefetch(at + QUANTIZE_AHEAD, 4 * n)
        return e.load(at, vec(F32, n))

    by_block(e, Sink(float32, codes, corrections, shared), a, e.load(a.n_rows, I64), element)


def embed(e: Emitter, name: str, add: bool) -> None:
    """Program step: out[i] = scale * row index[i] (int64) of the table of GGUF type `name`; add: out[i] += that.

    Record: EMBED.
    """
    layout = LAYOUTS[name]
    a = EMBED.read(e, e.args[0])
    scale = a.float32("scale")
    wide = e.target.lanes if isinstance(layout, FloatLayout) else layout.step_columns  # columns at a time

    def put_values(values: Value, target: Value) -> None:
        values = values * (scale.splat(values.lanes) if values.lanes > 1 else scale)
        e.store(e.load(target, values.type) + values if add else values, target)

    with tasks(e, e.load(a.n_rows, I64), 1) as row:
        source = a.table + e.load(a.index + row * 8, I64) * a.row_bytes
        out, steps = a.out + row * a.out_stride, a.columns // wide
        with e.loop(0, steps) as i:
            target = out + i * (4 * wide)
            if isinstance(layout, FloatLayout):
                put_values(load_float(e, layout, source + i * layout.step_bytes(wide), wide), target)
            else:
                for part, values in enumerate(block_values(e, layout, source + i * layout.file_step_bytes())):
                    put_values(values, target + part * (4 * BLOCK))
        if isinstance(layout, FloatLayout):
            with e.loop(steps * wide, a.columns) as k:
                put_values(load_float(e, layout, source + k * layout.file_step_bytes(), 1), out + k * 4)


def embed_kernel(name: str, add: bool = False) -> Kernel:
    return Kernel(embed, (name, add))


def activate_kernel(function: str, gated: bool, sink: Sink, indexed: bool = False) -> Kernel:
    return Kernel(activate, (function, gated, indexed, *sink.params()))


def add_kernel() -> Kernel:
    return Kernel(add)


def rescale_kernel(capped: bool) -> Kernel:
    return Kernel(rescale, (capped,))


def clamp_kernel() -> Kernel:
    return Kernel(clamp)


def scale_rows_kernel() -> Kernel:
    return Kernel(scale_rows)


def quantize_kernel(sink: Sink) -> Kernel:
    return Kernel(quantize, sink.params())
