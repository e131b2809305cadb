"""Memory that nobody may step beyond.  Enters: arrays; leaves: copies that touch pages without any access.

One byte read or written past the guarded end kills the process; one written past the other end is found by `check`.
"""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
from kernel_bench import Heap, address

from halfbyte.runtime.engine.memory import Memory

PAGE = mmap.PAGESIZE
SIDES = ("end", "start", "odd")  # flush with the page after; with the page before; one byte behind that, unaligned
_UNTOUCHED = 0xFF  # around arrays: as floats these bytes are NaN


class GuardedHeap(Heap):
    """A heap whose arrays lie between pages without access, flush with the one that `side` names."""

    def __init__(self, side: str):
        self._side = side
        self._protect = ctypes.CDLL(None, use_errno=True).mprotect
        self._protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._areas: list[tuple[np.ndarray, int, int]] = []  # uint8 between the guards, where the array starts and ends

    def _allow(self, start: int, nbytes: int, access: int) -> None:
        if self._protect(start, nbytes, access):
            raise OSError(ctypes.get_errno(), "mprotect")

    def place(self, array: np.ndarray) -> np.ndarray:
        size = -(-(array.nbytes + (self._side == "odd")) // PAGE) * PAGE
        if not array.nbytes:  # an address that may not be used at all
            size = 0
        area = mmap.mmap(-1, size + 2 * PAGE)
        whole = np.frombuffer(area, np.uint8)
        base = address(whole)
        self._allow(base, PAGE, 0)
        self._allow(base + PAGE + size, PAGE, 0)
        between = whole[PAGE : PAGE + size]
        between[:] = _UNTOUCHED
        start = {"end": size - array.nbytes, "start": 0, "odd": 1 if size else 0}[self._side]
        self._areas.append((between, start, start + array.nbytes))
        placed = np.ndarray(array.shape, array.dtype, buffer=area, offset=PAGE + start)
        placed[...] = array
        return placed

    def freeze(self, array: np.ndarray) -> None:
        array.flags.writeable = False
        if array.nbytes:
            first = address(array) // PAGE * PAGE
            self._allow(first, -(-(address(array) + array.nbytes - first) // PAGE) * PAGE, mmap.PROT_READ)

    def forbid(self, start: int, nbytes: int) -> None:
        """Nobody may touch these whole pages from now on."""
        self._allow(start, nbytes, 0)

    def check(self) -> None:
        """Raise AssertionError when a byte around an array has changed."""
        for between, start, end in self._areas:
            assert (between[:start] == _UNTOUCHED).all(), "bytes before an array were written"
            assert (between[end:] == _UNTOUCHED).all(), "bytes after an array were written"


class GuardedMemory(Memory):
    """The engine's memory on a guarded heap: `heap` is set before an engine is made."""

    heap: Heap

    def __init__(self, nbytes: int, what: str):
        self.nbytes = nbytes
        self._bytes = self.heap.place(np.zeros(nbytes, np.uint8))
        self.address = address(self._bytes)
