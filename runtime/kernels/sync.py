"""Running a program of steps on several threads.  Enters: the address of a SYNC area; leaves: every step done.

A step's tasks are drawn from ticket counters, so no thread has a share of its own: whoever runs takes part.  A thread
enters the current step, draws tasks until none is left, and leaves; the last one inside closes the step, and a step
waits for nobody who is not inside it.  So one thread whose core a neighbour took holds nobody up unless it was in the
middle of a task: the others do its work, and it joins at the step that is current when it comes back.

All that is one 64-bit word, changed by compare-and-exchange only: the number of threads inside, whether a program
runs, and the position, which counts steps for as long as the pool lives.  Who enters has seen all that was written in
the steps before: leaving releases, entering acquires.  Even and odd steps have counters of their own; those of the
next step are reset by the thread that closes the current one, when nobody can be drawing from them.

A waiting thread spins for a short while, offers its core to others that want it, and then sleeps in the operating
system, so an idle pool uses no CPU.
"""

from __future__ import annotations

import platform
import sys

from .emit import Emitter
from .jit import Kernel
from .tickets import COUNTER_STEP, COUNTERS, TICKET_BYTES
from .values import I32, I64, Value

# The SYNC area: fields on cache lines of their own, as byte offsets.
STATE = 0  # int64: threads inside (bits 0..30), RUNNING, position (bits 32..63)
SLEEPERS = 64  # int64: threads that may be asleep
STOP = 128  # int64: 1 ends the workers
PROGRAM = 192  # int64: address of the table int64 [n_steps, 2]
N_STEPS = 200  # int64
FIRST = 208  # int32: position of the program's first step
TICKETS = 256  # two times TICKET_BYTES: next tasks of the even steps and of the odd ones (tickets.py)
SYNC_BYTES = TICKETS + 2 * TICKET_BYTES

_POSITION = 4  # byte offset of the position in STATE; every CPU that LLVM's JIT serves here is little-endian
_RUNNING = 1 << 31
_INSIDE = _RUNNING - 1
_ONE_STEP = 1 << 32

BARRIER_SPINS = 2_000  # about 0.1 ms: longer than steps differ on an idle machine
IDLE_SPINS = 20_000  # about 1 ms: sampling and detokenizing between two tokens

# Spins between two offers of the core to a thread that waits for it, which may be the one that is waited for.  Beside
# a busy neighbour a small model then generates 3.4 instead of 2.1 thousand tokens a second, and two engines used at
# once 1.9 instead of 0.9 times what one does; alone it costs nothing that can be measured.
YIELD_EVERY = 16

_FUTEX_NUMBER = {"x86_64": 202, "aarch64": 98}  # Linux system call numbers
_FUTEX_WAIT_PRIVATE, _FUTEX_WAKE_PRIVATE = 128, 129


def sleep_method() -> str:
    """How a waiting thread sleeps here: "futex" where Linux has it, otherwise short naps."""
    if sys.platform == "linux" and platform.machine() in _FUTEX_NUMBER:
        return f"futex{_FUTEX_NUMBER[platform.machine()]}"
    return "Sleep" if sys.platform == "win32" else "usleep"


# Linux and macOS return at once where nobody waits for the core, and so does Windows.
_YIELD = ("SwitchToThread" if sys.platform == "win32" else "sched_yield", I32)


def _wait_for_step(e: Emitter, sync: Value, old: Value, spins: int, method: str) -> None:
    """Return when the position is no longer `old` (int32), or earlier, after at most one sleep."""
    word = sync + (STATE + _POSITION)
    spin = e.var(e.i64(0))
    with e.repeat_while() as go_on_if:
        go_on_if(e.atomic_load(word, I32).equals(old))
        go_on_if(spin.value < spins)
        spin.set(spin.value + 1)
        e.target.pause(e)
        with e.when((spin.value % YIELD_EVERY).equals(0)):
            e.call(*_YIELD, [])
    with e.when(spin.value.equals(spins)):
        e.atomic_add(sync + SLEEPERS, e.i64(1))
        e.fence()  # ARM may read the position before others see the count, and they then wake nobody
        with e.when(e.atomic_load(word, I32).equals(old)):
            if method.startswith("futex"):
                # the kernel compares again under its own lock, so no wake-up is lost
                number, none = e.i64(int(method[5:])), e.i64(0)
                e.call("syscall", I64, [number, word, e.i64(_FUTEX_WAIT_PRIVATE), old.to(I64), none])
            else:
                e.call(method, I32, [e.const(I32, 1 if method == "Sleep" else 100)])  # milliseconds, microseconds
        e.atomic_add(sync + SLEEPERS, e.i64(-1))


def _wake(e: Emitter, sync: Value, method: str) -> None:
    """Wake all who wait for a step, after the position was changed."""
    e.fence()  # the change must be visible before the sleepers are counted
    if method.startswith("futex"):
        with e.when(e.atomic_load(sync + SLEEPERS, I64) > 0):
            word, everyone, none = sync + (STATE + _POSITION), e.i64(2**31 - 1), e.i64(0)
            e.call("syscall", I64, [e.i64(int(method[5:])), word, e.i64(_FUTEX_WAKE_PRIVATE), everyone, none])


def _reset(e: Emitter, tickets: Value, threads: Value) -> None:
    with e.loop(0, e.min(threads, COUNTERS)) as i:
        e.atomic_store(e.i64(0), tickets + i * COUNTER_STEP)


def _enter(e: Emitter, sync: Value) -> tuple[Value, Value]:
    """Enter the current step if a program runs; return whether that is so, and the position."""
    state, inside = e.var(e.atomic_load(sync + STATE, I64)), e.var(e.i64(0))
    with e.repeat_while() as go_on_if:
        go_on_if(inside.value.equals(0))
        go_on_if((state.value & _RUNNING).differs(0))
        seen, done = e.compare_exchange(sync + STATE, state.value, state.value + 1)
        state.set(seen)
        inside.set(done.zext(I64))
    return inside.value.differs(0), (state.value >> 32).to(I32)


def _steps(e: Emitter, sync: Value, first: Value, thread: Value, threads: Value, method: str) -> Value:
    """Inside the step of position `first`: do its tasks and leave; and so on while this thread closes step after step.

    Returns the position of the last step that it was in.
    """
    table, n_steps, start = (e.load(sync + at, ty) for at, ty in ((PROGRAM, I64), (N_STEPS, I64), (FIRST, I32)))
    position = e.var(first)
    with e.repeat_while() as go_on_if:
        now = position.value
        step = (now - start).zext(I64)
        parity = now.zext(I64) & 1
        kernel, record = e.load(table + step * 16, I64), e.load(table + step * 16 + 8, I64)
        e.call_address(kernel, [record, thread, threads, sync + TICKETS + parity * TICKET_BYTES])
        more = (step + 1 < n_steps).zext(I64)
        # With sleepers to wake, which takes a while and may cost this thread its core, it must not stay inside.
        stays = more & e.atomic_load(sync + SLEEPERS, I64).equals(0).zext(I64)
        state, left = e.var(e.atomic_load(sync + STATE, I64)), e.var(e.i64(0))
        closes = e.var(e.i64(0))
        with e.repeat_while() as try_again_if:
            try_again_if(left.value.equals(0))
            last = (state.value & _INSIDE).equals(1)
            with e.when(last):
                _reset(e, sync + TICKETS + (1 - parity) * TICKET_BYTES, threads)
            closed = ((state.value >> 32) + 1 << 32) + more * _RUNNING + stays
            seen, done = e.compare_exchange(sync + STATE, state.value, e.select(last, closed, state.value - 1))
            state.set(seen)
            left.set(done.zext(I64))
            closes.set((last & done).zext(I64))
        with e.when(closes.value.differs(0)):
            _wake(e, sync, method)
        go_on_if((closes.value & stays).differs(0))
        position.set(now + 1)
    return position.value


def _walk(e: Emitter, sync: Value, thread: Value, threads: Value, method: str) -> Value:
    """Take part for as long as a program runs; return the position behind it."""
    end = e.var(e.const(I32, 0))
    with e.repeat_while() as go_on_if:
        inside, position = _enter(e, sync)
        end.set(position)
        go_on_if(inside)
        left = _steps(e, sync, position, thread, threads, method)
        _wait_for_step(e, sync, left, BARRIER_SPINS, method)
    return end.value


def lead(e: Emitter, method: str) -> None:
    """void(sync, threads): start the program of the SYNC area on all threads, be thread 0, return when it is done."""
    sync, threads = e.args
    first = (e.atomic_load(sync + STATE, I64) >> 32) + 1
    e.store(first.to(I32), sync + FIRST)
    for tickets in (TICKETS, TICKETS + TICKET_BYTES):
        _reset(e, sync + tickets, threads)
    running = e.select(e.load(sync + N_STEPS, I64) > 0, e.i64(_RUNNING), e.i64(0))
    e.atomic_store((first << 32) + running, sync + STATE)
    _wake(e, sync, method)
    _walk(e, sync, e.i64(0), threads, method)


def alone(e: Emitter, method: str) -> None:
    """void(sync): run the program of the SYNC area on the calling thread only; the others sleep on."""
    (sync,) = e.args
    table, n_steps = e.load(sync + PROGRAM, I64), e.load(sync + N_STEPS, I64)
    with e.loop(0, n_steps) as step:
        _reset(e, sync + TICKETS, e.i64(1))
        kernel, record = e.load(table + step * 16, I64), e.load(table + step * 16 + 8, I64)
        e.call_address(kernel, [record, e.i64(0), e.i64(1), sync + TICKETS])


def work(e: Emitter, method: str) -> None:
    """void(sync, thread, threads): the life of a pool thread: take part in every program until STOP."""
    sync, thread, threads = e.args
    with e.repeat_while() as go_on_if:
        position = _walk(e, sync, thread, threads, method)
        go_on_if(e.atomic_load(sync + STOP, I64).equals(0))
        _wait_for_step(e, sync, position, IDLE_SPINS, method)


def lead_kernel() -> Kernel:
    return Kernel(lead, (sleep_method(),), n_args=2)


def alone_kernel() -> Kernel:
    return Kernel(alone, (sleep_method(),), n_args=1)


def work_kernel() -> Kernel:
    return Kernel(work, (sleep_method(),), n_args=3)
