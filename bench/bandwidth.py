"""How fast this machine reads memory.  Enters: a number of threads; leaves: bytes per second of a plain read.

Decoding reads every weight once a token, so this figure divided by a model's bytes is the rate it cannot exceed.
"""

from __future__ import annotations

import threading
import time

import numpy as np

from ..runtime.machine import available_memory, last_level_cache

_BUFFER = 512 << 20
_PASSES = 4


def read_bandwidth(threads: int, *, buffer_bytes: int | None = None) -> float:
    """Return the best rate of some passes over a buffer, in bytes per second, each thread reading its own part.

    threads       how many read at once
    buffer_bytes  None: 512 MiB, or four times the last-level cache where that is more, so that no cache holds it;
                  at most half of the memory that is free
    """
    size = buffer_bytes if buffer_bytes is not None else max(_BUFFER, 4 * (last_level_cache() or 0))
    size = min(size, (available_memory() or size * 2) // 2)
    parts = np.array_split(np.ones(size // 8, np.uint64), threads)  # written, so that every page is there
    return max(size / _one_pass(parts) for _ in range(_PASSES))


def _one_pass(parts: list[np.ndarray]) -> float:
    """Return the seconds it takes to read all parts (uint64 [n] each), one thread a part."""
    # max() of 64-bit integers: of NumPy's reductions the one whose speed is the memory's; it lets the GIL go.
    readers = [threading.Thread(target=part.max) for part in parts]
    start = time.perf_counter()
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return time.perf_counter() - start
