"""The thread pool.  Enters: a program (a table of kernels and their records); leaves: the program done, once.

The pool's threads live in compiled code (kernels/sync.py) and never take the interpreter lock.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ..kernels import sync
from ..kernels.jit import Library


class ThreadPool:
    """`threads` threads, the caller's among them; UsageError when the system has not that many."""

    def __init__(self, library: Library, threads: int):
        self.threads = threads
        raw = np.zeros(sync.SYNC_BYTES + 64, np.uint8)
        start = -raw.ctypes.data % 64
        self._sync = raw[start : start + sync.SYNC_BYTES]  # uint8 [SYNC_BYTES], aligned to a cache line
        self._address = int(self._sync.ctypes.data)
        self._program: NDArray[np.int64] | None = None  # int64 [n_steps, 2], which the area names
        self._lead = library.function(sync.lead_kernel())
        self._alone = library.function(sync.alone_kernel())
        work = library.function(sync.work_kernel())
        workers: list[threading.Thread] = []
        # Nothing may free the SYNC area before the last thread has left it, not even the end of the process.
        self._end = weakref.finalize(self, _end, self._sync, self._lead, workers)
        for i in range(1, threads):
            worker = threading.Thread(target=work, args=(self._address, i, threads), name=f"halfbyte-{i}", daemon=True)
            try:
                worker.start()
            except RuntimeError as error:
                raise UsageError(f"the system gives {i} of {threads} threads; ask for fewer with -t") from error
            workers.append(worker)

    def run(self, program: NDArray[np.int64], alone: bool = False) -> None:
        """Run `program`, int64 [n_steps, 2] of (kernel address, record address); returns when every step is done.

        alone: on the calling thread, which is quicker where a step is shorter than the barrier behind it.
        Raises ValueError after close().
        """
        if not self._end.alive:
            raise ValueError("the engine is closed")
        if program is not self._program:  # 20 us, when all that NumPy needs for it comes from memory
            self._program = None  # Ctrl-C may come in between
            _field(self._sync, sync.PROGRAM)[0] = program.ctypes.data
            _field(self._sync, sync.N_STEPS)[0] = len(program)
            self._program = program
        if alone:
            self._alone(self._address)
        else:
            self._lead(self._address, self.threads)

    def close(self) -> None:
        """End the pool's threads."""
        self._end()


def _field(area: NDArray[np.uint8], offset: int) -> NDArray[np.int64]:
    return area[offset : offset + 8].view(np.int64)


def _end(area: NDArray[np.uint8], lead: Callable[..., None], workers: list[threading.Thread]) -> None:
    """Start a program of no steps whose STOP flag ends the workers, and wait for them."""
    _field(area, sync.STOP)[0] = 1
    _field(area, sync.N_STEPS)[0] = 0
    lead(int(area.ctypes.data), len(workers) + 1)
    for worker in workers:
        worker.join()
