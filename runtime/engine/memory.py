"""Memory for weights, pages and buffers.  Enters: a size; leaves: zeroed memory and its address.

Anonymous maps: nothing is resident until it is touched, and large ones ask for huge pages.
"""

from __future__ import annotations

import contextlib
import mmap

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
        self.nbytes = max(nbytes, mmap.PAGESIZE)
        try:
            self._map = mmap.mmap(-1, self.nbytes, **_PRIVATE)
        except (OSError, OverflowError, ValueError) as error:
            raise UsageError(f"no memory for {what}: {self.nbytes / 2**20:.0f} MiB wanted ({error})") from error
        if self.nbytes >= HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # only an advice
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self._bytes: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        self.address = int(self._bytes.ctypes.data)

    def array(self, dtype: type, shape: tuple[int, ...], offset: int = 0) -> NDArray:
        """A view of `shape` and `dtype` from byte `offset` on."""
        n = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self._bytes[offset : offset + n].view(dtype).reshape(shape)
