"""Matrix products.  Enters: activation rows (tiles of int8 codes, or float32) and weight panels; leaves: float32 output
rows, y[m, r] = sum_k x[m, k] * w[r, k] (+ bias[r], or + what y held).

One kernel serves decode (one row) and prefill (many): it walks tasks of `chunk` panels by `token_block` rows, which
threads draw (tickets.py), so a thread that a neighbour slows down does less.  Every output is the sum of its blocks in
order of k, whatever the batch: results do not depend on threads, tiles or batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

from .emit import Emitter
from .functions import gate
from .jit import Kernel
from .layouts import BlockLayout, FloatLayout, Layout
from .opened import OpenedBlock, opened_bytes, opens_panels
from .panels import LAYOUTS
from .products_f32 import float_step
from .products_int8 import Following, Onward, Opened, add_blocks
from .records import Fields, Record
from .target import Target
from .tickets import COUNTERS, Tickets
from .values import F32, I64, Local, Value, vec

# n_rows: address of the count of activation rows, or for experts of the list of blocks (experts.py); steps: blocks of
# the weights, or columns for float types.  x: float32 rows x_stride bytes apart, or tiles of int8 codes
# (activations.py) x_stride bytes apart with records of block_stride bytes, in which the weights' correction lies at
# byte `correction`.  token_block: rows of a task at most, a multiple of the target's tile (for experts the blocks say).
# opened: for each thread opened_stride bytes (`opened.workspace`), where full tiles find panels taken apart,
# opened_steps of their blocks at a time; gates: for each thread gates_stride bytes, for a gate's values: of
# token_block rows and a tile's panels, and of one row and `chunk`, at least.
MATMUL = Record(
    "n_rows", "steps", "x", "x_stride", "block_stride", "correction", "token_block", "chunk", "n_matrices", "matrices",
    "opened", "opened_stride", "opened_steps", "gates", "gates_stride",
)  # fmt: skip
# One of the matrices of a step: y float32 rows of y_stride bytes; bias float32 [rows] with bias_step 4*lanes, or one
# vector of zeros with bias_step 0.
MATRIX = Record("panels", "panel_bytes", "n_panels", "n_chunks", "y", "y_stride", "bias", "bias_step")


def matmul(e: Emitter, name: str, add: bool, activations: str, experts: bool, function: str) -> None:
    """Program step.  name: GGUF type of the weights; add: y += bias + instead of y = bias +.  Record: MATMUL.

    activations: "int8" (codes with a scale per 32) or "f32", the only one of float types.  experts: each matrix is
    many, one after the other, with as many biases; a block of rows meets the one that it names.  function: behind the
    one matrix is another of its size, and y of both is the gate `function` (functions.py) of the two products.
    """
    layout = LAYOUTS[name]
    record, thread, threads, _ = e.args
    a = MATMUL.read(e, record)
    opened = None
    if _is_integer(layout, activations) and opens_panels(layout, e.target):
        opened = a.opened + thread * a.opened_stride
    n_rows = token_blocks = e.load(a.n_rows, I64)
    token_block = a.token_block
    if not experts:  # blocks of about as many rows
        token_blocks = (n_rows + a.token_block - 1) // a.token_block
        tile = e.target.tile
        token_block = (n_rows + token_blocks * tile - 1) // (e.max(token_blocks, 1) * tile) * tile
    chunks = e.var(e.i64(0))
    with e.loop(0, a.n_matrices) as i:
        chunks.set(chunks.value + MATRIX.read(e, a.matrices + i * (8 * MATRIX.size)).n_chunks)
    n_chunks = chunks.value

    def find(number: Value) -> _Task:
        w, first = _chunk(e, a, number % n_chunks)
        before = e.i64(0)
        if experts:
            block = a.n_rows + 8 + number // n_chunks * 24
            expert, first_row, end_row = (e.load(block + 8 * i, I64) for i in range(3))
            before = expert * w.n_panels
        else:
            first_row = number // n_chunks * token_block
            end_row = e.min(first_row + token_block, n_rows)
        return _Task(w, before, first, e.min(first + a.chunk, w.n_panels), first_row, end_row)

    n_tasks = token_blocks * n_chunks
    tickets = Tickets(e, n_tasks, e.min(threads, COUNTERS))
    tickets.draw()
    with e.repeat_while() as go_on_if:
        go_on_if(tickets.number < n_tasks)
        task = find(tickets.number)
        n_task_rows, next_panel = task.end_row - task.first_row, e.var(task.address(task.end))
        with e.when(n_task_rows <= e.target.tile):  # which ask ahead: the next task is drawn now
            tickets.draw()
            with e.when(tickets.number < n_tasks):
                following = find(tickets.number)
                next_panel.set(following.address(following.first))
        task = replace(task, onward=_onward(task, next_panel.value))
        if function:
            _gated(e, layout, activations, a, task, opened, a.gates + thread * a.gates_stride, function)
        else:
            _panels(e, layout, activations, a, task, add, opened)
        with e.when(n_task_rows > e.target.tile):
            tickets.draw()


@dataclass(frozen=True)
class _Task:
    """Panels first..end-1 of a matrix by rows first_row..end_row-1.

    before: panels of the experts before the matrix; onward: what this thread reads behind the panels.
    """

    w: Fields
    before: Value
    first: Value
    end: Value
    first_row: Value
    end_row: Value
    onward: Onward | None = None

    def address(self, panel: Value) -> Value:
        return self.w.panels + (self.before + panel) * self.w.panel_bytes

    def bias(self, panel: Value) -> Value:
        """The address of the panel's bias."""
        return self.w.bias + (self.before + panel) * self.w.bias_step


def _chunk(e: Emitter, a: Fields, number: Value) -> tuple[Fields, Value]:
    """Of all matrices' chunks the one of this number: its matrix, and its first panel there."""
    chunk, at = e.var(number), e.var(a.matrices)
    with e.repeat_while() as not_yet:
        here = MATRIX.read(e, at.value)
        not_yet(chunk.value >= here.n_chunks)
        chunk.set(chunk.value - here.n_chunks)
        at.set(at.value + 8 * MATRIX.size)
    return MATRIX.read(e, at.value), chunk.value * a.chunk


def _onward(task: _Task, then: Value) -> Onward:
    """Behind the task's panels a thread reads those from address `then` on."""
    end = task.address(task.end)
    return Onward(end, then - end)


def _panels(
    e: Emitter, layout: Layout, activations: str, a: Fields, task: _Task, add: bool, opened: Value | None
) -> None:  # fmt: skip
    """A task: full tiles while there are rows for them, then lower ones."""
    end, first_row, end_row = task.end, task.first_row, task.end_row
    panel = e.var(task.first)
    widest, height = tallest_tile(e.target, layout, activations)
    streams = e.target.streams(layout) if _is_integer(layout, activations) else widest
    if streams > 1:
        with e.repeat_while() as go_on_if_alone:
            go_on_if_alone((first_row + 1).equals(end_row) & (panel.value + streams <= end))
            _tile(e, layout, activations, a, task, panel.value, first_row, 1, streams, add)
            panel.set(panel.value + streams)
    if opened is not None and isinstance(layout, BlockLayout):
        _opened_panels(e, layout, a, replace(task, first=panel.value), add, opened)
        return
    with e.repeat_while() as go_on_if:
        go_on_if(panel.value < end)
        here, rows = panel.value, end_row - first_row
        n_tiles, after = rows // height, here + 1
        if widest > 1:  # fewer rows than one panel could have sums for take less time without a second one
            are_full = (here + widest <= end) & (rows >= widest * height)
            n_tiles, after = e.select(are_full, n_tiles, e.i64(0)), e.select(are_full, here + widest, after)
        _full_tiles(e, layout, activations, a, task, here, n_tiles, add)
        with e.repeat_while() as go_on_if_lower:
            go_on_if_lower(panel.value < after)
            _low_tiles(e, layout, activations, a, task, panel.value, first_row + n_tiles * height, add)
            panel.set(panel.value + 1)


def _gated(
    e: Emitter, layout: Layout, activations: str, a: Fields, task: _Task, opened: Value | None, gates: Value,
    function: str,
) -> None:  # fmt: skip
    """A task's panels of a gate's matrix and of the one that it is for: the same few of both, one after the other.

    The gate's values wait at `gates`, so that of both matrices only one result goes to memory: prompts of a 1B model
    take 3 to 4 % less time so.  Few rows take all panels at once, not to break off streams of reads.
    """
    n, ty = e.target.lanes, vec(F32, e.target.lanes)
    together = tallest_tile(e.target, layout, activations)[0]
    n_rows = task.end_row - task.first_row
    fit = a.gates_stride // (n_rows * (4 * n * together)) * together
    few = e.min(task.end - task.first, e.max(fit, together))
    here = e.var(task.first)
    up = MATRIX.read(e, a.matrices + 8 * MATRIX.size)
    with e.repeat_while() as go_on_if:
        go_on_if(here.value < task.end)
        begin, stop = here.value, e.min(here.value + few, task.end)
        stride = few * (4 * n)
        held = gates - task.first_row * stride - begin * (4 * n)
        with e.loop(0, 2) as which:
            w = MATRIX.read(e, a.matrices + which * (8 * MATRIX.size))
            is_gate = which.equals(0)
            w = w.but(y=e.select(is_gate, held, w.y), y_stride=e.select(is_gate, stride, w.y_stride))
            some = replace(task, w=w, first=begin, end=stop)
            assert task.onward is not None
            then = e.select(is_gate, replace(task, w=up).address(begin), task.address(task.end) + task.onward.jump)
            _panels(e, layout, activations, a, replace(some, onward=_onward(some, then)), False, opened)
        with e.loop(task.first_row, task.end_row) as row, e.loop(begin, stop) as panel:
            at = up.y + row * up.y_stride + panel * (4 * n)
            e.store(gate(e, function, e.load(held + row * stride + panel * (4 * n), ty), e.load(at, ty)), at)
        here.set(stop)


def tallest_tile(target: Target, layout: Layout, activations: str) -> tuple[int, int]:
    """Panels and rows of the tiles that read prompts; activations: as `matmul` has it."""
    if activations == "f32" and isinstance(layout, BlockLayout):
        return 1, target.shapes[0][1]  # two panels take twice as long to compile
    return target.shapes[0] if isinstance(layout, FloatLayout) else target.shape(layout)


def _full_tiles(
    e: Emitter, layout: Layout, activations: str, a: Fields, task: _Task, panel: Value, n_tiles: Value, add: bool
) -> None:  # fmt: skip
    """`n_tiles` tiles of the target's shape, from the task's first row on."""
    panels, height = tallest_tile(e.target, layout, activations)
    following = None
    if _is_integer(layout, activations) and e.target.asks_ahead:
        times = n_tiles * a.steps * layout.parts  # that full tiles meet 32 columns
        next_panel = e.var(task.address(panel + panels))
        most = panels * layout.step_bytes(e.target.lanes) // layout.parts
        following = Following(next_panel, panels * task.w.panel_bytes // e.max(times, 1), most)
    with e.loop(0, n_tiles) as t:
        row = task.first_row + t * height
        _tile(e, layout, activations, a, task, panel, row, height, panels, add, following)


def _low_tiles(
    e: Emitter, layout: Layout, activations: str, a: Fields, task: _Task, panel: Value, first: Value, add: bool
) -> None:  # fmt: skip
    """One panel by the task's rows from `first` on, in tiles as high as there are rows left, each in one record."""
    panels, height = tallest_tile(e.target, layout, activations)
    row, has_records, tile = e.var(first), _is_integer(layout, activations), e.target.tile
    for rows in (n for n in (8, 4, 2, 1) if n < panels * height and not (has_records and n > tile)):
        with e.repeat_while() as go_on_if_full:
            go_on_if_full(row.value + rows <= task.end_row)
            if has_records and tile % rows:
                go_on_if_full(row.value % tile + rows <= tile)
            _tile(e, layout, activations, a, task, panel, row.value, rows, 1, add)
            row.set(row.value + rows)


def _opened_panels(
    e: Emitter, layout: BlockLayout, a: Fields, task: _Task, add: bool, opened: Value
) -> None:  # fmt: skip
    """As `_panels`, of a type whose panels full tiles find taken apart."""
    panels, height = e.target.shape(layout)
    first, end, rows = task.first, task.end, task.end_row - task.first_row
    whole = first + (end - first) // panels * panels
    n_tiles = rows // height
    are_full = (rows >= panels * height) & (first < whole)
    with e.when(are_full):
        _opened_tiles(e, layout, a, replace(task, end=whole), n_tiles, add, opened)
    with e.loop(first, end) as panel:
        done = e.select(are_full & (panel < whole), n_tiles * height, e.i64(0))
        _low_tiles(e, layout, "int8", a, task, panel, task.first_row + done, add)


def _opened_tiles(
    e: Emitter, layout: BlockLayout, a: Fields, task: _Task, n_tiles: Value, add: bool, opened: Value
) -> None:  # fmt: skip
    """The task's panels, a multiple of the tile's, by `n_tiles` full tiles of rows, whose blocks are taken apart.

    That is done for a.opened_steps blocks at a time, for all panels before the next ones, so that these columns of the
    activations stay close; sums wait in y.
    """
    n, target, w = e.target.lanes, e.target, task.w
    (panels, height), size, step_bytes = target.shape(layout), opened_bytes(layout, target), layout.step_bytes(n)
    ty, zero = vec(F32, n), e.i64(0)
    places = [opened + a.opened_steps * (q * size) for q in range(panels)]
    with e.loop(0, a.steps, a.opened_steps) as begin, e.loop(task.first, task.end, panels) as panel:
        steps, is_first = e.min(a.steps - begin, a.opened_steps), begin.equals(0)
        biases = [task.bias(panel + q) for q in range(panels)]
        starts = [task.address(panel + q) for q in range(panels)]
        with e.loop(0, panels) as p, e.loop(0, steps) as i:
            block = starts[0] + p * w.panel_bytes + (begin + i) * step_bytes
            OpenedBlock(e, layout, opened + (a.opened_steps * p + i) * size).fill(block)
        following = None
        if target.asks_ahead:
            after, again = panel + panels, begin + steps
            is_last, more_steps = after >= task.end, again < a.steps
            next_panel = task.address(e.select(is_last & more_steps, task.first, after))
            at = e.var(next_panel + e.select(is_last, e.select(more_steps, again, zero), begin) * step_bytes)
            most = step_bytes // layout.parts
            following = Following(at, e.i64(step_bytes) // (n_tiles * layout.parts) + 1, most, panels, w.panel_bytes)
        with e.loop(0, n_tiles) as t:
            row = task.first_row + t * height
            y = w.y + row * w.y_stride + panel * (4 * n)
            outputs = [[y + w.y_stride * m + 4 * n * q for m in range(height)] for q in range(panels)]
            sums = []
            for bias, outs in zip(biases, outputs, strict=True):
                if add:
                    more = e.select(is_first, e.load(bias, ty), e.const(ty, -0.0))  # which changes no number
                    values = [e.load(out, ty) + more for out in outs]
                else:
                    values = [e.load(e.select(is_first, bias, out), ty) for out in outs]
                sums.append(_locals(e, layout, values, panels))
            _ask_for_next(e, outputs, w, height)
            add_blocks(e, layout, a, starts, row, sums, following, opened=Opened(places, begin, steps))
            _store(e, sums, outputs)


def _locals(e: Emitter, layout: BlockLayout, values: list[Value], panels: int) -> Sequence[Local]:
    """What sums of a panel's products with integers start from: in registers, or in memory if those are few."""
    keeps = e.target.keeps_sums(layout, panels * len(values))
    return [e.var(value) for value in values] if keeps else e.stored(values)


def _ask_for_next(e: Emitter, outputs: list[list[Value]], w: Fields, rows: int) -> None:
    """Ask for what the next tile writes or adds to, `rows` rows further.

    Also where it only writes: sums that wait in memory (products_paired.py) would stand behind results that no cache
    has (of Q4_K with 2048 columns one thread reached 68 % of the peak so, 78 % with it).
    """
    if e.target.asks_for_rows:
        for outs in outputs:
            for out in outs:
                e.prefetch(out + w.y_stride * rows, write=True)


def _store(e: Emitter, sums: list[Sequence[Local]], outputs: list[list[Value]]) -> None:
    for outs, totals in zip(outputs, sums, strict=True):
        for out, total in zip(outs, totals, strict=True):
            e.store(total.value, out)


def _tile(
    e: Emitter, layout: Layout, activations: str, a: Fields, task: _Task, panel: Value, row: Value, rows: int,
    panels: int, add: bool, following: Following | None = None,
) -> None:  # fmt: skip
    """`panels` panels by `rows` rows over all columns; following: as products of integers take it."""
    n, w = e.target.lanes, task.w
    outputs = [[w.y + (row + m) * w.y_stride + (panel + q) * (4 * n) for m in range(rows)] for q in range(panels)]
    sums: list[Sequence[Local]] = []
    for q, outs in enumerate(outputs):
        bias = e.load(task.bias(panel + q), vec(F32, n))
        first = [e.load(out, vec(F32, n)) + bias if add else bias for out in outs]
        if _is_integer(layout, activations):
            sums.append(_locals(e, layout, first, panels))
        else:
            sums.append([e.var(value) for value in first])
    starts = [task.address(panel + q) for q in range(panels)]
    if _is_integer(layout, activations):
        if add and following is not None:
            _ask_for_next(e, outputs, w, rows)
        add_blocks(e, layout, a, starts, row, sums, following, task.onward)
    else:
        sources = [row + m for m in range(rows)]
        with e.loop(0, a.steps) as i:
            for start, totals in zip(starts, sums, strict=True):
                float_step(e, layout, a, start + i * layout.step_bytes(n), sources, i, totals)
    _store(e, sums, outputs)


def _is_integer(layout: Layout, activations: str) -> TypeGuard[BlockLayout]:
    """Whether int8 activations meet integer codes."""
    return activations == "int8" and isinstance(layout, BlockLayout)


def matmul_kernel(name: str, add: bool, activations: str = "int8", experts: bool = False, function: str = "") -> Kernel:
    """The kernel for weights of GGUF type `name`; types of integer codes read activations as "int8" or "f32"."""
    return Kernel(matmul, (name, add, "f32" if LAYOUTS[name].is_float else activations, experts, function))
