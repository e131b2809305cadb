"""The paged KV cache.  Enters: sequences that grow, shrink and fork; leaves: the byte offsets of their pages.

Every layer has one pool of key pages and one of value pages (kernels/pages.py says what a page holds); a
page of 64 positions has the same offset in all of them.  Pages are counted, so sequences share a prefix, and a page
that two hold is copied before one of them writes to it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...errors import ContextLengthError
from ..kernels.page_format import PAGE
from ..kernels.pages import PAGE_FORMATS
from .memory import Allocate, Memory


class PagePool:
    """Room for `context` positions, shared by all sequences; kv: what pages hold, a name of PAGE_FORMATS.

    sequences: how many may end within a page and still hold `context` positions together.
    """

    def __init__(
        self, n_layers: int, n_kv_heads: int, head_dim: int, context: int, kv: str, allocate: Allocate = Memory,
        sequences: int = 1,
    ):  # fmt: skip
        self.n_layers, self.context, self.kv = n_layers, context, kv
        self.n_pages = -(-context // PAGE) + sequences - 1
        self.page_bytes = PAGE_FORMATS[kv](head_dim).head_bytes * n_kv_heads  # of one layer, keys or values
        layer_bytes = self.n_pages * self.page_bytes
        self._keys = allocate(n_layers * layer_bytes, f"the keys of {context} positions (-c sets how many)")
        self._values = allocate(n_layers * layer_bytes, f"the values of {context} positions (-c sets how many)")
        self.layers = [
            (self._keys.address + i * layer_bytes, self._values.address + i * layer_bytes) for i in range(n_layers)
        ]
        self._free = list(range(self.n_pages - 1, -1, -1))
        self._holders = [0] * self.n_pages

    @property
    def free_pages(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """Return a page that nobody holds; raises ContextLengthError when there is none."""
        if not self._free:
            raise ContextLengthError(f"the KV cache is full: all {self.n_pages * PAGE} positions are held by sequences")
        page = self._free.pop()
        self._holders[page] = 1
        return page

    def share(self, page: int) -> None:
        self._holders[page] += 1

    def drop(self, page: int) -> None:
        self._holders[page] -= 1
        if self._holders[page] == 0:
            self._free.append(page)

    def is_shared(self, page: int) -> bool:
        return self._holders[page] > 1

    def copy_of(self, page: int) -> int:
        """Return a new page with the content of `page`, and drop `page`."""
        fresh = self.take()
        for memory in (self._keys, self._values):
            pages = memory.array(np.uint8, (self.n_layers, self.n_pages, self.page_bytes))
            pages[:, fresh] = pages[:, page]
        self.drop(page)
        return fresh


class Sequence:
    """Tokens whose keys and values are in the pool."""

    def __init__(self, pool: PagePool, adapters: tuple[float, ...] = ()):
        self._pool = pool
        self._pages: list[int] = []
        self.tokens: list[int] = []
        self.adapters = adapters  # how much of each adapter its tokens see; none where it is empty
        # int64 [n_pages]: byte offset of each page in a layer's pool; the kernels read it, so it never moves
        self.offsets: NDArray[np.int64] = np.zeros(pool.n_pages, np.int64)
        self.offsets_address = int(self.offsets.ctypes.data)  # NumPy takes 17 us to tell, between two tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def extend(self, tokens: list[int]) -> int:
        """Make room for `tokens` after the last one; return the position of the first.

        Raises ContextLengthError when they do not fit the context; nothing has changed then.
        """
        start = len(self.tokens)
        end = start + len(tokens)
        if end > self._pool.context:
            raise ContextLengthError(
                f"{len(tokens)} tokens after {start} do not fit the context of {self._pool.context} tokens"
            )
        needed = -(-end // PAGE) - len(self._pages)
        copies = bool(start % PAGE) and self._pool.is_shared(self._pages[start // PAGE])
        if needed + copies > self._pool.free_pages:
            raise ContextLengthError(
                f"{len(tokens)} more tokens do not fit the KV cache: {self._pool.free_pages * PAGE} of "
                f"{self._pool.n_pages * PAGE} positions are free"
            )
        if copies:
            self._append(self._pool.copy_of(self._pages.pop()))
        for _ in range(needed):
            self._append(self._pool.take())
        self.tokens += tokens
        return start

    def _append(self, page: int) -> None:
        self.offsets[len(self._pages)] = page * self._pool.page_bytes
        self._pages.append(page)

    def truncate(self, length: int) -> None:
        """Forget all tokens from position `length` on."""
        del self.tokens[length:]
        for page in self._pages[-(-length // PAGE) :]:
            self._pool.drop(page)
        del self._pages[-(-length // PAGE) :]

    def adapt(self, scales: tuple[float, ...]) -> None:
        """See so much of each adapter from now on; what was computed with other scales is forgotten."""
        if scales != self.adapters:
            self.truncate(0)
            self.adapters = scales

    def fork(self) -> Sequence:
        """Return a sequence with the same tokens that shares this one's pages."""
        other = Sequence(self._pool)
        other.tokens, other._pages, other.adapters = list(self.tokens), list(self._pages), self.adapters
        other.offsets[:] = self.offsets
        for page in self._pages:
            self._pool.share(page)
        return other

    def close(self) -> None:
        """Give all pages back."""
        self.truncate(0)
