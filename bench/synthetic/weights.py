"""Random weights.  Enters: a tensor's kind, shape and format; leaves: its packed rows, piece by piece.

Matrices are N(0, 0.02) and norms near 1, in numbers that bfloat16 holds, so that a GGUF file and a checkpoint of the
same seed have the same weights.  All layers share one set of them: a random layer is made and rounded once.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ...quant.formats import BlockFormat

_PIECE = 1 << 20  # elements made at a time: 4 MB as float32


class RandomWeights:
    """The weights of one seed, made on all cores; use it in a `with`."""

    def __init__(self, seed: int):
        self._seed = seed
        self._workers = min(8, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self._workers)
        self._layer: dict[tuple[str, str], list[NDArray[np.uint8]]] = {}

    def __enter__(self) -> RandomWeights:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def shared(self, kind: str, shape: tuple[int, ...], format: BlockFormat) -> list[NDArray[np.uint8]]:
        """Return the pieces of a tensor that every layer has, which stay in memory: those of one layer, packed."""
        key = (kind, format.name)
        if key not in self._layer:
            self._layer[key] = list(self.pieces(kind, shape, format))
        return self._layer[key]

    def pieces(self, kind: str, shape: tuple[int, ...], format: BlockFormat) -> Iterator[NDArray[np.uint8]]:
        """Yield the rows of tensor `kind` in order, packed: uint8 [some rows, row bytes]; a vector is one row."""
        columns = shape[-1]
        rows = int(np.prod(shape[:-1]))
        step = max(1, _PIECE // columns)
        waiting: deque[Future[NDArray[np.uint8]]] = deque()
        for number, first in enumerate(range(0, rows, step)):
            waiting.append(self._pool.submit(self._piece, kind, number, (min(step, rows - first), columns), format))
            if len(waiting) > self._workers + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _piece(self, kind: str, number: int, shape: tuple[int, int], format: BlockFormat) -> NDArray[np.uint8]:
        """Make piece `number`; its numbers depend on seed, kind and number only, not on the thread."""
        mean, spread = (1.0, 0.05) if kind.endswith("_norm") else (0.0, 0.02)
        rng = np.random.default_rng((self._seed, zlib.crc32(kind.encode()), number))
        values = rng.standard_normal(shape, dtype=np.float32)
        values *= np.float32(spread)
        values += np.float32(mean)
        bits = values.view(np.uint32)
        bits += 0x8000  # to the nearest bfloat16; a tie goes up, which random weights do not mind
        bits &= 0xFFFF0000
        return format.quantize(values)
