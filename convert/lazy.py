"""Tensors of the output as recipes.  Enters: tensors of a checkpoint; leaves: rows of what is made of them, a piece at
a time.

Conversion turns, cuts, joins and stacks tensors that are larger than memory should be.  A `Lazy` knows its shape and
which stored tensors it is made of, and computes rows when they are asked for: memory stays near one piece, or near one
matrix where it is transposed.  Rows of a tensor with more than two dimensions count through all but the last.

Where the checkpoint is quantized already, whole rows that are only moved may go into a GGUF format as they are.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import numpy as np

from ..quant.formats import BlockFormat
from . import low_rank
from .checkpoint import Checkpoint
from .low_rank import LowRank

_GAP = 32
"""Rows between two wanted ones that are read along rather than skipped."""
_BEHIND = 1 << 24
"""Elements that threads may still be at before the one that reads farthest ahead."""


class Lazy(ABC):
    """A tensor that is computed when it is read.

    shape    rows first
    sources  names of the stored tensors that it is made of, none when config.json alone decides it
    """

    def __init__(self, shape: Sequence[int], sources: Sequence[str]):
        self.shape, self.sources = tuple(int(size) for size in shape), tuple(sources)

    @abstractmethod
    def rows(self, begin: int, end: int) -> np.ndarray:
        """Return rows [begin, end) as float32 [end - begin, n_cols], contiguous; a vector is one row."""

    def change(self, changes: Mapping[str, LowRank]) -> LowRank | None:
        """Return what `changes` of stored tensors, by name, become here; None where there are none.

        Raises ValueError where that is no difference of low rank, or not known to be one.
        """
        if any(name in changes for name in self.sources):
            raise ValueError("the converter reshapes it")
        return None

    def held_by(self, nearly: bool = False) -> tuple[BlockFormat, ...]:
        """Return the block formats that hold every value exactly, the smallest first; known of quantized sources.

        nearly   those that hold the codes, beside scales rounded to float16
        """
        return ()

    def packed(self, format: BlockFormat, begin: int, end: int) -> np.ndarray:
        """Return rows [begin, end) in one of the formats of `held_by`, uint8 [end - begin, row_bytes]."""
        raise ValueError(f"{format.name} does not hold {self.sources}")

    def release(self) -> None:  # noqa: B027  (most hold nothing)
        """Give back what reading kept in memory."""

    @property
    def n_rows(self) -> int:
        """All rows: the product of all dimensions but the last."""
        return math.prod(self.shape[:-1])

    def ordered(self, order: np.ndarray) -> Lazy:
        """Return the tensor whose row i (element i, of a vector) is this one's row order[i]; order: int64 [n]."""
        return _Ordered(self, order)

    def transposed(self) -> Lazy:
        """Return the tensor with its last two dimensions exchanged; reading it holds one matrix."""
        return _Transposed(self)

    def plus(self, constant: float) -> Lazy:
        """Return the tensor with `constant` added to each element, in float32."""
        return _Plus(self, constant)

    def reshaped(self, *shape: int) -> Lazy:
        """Return the same elements in another shape."""
        return _Reshaped(self, shape)


class Stored(Lazy):
    """A tensor as the checkpoint has it; a scalar becomes a vector of one element."""

    def __init__(self, checkpoint: Checkpoint, name: str):
        super().__init__(checkpoint.tensors[name].shape or (1,), (name,))
        self._checkpoint = checkpoint

    def rows(self, begin: int, end: int) -> np.ndarray:
        return self._checkpoint.rows(self.sources[0], begin, end)

    def change(self, changes: Mapping[str, LowRank]) -> LowRank | None:
        return changes.get(self.sources[0])

    def held_by(self, nearly: bool = False) -> tuple[BlockFormat, ...]:
        found = self._checkpoint.quantized(self.sources[0])
        return found.held_by(nearly) if found is not None else ()

    def packed(self, format: BlockFormat, begin: int, end: int) -> np.ndarray:
        found = self._checkpoint.quantized(self.sources[0])
        return found.packed(format, begin, end) if found is not None else super().packed(format, begin, end)

    def release(self) -> None:
        self._checkpoint.release(self.sources[0])


class Given(Lazy):
    """Values that the checkpoint does not have: float32 of any shape."""

    def __init__(self, values: np.ndarray):
        super().__init__(values.shape, ())
        self._values = values.astype(np.float32, copy=False).reshape(-1, values.shape[-1])

    def rows(self, begin: int, end: int) -> np.ndarray:
        return self._values[begin:end]


def joined(parts: Sequence[Lazy]) -> Lazy:
    """Return the parts one below the other (vectors: one behind the other)."""
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return _Stacked(parts, shape) if len(shape) > 1 else _Chained(shape, parts)


def stacked(parts: Sequence[Lazy]) -> Lazy:
    """Return tensors of one shape as the slices of a new first dimension: experts, one after the other."""
    return _Stacked(parts, (len(parts), *parts[0].shape))


class _Made(Lazy):
    """A tensor made of others."""

    def __init__(self, shape: Sequence[int], parts: Sequence[Lazy]):
        super().__init__(shape, list(dict.fromkeys(name for part in parts for name in part.sources)))
        self._parts = tuple(parts)

    def release(self) -> None:
        for part in self._parts:
            part.release()


class _Ordered(_Made):
    def __init__(self, part: Lazy, order: np.ndarray):
        super().__init__((len(order), *part.shape[1:][-1:]), [part])
        self._order, self._is_vector = order, len(part.shape) == 1

    def rows(self, begin: int, end: int) -> np.ndarray:
        part = self._parts[0]
        if self._is_vector:
            return part.rows(0, 1)[:, self._order]
        return self._gathered(part.rows, begin, end)

    def held_by(self, nearly: bool = False) -> tuple[BlockFormat, ...]:
        return () if self._is_vector else self._parts[0].held_by(nearly)

    def packed(self, format: BlockFormat, begin: int, end: int) -> np.ndarray:
        return self._gathered(lambda first, last: self._parts[0].packed(format, first, last), begin, end)

    def _gathered(self, read: Callable[[int, int], np.ndarray], begin: int, end: int) -> np.ndarray:
        wanted = self._order[begin:end]
        where = np.argsort(wanted, kind="stable")
        found = []
        for run in np.split(where, np.flatnonzero(np.diff(wanted[where]) > _GAP) + 1):
            first, last = int(wanted[run[0]]), int(wanted[run[-1]])
            found.append(read(first, last + 1)[wanted[run] - first])
        out = np.empty((end - begin, found[0].shape[1]), found[0].dtype)
        out[where] = np.concatenate(found)
        return out

    def change(self, changes: Mapping[str, LowRank]) -> LowRank | None:
        change = self._parts[0].change(changes)
        return change and change.ordered(self._order)


class _Transposed(_Made):
    """Holds the matrix that is read, transposed, and the one before it: pieces are read by several threads."""

    def __init__(self, part: Lazy):
        super().__init__((*part.shape[:-2], part.shape[-1], part.shape[-2]), [part])
        self._lock = threading.Lock()
        self._held: dict[int, np.ndarray] = {}

    def rows(self, begin: int, end: int) -> np.ndarray:
        height = self.shape[-2]
        found = []
        for i in range(begin // height, (end - 1) // height + 1):
            found.append(self._matrix(i)[max(begin - i * height, 0) : end - i * height])
        return found[0] if len(found) == 1 else np.concatenate(found)

    def change(self, changes: Mapping[str, LowRank]) -> LowRank | None:
        change = self._parts[0].change(changes)
        return change and change.transposed

    def _matrix(self, i: int) -> np.ndarray:
        """Return matrix number i, float32 [rows, columns] of this tensor."""
        with self._lock:
            if i not in self._held:
                for old in sorted(self._held)[:-1]:
                    del self._held[old]
                rows = self.shape[-1]
                self._held[i] = np.ascontiguousarray(self._parts[0].rows(i * rows, (i + 1) * rows).T)
            return self._held[i]

    def release(self) -> None:
        self._held.clear()
        super().release()


class _Plus(_Made):
    def __init__(self, part: Lazy, constant: float):
        super().__init__(part.shape, [part])
        self._constant = np.float32(constant)

    def rows(self, begin: int, end: int) -> np.ndarray:
        return self._parts[0].rows(begin, end) + self._constant

    def change(self, changes: Mapping[str, LowRank]) -> LowRank | None:
        return self._parts[0].change(changes)


class _Reshaped(_Made):
    def __init__(self, part: Lazy, shape: Sequence[int]):
        if math.prod(shape) != math.prod(part.shape):
            raise ValueError(f"{list(part.shape)} does not have the elements of {list(shape)}")
        super().__init__(shape, [part])

    def rows(self, begin: int, end: int) -> np.ndarray:
        part, columns = self._parts[0], self.shape[-1]
        there = part.shape[-1]
        if there == columns:
            return part.rows(begin, end)
        first, last = begin * columns // there, -(-end * columns // there)
        flat = part.rows(first, last).reshape(-1)
        return flat[begin * columns - first * there :][: (end - begin) * columns].reshape(-1, columns)

    def held_by(self, nearly: bool = False) -> tuple[BlockFormat, ...]:
        return self._parts[0].held_by(nearly) if self._parts[0].shape[-1] == self.shape[-1] else ()

    def packed(self, format: BlockFormat, begin: int, end: int) -> np.ndarray:
        return self._parts[0].packed(format, begin, end)


class _Stacked(_Made):
    def __init__(self, parts: Sequence[Lazy], shape: Sequence[int]):
        super().__init__(shape, parts)
        self._ends = list(accumulate(part.n_rows for part in parts))
        self._read = 0  # parts before this one are given back

    def rows(self, begin: int, end: int) -> np.ndarray:
        return self._gathered(lambda part, first, last: part.rows(first, last), begin, end)

    def held_by(self, nearly: bool = False) -> tuple[BlockFormat, ...]:
        first, *others = (part.held_by(nearly) for part in self._parts)
        return tuple(format for format in first if all(format in other for other in others))

    def packed(self, format: BlockFormat, begin: int, end: int) -> np.ndarray:
        return self._gathered(lambda part, first, last: part.packed(format, first, last), begin, end)

    def _gathered(self, read: Callable[[Lazy, int, int], np.ndarray], begin: int, end: int) -> np.ndarray:
        found, start = [], 0
        for part, stop in zip(self._parts, self._ends, strict=True):
            if begin < stop and end > start:
                found.append(read(part, max(begin - start, 0), min(end, stop) - start))
            start = stop
        self._release_before(begin - _BEHIND // self.shape[-1])
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _release_before(self, row: int) -> None:
        """Give back the parts that end before a row: experts are many, and all of a layer are one tensor."""
        while self._ends[self._read] < row:
            self._parts[self._read].release()
            self._read += 1

    def release(self) -> None:
        self._read = 0
        super().release()

    def change(self, changes: Mapping[str, LowRank]) -> LowRank | None:
        if len(self.shape) > 2:
            if any(name in changes for name in self.sources):
                raise ValueError("it is one of a layer's experts")
            return None
        return low_rank.joined([(part.n_rows, part.change(changes)) for part in self._parts])


class _Chained(_Made):
    def rows(self, begin: int, end: int) -> np.ndarray:
        return np.concatenate([part.rows(0, 1) for part in self._parts], axis=1)
