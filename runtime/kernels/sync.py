"""Running a program of steps on several threads.  Enters: the address of a SYNC area; leaves: every step done.

Each thread walks the whole table of (kernel, record) and does its share of every step; between steps all meet at a
barrier.  A waiting thread spins for a short while and then sleeps in the operating system, so a busy neighbour does
not stall the others and an idle pool uses no CPU.
"""

from __future__ import annotations

import platform
import sys

from .emit import I32, I64, Emitter, Value
from .jit import Kernel

# The SYNC area: fields on cache lines of their own, as byte offsets.
ARRIVED = 0  # int64: threads at the barrier
GENERATION = 64  # int32: barriers passed
TICKET = 128  # int64: next task of the running step
EPOCH = 192  # int32: programs started
SLEEPERS = 256  # int64: threads that may be asleep
STOP = 320  # int64: 1 ends the workers
PROGRAM = 384  # int64: address of the table int64 [n_steps, 2]
N_STEPS = 392  # int64
SYNC_BYTES = 448

BARRIER_SPINS = 2_000  # about 0.1 ms: longer than steps differ on an idle machine
IDLE_SPINS = 20_000  # about 1 ms: sampling and detokenizing between two tokens

_FUTEX_NUMBER = {"x86_64": 202, "aarch64": 98}  # Linux system call numbers
_FUTEX_WAIT_PRIVATE, _FUTEX_WAKE_PRIVATE = 128, 129


def sleep_method() -> str:
    """How a waiting thread sleeps here: "futex" where Linux has it, otherwise short naps."""
    if sys.platform == "linux" and platform.machine() in _FUTEX_NUMBER:
        return f"futex{_FUTEX_NUMBER[platform.machine()]}"
    return "Sleep" if sys.platform == "win32" else "usleep"


def _wait_while_equal(e: Emitter, sync: Value, word: Value, old: Value, spins: int, method: str) -> None:
    """Return when the int32 at `word` is no longer `old`."""
    spin = e.var(e.i64(0))
    with e.repeat_while() as go_on_if:
        go_on_if(e.atomic_load(word, I32).equals(old))
        go_on_if(spin.value < spins)
        spin.set(spin.value + 1)
        e.target.pause(e)
    with e.when(e.atomic_load(word, I32).equals(old)):
        e.atomic_add(sync + SLEEPERS, e.i64(1))
        with e.repeat_while() as go_on_if:
            go_on_if(e.atomic_load(word, I32).equals(old))
            if method.startswith("futex"):
                # the kernel compares again under its own lock, so no wake-up is lost
                number, none = e.i64(int(method[5:])), e.i64(0)
                e.call("syscall", I64, [number, word, e.i64(_FUTEX_WAIT_PRIVATE), old.to(I64), none])
            else:
                e.call(method, I32, [e.const(I32, 1 if method == "Sleep" else 100)])  # milliseconds, microseconds
        e.atomic_add(sync + SLEEPERS, e.i64(-1))


def _wake(e: Emitter, sync: Value, word: Value, method: str) -> None:
    """Wake all who sleep on `word`, after it was changed."""
    e.fence()  # the change must be visible before the sleepers are counted
    if method.startswith("futex"):
        with e.when(e.atomic_load(sync + SLEEPERS, I64) > 0):
            everyone, none = e.i64(2**31 - 1), e.i64(0)
            e.call("syscall", I64, [e.i64(int(method[5:])), word, e.i64(_FUTEX_WAKE_PRIVATE), everyone, none])


def _walk(e: Emitter, sync: Value, thread: Value, threads: Value, method: str) -> None:
    table, n_steps = e.load(sync + PROGRAM, I64), e.load(sync + N_STEPS, I64)
    with e.loop(0, n_steps) as step:
        kernel, record = e.load(table + step * 16, I64), e.load(table + step * 16 + 8, I64)
        e.call_address(kernel, [record, thread, threads, sync + TICKET])
        generation = e.atomic_load(sync + GENERATION, I32)
        arrived = e.atomic_add(sync + ARRIVED, e.i64(1)) + 1
        with e.when(arrived.equals(threads)):
            e.store(e.i64(0), sync + ARRIVED)
            e.store(e.i64(0), sync + TICKET)
            e.atomic_store(generation + 1, sync + GENERATION)
            _wake(e, sync, sync + GENERATION, method)
        with e.when(arrived < threads):
            _wait_while_equal(e, sync, sync + GENERATION, generation, BARRIER_SPINS, method)


def lead(e: Emitter, method: str) -> None:
    """void(sync, threads): start the program of the SYNC area on all threads, be thread 0, return when it is done."""
    sync, threads = e.args
    e.atomic_store(e.atomic_load(sync + EPOCH, I32) + 1, sync + EPOCH)
    _wake(e, sync, sync + EPOCH, method)
    _walk(e, sync, e.i64(0), threads, method)


def alone(e: Emitter, method: str) -> None:
    """void(sync): run the program of the SYNC area on the calling thread only; the others sleep on."""
    (sync,) = e.args
    _walk(e, sync, e.i64(0), e.i64(1), method)


def work(e: Emitter, method: str) -> None:
    """void(sync, thread, threads): the life of a pool thread: run every program until STOP."""
    sync, thread, threads = e.args
    epoch = e.var(e.const(I32, 0))
    with e.repeat_while() as go_on_if:
        _wait_while_equal(e, sync, sync + EPOCH, epoch.value, IDLE_SPINS, method)
        epoch.set(epoch.value + 1)
        go_on_if(e.atomic_load(sync + STOP, I64).equals(0))
        _walk(e, sync, thread, threads, method)


def lead_kernel() -> Kernel:
    return Kernel(lead, (sleep_method(),), n_args=2)


def alone_kernel() -> Kernel:
    return Kernel(alone, (sleep_method(),), n_args=1)


def work_kernel() -> Kernel:
    return Kernel(work, (sleep_method(),), n_args=3)
