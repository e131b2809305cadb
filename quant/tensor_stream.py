"""Tensors through their formats.  Enters: rows of float32; leaves: packed data in a GGUF file, and what rounding lost.

Each tensor goes through in pieces of a few megabytes, one piece a thread: read, rounded, compared with what was read,
written.  No tensor is ever in memory as a whole.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from ..errors import ModelFileError
from .formats import BlockFormat, TensorFormat, first_nonfinite
from .gguf_writer import GgufWriter
from .report import SCALES_ROUNDED, TensorPlan, TensorReport

PIECE = 1 << 20
"""Elements of one piece: 4 MB as float32, which stays in a core's cache."""


class Progress(Protocol):
    """Called after each piece with the elements done, those in all, and the tensor's name."""

    def __call__(self, done: int, total: int, name: str) -> None: ...


@dataclass(frozen=True)
class TensorSource:
    """A tensor that is to be written.

    shape    rows first
    format   what it is written in; one that is only read needs `packed`
    rows     (begin, end) -> float32 [end - begin, n_cols], the rows as they are before rounding; a vector is one row
    error    a message -> the error that says where the tensor was read
    release  called when it is written
    packed   (begin, end) -> uint8 [end - begin, row_bytes]: the rows in `format`, where the source has that already
    scheme, repacked   as in TensorPlan
    """

    name: str
    shape: tuple[int, ...]
    format: TensorFormat
    rows: Callable[[int, int], np.ndarray]
    error: Callable[[str], ModelFileError]
    release: Callable[[], None]
    packed: Callable[[int, int], np.ndarray] | None = None
    scheme: str = ""
    repacked: str = ""

    @property
    def plan(self) -> TensorPlan:
        """The tensor as it will be in the file."""
        nbytes = self.format.nbytes(self.shape)
        return TensorPlan(self.name, self.format.name, self.shape, nbytes, scheme=self.scheme, repacked=self.repacked)


_Result = tuple[np.ndarray, float, float, int]
"""Packed data uint8 of one piece, its squares lost and there (see _Sums), and its elements."""


class _Sums:
    """Running sums of one tensor: squares of what was lost, and of what there was."""

    def __init__(self) -> None:
        self.lost = self.there = 0.0

    def relative_error(self) -> float:
        """Return the relative error so far (TensorReport says what it is)."""
        if self.lost == 0:
            return 0.0
        return math.sqrt(self.lost / self.there) if self.there else math.inf


def write_tensors(
    writer: GgufWriter, tensors: Sequence[TensorSource], progress: Progress | None = None
) -> tuple[TensorReport, ...]:
    """Declare and write the tensors and return what became of each; the metadata was added before.

    Raises ModelFileError, naming the tensor, for NaN, infinity, and values that a format cannot hold.
    """
    for tensor in tensors:
        writer.declare(tensor.name, tensor.shape, tensor.format)
    total, done = sum(math.prod(tensor.shape) for tensor in tensors), 0
    reports = []
    with ThreadPoolExecutor(_threads()) as pool:
        for tensor in tensors:
            sums = _Sums()
            report_from = partial(progress, total=total, name=tensor.name) if progress is not None else None
            writer.write(tensor.name, _collect(_in_order(pool, _jobs(tensor)), sums, done, report_from))
            done += math.prod(tensor.shape)
            tensor.release()
            reports.append(TensorReport(**vars(tensor.plan), relative_error=sums.relative_error()))
    return tuple(reports)


def _collect(
    results: Iterator[_Result], sums: _Sums, done: int, report: Callable[[int], None] | None
) -> Iterator[np.ndarray]:
    """Yield the packed data of each result, adding up the sums and reporting elements done."""
    for packed, lost, there, elements in results:
        sums.lost += lost
        sums.there += there
        done += elements
        if report is not None:
            report(done)
        yield packed


def _jobs(tensor: TensorSource) -> Iterator[Callable[[], _Result]]:
    """Yield one job for each piece of the tensor, in order."""
    columns = tensor.shape[-1]
    count = math.prod(tensor.shape) // columns
    step = max(1, PIECE // columns)
    for begin in range(0, count, step):
        yield partial(_copy if tensor.packed else _piece, tensor, begin, min(begin + step, count))


def _copy(tensor: TensorSource, begin: int, end: int) -> _Result:
    assert tensor.packed is not None
    packed = tensor.packed(begin, end)
    where = tensor.format.first_nonfinite(packed)
    if where is not None:
        raise tensor.error(f"has a {tensor.format.name} block that is not finite: number {where} from row {begin} on")
    sums = _lost(tensor, packed, tensor.rows(begin, end)) if tensor.repacked == SCALES_ROUNDED else (0.0, 1.0)
    return packed, *sums, (end - begin) * tensor.shape[-1]


def _piece(tensor: TensorSource, begin: int, end: int) -> _Result:
    rows, format = tensor.rows(begin, end), tensor.format
    where = first_nonfinite(rows)
    if where is not None:
        index = [int(i) for i in np.unravel_index(begin * rows.shape[1] + where, tensor.shape)]
        raise tensor.error(f"is {rows.reshape(-1)[where]} at {index} (of {list(tensor.shape)} as written)")
    if format.name == "f32":
        return rows.view(np.uint8), 0.0, 1.0, rows.size
    assert isinstance(format, BlockFormat)
    packed = format.quantize(rows)
    sum_lost, sum_there = _lost(tensor, packed, rows)
    if not math.isfinite(sum_lost):
        largest = float(np.abs(rows).max())
        raise tensor.error(f"holds {largest:g}, which is too large for {format.name}; f32 and bf16 hold it")
    return packed, sum_lost, sum_there, rows.size


def _lost(tensor: TensorSource, packed: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    """Return the squares of what `packed` lost of `rows`, and of these."""
    lost = tensor.format.dequantize(packed)
    lost -= rows
    return _square_sum(lost), _square_sum(rows)


def _square_sum(values: np.ndarray) -> float:
    flat = values.reshape(-1)
    return float(np.dot(flat, flat))


def _in_order(pool: ThreadPoolExecutor, jobs: Iterator[Callable[[], _Result]]) -> Iterator[_Result]:
    """Run the jobs on the pool and yield their results in order, with only a few of them waiting at any time."""
    waiting: deque[Future[_Result]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) > _threads() + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _threads() -> int:
    """Return how many cores are used: those of this process, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)
