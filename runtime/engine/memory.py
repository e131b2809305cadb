"""Memory for weights, pages and buffers.  Enters: a size; leaves: zeroed memory and its address, or a refusal.

Anonymous maps: nothing is resident until it is touched, and large ones ask for huge pages.  The system grants maps that
it cannot back and kills the process later, so an engine is laid out first with a `Tally`, which maps nothing, and its
`check` holds the sum against the memory that there is.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError

HUGE_PAGE = 2 << 20
# Python maps shared by default, and Linux gives huge pages to private maps only.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}


class Memory:
    """`nbytes` zeroed bytes at `.address` (page aligned), freed with the object.

    Raises UsageError naming `what` when the system has not that much to give.
    """

    def __init__(self, nbytes: int, what: str):
        self.nbytes = _whole_pages(nbytes)
        try:
            self._map = mmap.mmap(-1, self.nbytes, **_PRIVATE)
        except (OSError, OverflowError, ValueError) as error:
            raise UsageError(f"no memory for {what}: {_size(self.nbytes)} wanted ({error})") from error
        if self.nbytes >= HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # only an advice
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self._bytes: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        self.address = int(self._bytes.ctypes.data)

    def array(self, dtype: type, shape: tuple[int, ...], offset: int = 0) -> NDArray:
        """A view of `shape` and `dtype` from byte `offset` on."""
        n = math.prod(shape) * np.dtype(dtype).itemsize
        return self._bytes[offset : offset + n].view(dtype).reshape(shape)


Allocate = Callable[[int, str], Memory]  # (bytes, what for)


class _Counted(Memory):
    """Memory that was only asked for: its address is 0."""

    def __init__(self, nbytes: int):
        self.nbytes, self.address = nbytes, 0


class _Part(Memory):
    """Bytes of another memory from `first` on, which lives as long."""

    def __init__(self, whole: Memory, first: int, nbytes: int):
        self.nbytes, self.address = nbytes, whole.address + first
        self._bytes = whole.array(np.uint8, (nbytes,), first)


class Arena:
    """One map of `nbytes`, of which each call takes the next: so small tensors lie in huge pages, too.

    What is asked for when it is used up gets a map of its own.  Raises UsageError as `Memory` does.
    """

    def __init__(self, nbytes: int, what: str):
        self._whole, self._used = Memory(nbytes, what), 0

    def __call__(self, nbytes: int, what: str) -> Memory:
        first, self._used = self._used, self._used + _whole_pages(nbytes)
        if self._used > self._whole.nbytes:
            return Memory(nbytes, what)
        return _Part(self._whole, first, self._used - first)


class Tally:
    """What an engine would take, in bytes: `weights`, `cache` and `buffers` are to be used in place of `Memory`."""

    def __init__(self) -> None:
        self.weight_bytes = self.cache_bytes = self.buffer_bytes = 0

    def weights(self, nbytes: int, what: str) -> Memory:
        self.weight_bytes += _whole_pages(nbytes)
        return _Counted(nbytes)

    def cache(self, nbytes: int, what: str) -> Memory:
        self.cache_bytes += _whole_pages(nbytes)
        return _Counted(nbytes)

    def buffers(self, nbytes: int, what: str) -> Memory:
        self.buffer_bytes += _whole_pages(nbytes)
        return _Counted(nbytes)

    @property
    def total(self) -> int:
        return self.weight_bytes + self.cache_bytes + self.buffer_bytes

    def maps(self) -> Maps:
        """Memory for what was counted."""
        return Maps(Arena(self.weight_bytes, "the weights"), Memory, Arena(self.buffer_bytes, "batches"))

    def check(self, available: int | None, context: int, ubatch: int) -> None:
        """Raise UsageError when the sum is more than `available` bytes (None: unknown, all is well).

        It names both numbers and their parts, and -c or -ub where a smaller one would help: the cache grows with the
        `context` and the buffers (at most) with the `ubatch` that the sum was made for.
        """
        if available is None or self.total <= available:
            return
        missing = self.total - available
        fits = int(context * (1 - missing / self.cache_bytes))
        if fits >= 1:
            way_out = f"; -c {_rounded_down(fits)} would fit"
        elif missing < self.cache_bytes + self.buffer_bytes * (1 - 1 / ubatch):
            way_out = "; a smaller -c and -ub could fit"
        else:
            way_out = ""
        raise UsageError(
            f"not enough memory: {_size(self.total)} needed (weights {_size(self.weight_bytes)}, KV cache of {context} "
            f"positions {_size(self.cache_bytes)}, batches of {ubatch} {_size(self.buffer_bytes)}), "
            f"{_size(available)} available{way_out}"
        )


@dataclass(frozen=True)
class Maps:
    """Where an engine takes memory from."""

    weights: Allocate
    cache: Allocate
    buffers: Allocate


def _whole_pages(nbytes: int) -> int:
    return max(-(-nbytes // mmap.PAGESIZE), 1) * mmap.PAGESIZE


def _rounded_down(number: int) -> int:
    """Two digits and zeros: memory comes and goes, so the exact number is of no use."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return number // unit * unit


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 1 << 30 else f"{nbytes / 2**20:.1f} MiB"
