"""What the machine can do at most: kernels that only read, or only multiply.  Enters: a buffer, or a number of rounds;
leaves: a sum that proves that nothing was left out.

The benchmark times them in turns with the engines (bench/limits.py).
"""

from __future__ import annotations

from llvmlite import ir

from .emit import Emitter
from .jit import Kernel
from .products_int8 import PREFETCH_BYTES
from .records import Record
from .tickets import COUNTERS, Tickets
from .values import I8, I32, Value, vec

READ = Record("address", "tasks", "sums")
"""uint8 [tasks * READ_TASK] at `address`; int32 [tasks, lanes] at `sums` gets what each task read, lane by lane."""

DOT = Record("tasks", "rounds", "sums")
"""int32 [tasks, lanes] at `sums` gets the sum of all products of each task, lane by lane."""

READ_TASK = 1 << 19  # bytes that a thread draws: as matmul.py draws weights

_SUMS = 12  # two dot products a cycle take five to be done, so 10 at least; 14 fit sixteen registers
_STEPS = 8  # vectors of weights that each sum meets in a round: 32 columns
_CODE_BOUND = 15  # 4-bit codes: the least work for an instruction set without VNNI


def products_per_round(lanes: int) -> int:
    """Multiplications of two bytes, each with its addition, in one round of a task."""
    return _SUMS * _STEPS * 4 * lanes


def read(e: Emitter) -> None:
    """Step: add up all 32-bit words of the buffer, in tasks that the threads draw."""
    record, _, threads, _ = e.args
    fields, lanes = READ.read(e, record), e.target.lanes
    ty, n = vec(I32, lanes), 8
    tickets = Tickets(e, fields.tasks, e.min(threads, COUNTERS))
    tickets.draw()
    with e.repeat_while() as go_on_if:
        task = tickets.number
        go_on_if(task < fields.tasks)
        sums = [e.var(e.zero(ty)) for _ in range(n)]
        start = fields.address + task * READ_TASK
        with e.loop(0, READ_TASK, n * 4 * lanes) as offset:
            for line in range(0, n * 4 * lanes, 64):
                e.prefetch(start + offset + (line + PREFETCH_BYTES))
            for i, total in enumerate(sums):
                total.set(total.value + e.load(start + offset + i * 4 * lanes, ty))
        e.store(_sum([total.value for total in sums]), fields.sums + task * (4 * lanes))
        tickets.draw()


def dot(e: Emitter) -> None:
    """Step: multiply bytes that are all 1, in registers, in tasks of some rounds that the threads draw."""
    record, _, _, ticket = e.args
    fields, lanes = DOT.read(e, record), e.target.lanes
    bytes_ = vec(I8, 4 * lanes)
    weights, x = _opaque(e.const(bytes_, 1)), e.var(_opaque(e.const(bytes_, 1)))

    def other(row: int, count: int) -> Value:
        x.set(_opaque(x.value))
        return x.value

    with e.repeat_while() as go_on_if:
        task = e.atomic_add(ticket, e.i64(1))
        go_on_if(task < fields.tasks)
        totals = [e.var(e.zero(vec(I32, lanes))) for _ in range(_SUMS)]
        with e.loop(0, fields.rounds):
            [sums] = e.target.dots(e, [total.value for total in totals], [([weights], other)] * _STEPS, _CODE_BOUND)
            for total, value in zip(totals, sums, strict=True):
                total.set(value)
        e.store(_sum([total.value for total in totals]), fields.sums + task * (4 * lanes))


def _opaque(value: Value) -> Value:
    """Return the same bits, of which LLVM knows nothing: what is done with them cannot be moved, merged or left out."""
    letter, kind = value.e.target.vector_letter or "r", ir.FunctionType(value.type, [value.type])
    return Value(value.e, value.e.b.asm(kind, "", f"={letter},0", [value.ir], side_effect=False))


def _sum(values: list[Value]) -> Value:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def read_kernel() -> Kernel:
    return Kernel(read)


def dot_kernel() -> Kernel:
    return Kernel(dot)
