"""What this machine can do at most.  Enters: a number of threads; leaves: bytes per second of a plain read, and
integer operations per second.

Decoding reads every weight once a token, so a model's bytes bound its rate; reading a prompt multiplies every weight
with every token.  Both are measured with kernels that do nothing else (runtime/kernels/peak.py).
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..runtime.engine.memory import Memory
from ..runtime.engine.threads import ThreadPool
from ..runtime.kernels.jit import Kernel, host_library
from ..runtime.kernels.peak import DOT, READ, READ_TASK, dot_kernel, products_per_round, read_kernel
from ..runtime.machine import available_memory, last_level_cache

_BUFFER = 512 << 20
_PASSES = 4
_DOT_TASKS = 64
_FIRST_ROUNDS = 16  # of a task
_DOT_SECONDS = 0.05


class Limits:
    """Measures on `threads` threads; use it in a `with`.

    buffer_bytes  what a read passes over; None: 512 MiB, or four times the last-level cache where that is more, so
                  that no cache holds it; at most half of the memory that is free
    """

    def __init__(self, threads: int, buffer_bytes: int | None = None):
        library = host_library()
        library.load([read_kernel(), dot_kernel()])
        size = buffer_bytes if buffer_bytes is not None else max(_BUFFER, 4 * (last_level_cache() or 0))
        size = min(size, (available_memory() or size * 2) // 2)
        self._lanes = library.target.lanes
        self._tasks = max(1, size // READ_TASK)
        self._buffer = Memory(self._tasks * READ_TASK, "measuring the read bandwidth")
        self._buffer.array(np.uint8, (self._buffer.nbytes,)).fill(1)  # so that every page is there
        self._sums = np.zeros((max(self._tasks, _DOT_TASKS), self._lanes), np.int32)
        self._library = library
        self._rounds = _FIRST_ROUNDS
        self._pool = ThreadPool(library, threads)

    def read(self) -> float:
        """Return the rate of one pass over the buffer, in bytes per second."""
        record = READ.make(address=self._buffer.address, tasks=self._tasks, sums=self._sums.ctypes.data)
        return self._tasks * READ_TASK / self._seconds(read_kernel(), record)

    def integer_operations(self) -> float:
        """Return the rate of 8-bit multiplications and additions in registers, in operations per second."""
        while True:
            record = DOT.make(tasks=_DOT_TASKS, rounds=self._rounds, sums=self._sums.ctypes.data)
            seconds = self._seconds(dot_kernel(), record)
            if seconds >= _DOT_SECONDS / 2:
                return 2 * products_per_round(self._lanes) * self._rounds * _DOT_TASKS / seconds
            self._rounds = int(self._rounds * max(2.0, _DOT_SECONDS / seconds))

    def _seconds(self, kernel: Kernel, record: NDArray[np.int64]) -> float:
        program = np.array([[self._library.address(kernel), record.ctypes.data]], np.int64)
        start = time.perf_counter()
        self._pool.run(program)
        return time.perf_counter() - start

    def close(self) -> None:
        """End the threads."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def read_bandwidth(threads: int, *, buffer_bytes: int | None = None) -> float:
    """Return the best rate of some passes over a buffer, in bytes per second (`Limits` says what buffer)."""
    with Limits(threads, buffer_bytes) as limits:
        return max(limits.read() for _ in range(_PASSES))
