"""llama-perplexity's file of a reference's predictions.  Enters: logits, a few rows at a time; leaves: ln p.

"_logits_", int32 n_ctx, n_vocab, n_chunks, int32 tokens [n_chunks, n_ctx]; then for each chunk a row for each scored
position: float32 scale, float32 least ln p, uint16 codes [n_vocab], one more where n_vocab is odd; all little endian.
ln p = scale * code + least; what is more than 16 below a row's largest counts as 16 below.  (llama.cpp,
tools/perplexity/perplexity.cpp, whose `--kl-divergence-base` writes this, and reads it with `--kl-divergence`.)
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelFileError, UsageError
from ..quant.whole_file import WholeFile
from .divergence import log_sums
from .report import size_text

MAGIC = b"_logits_"
WAY_OUT = "give another name"  # what to do when the file is there
_HEADER = struct.Struct("<8s3i")
_HEAD = 4  # uint16 places of the two float32 before a row's codes
_SPAN = 16  # natural logs from a row's largest log-probability down to code 0
_LAST = 65535
_TOLERANCE = 1e-3  # of a log-probability: float32 rounding, and more
_MAX = {"n_ctx": 1 << 24, "n_vocab": 1 << 20, "n_chunks": (1 << 31) - 1}
MIN_CONTEXT = 3  # the least that has a scored position


def first_scored(n_ctx: int) -> int:
    """Return the first position of a chunk that is scored: the second half has something before it to go by."""
    return n_ctx // 2


def scored_rows(n_ctx: int) -> int:
    """Return how many positions of a chunk are scored; the last has no token to predict."""
    return n_ctx - 1 - first_scored(n_ctx)


def _row_places(n_vocab: int) -> int:
    return _HEAD + n_vocab + n_vocab % 2


def file_bytes(n_chunks: int, n_ctx: int, n_vocab: int) -> int:
    """Return the size of a file."""
    return _HEADER.size + 4 * n_chunks * n_ctx + 2 * n_chunks * scored_rows(n_ctx) * _row_places(n_vocab)


def encode(logits: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the rows of a file, uint16 [n, places], for float32 [n, n_vocab]."""
    n_rows, n_vocab = logits.shape
    largest = logits.max(axis=1, keepdims=True)
    low = np.maximum(logits.min(axis=1, keepdims=True), largest - np.float32(_SPAN))
    log_sum = (log_sums(logits)[:, None] - largest).astype(np.float32)
    scale = (largest - low) / np.float32(_LAST)
    rows = np.zeros((n_rows, _row_places(n_vocab)), "<u2")
    rows[:, :_HEAD] = np.concatenate([scale, low - largest - log_sum], axis=1).astype("<f4").view("<u2")
    above = np.maximum(logits, low) - low
    rows[:, _HEAD : _HEAD + n_vocab] = np.rint(np.divide(above, scale, where=scale > 0, out=above))
    return rows


class LogitsWriter:
    """Writes one file; use it in a `with` statement, whose end gives the file its name.

    Nothing stays behind when the `with` ends by an exception.
    """

    def __init__(self, path: str | os.PathLike[str], tokens: NDArray[np.int32], n_vocab: int):
        """Start the file `path` for the chunks `tokens`, int32 [n_chunks, n_ctx].

        Raises OutputExistsError when it is there, UsageError when it cannot be written or the disk has not the room.
        """
        self.path = Path(path)
        n_chunks, n_ctx = tokens.shape
        self._missing = n_chunks * scored_rows(n_ctx)  # rows
        self._file = WholeFile(self.path, WAY_OUT)
        try:
            free, size = shutil.disk_usage(self.path.parent).free, file_bytes(n_chunks, n_ctx, n_vocab)
            if size > free:
                wanted = f"{size_text(size)} of logits do not fit the disk, which has {size_text(free)}"
                raise UsageError(f"{self.path}: {wanted}; fewer chunks take less")
            self._file.write(_HEADER.pack(MAGIC, n_ctx, n_vocab, n_chunks) + tokens.astype("<i4").tobytes())
        except BaseException:
            self._file.discard()
            raise

    def append(self, logits: NDArray[np.float32]) -> None:
        """Write the next rows, float32 [n, n_vocab]: of chunk after chunk the scored positions in order."""
        self._file.write(encode(logits).data)
        self._missing -= len(logits)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.discard()

    def _finish(self) -> None:
        if self._missing:
            raise ValueError(f"{self._missing} rows are still to be written")
        self._file.flush()
        self._file.publish()


def is_logits_file(path: str | os.PathLike[str]) -> bool:
    """Return whether the file begins as one of these; UsageError when it cannot be read."""
    with _reading(path), Path(path).open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


class LogitsReader:
    """An open file, its header and size checked; use it in a `with` statement.

    tokens  int32 [n_chunks, n_ctx]
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Open `path`; UsageError when it cannot be read, ModelFileError when it is not what it says."""
        self.path = Path(path)
        with _reading(path):
            self._file = self.path.open("rb")
        try:
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    def _read_header(self) -> None:
        magic, self.n_ctx, self.n_vocab, self.n_chunks = _HEADER.unpack(self._read(0, _HEADER.size))
        if magic != MAGIC:
            raise ModelFileError(self.path, f"begins with {magic!r}; a file of logits begins with {MAGIC!r}")
        for i, (name, least) in enumerate((("n_ctx", MIN_CONTEXT), ("n_vocab", 1), ("n_chunks", 1))):
            found = getattr(self, name)
            if not least <= found <= _MAX[name]:
                allowed = f"allowed are {least} to {_MAX[name]}"
                raise ModelFileError(self.path, f"is {found}; {allowed}", place=name, offset=len(MAGIC) + 4 * i)
        size, wanted = os.fstat(self._file.fileno()).st_size, file_bytes(self.n_chunks, self.n_ctx, self.n_vocab)
        if size != wanted:
            told = f"{self.n_chunks} chunks of {self.n_ctx} tokens and {self.n_vocab} words"
            raise ModelFileError(self.path, f"has {size} bytes; {told} take {wanted}")
        raw = self._read(_HEADER.size, 4 * self.n_chunks * self.n_ctx)
        self.tokens: NDArray[np.int32] = np.frombuffer(raw, "<i4").reshape(self.n_chunks, self.n_ctx)
        bad = np.flatnonzero((self.tokens < 0) | (self.tokens >= self.n_vocab))
        if bad.size:
            message = f"is {self.tokens.flat[bad[0]]}; allowed are 0 to {self.n_vocab - 1}"
            raise ModelFileError(self.path, message, place=f"token {bad[0]}", offset=_HEADER.size + 4 * int(bad[0]))

    def log_probabilities(self, chunk: int, rows: slice) -> NDArray[np.float32]:
        """Return float32 [n, n_vocab] of scored positions `rows` (start and stop given) of a chunk.

        Raises ModelFileError for a row that no logits give.
        """
        n_rows, row_bytes = rows.stop - rows.start, 2 * _row_places(self.n_vocab)
        start = _HEADER.size + self.tokens.nbytes + (chunk * scored_rows(self.n_ctx) + rows.start) * row_bytes
        found = np.frombuffer(self._read(start, n_rows * row_bytes), "<u2").reshape(n_rows, -1)
        scale, least = np.ascontiguousarray(found[:, :_HEAD]).view("<f4").T
        self._check(start, row_bytes, scale, least)
        return found[:, _HEAD : _HEAD + self.n_vocab] * scale[:, None] + least[:, None]

    def _check(self, start: int, row_bytes: int, scale: NDArray[np.float32], least: NDArray[np.float32]) -> None:
        """Raise ModelFileError unless 0 <= span <= 16 and the largest probability is between 1/n_vocab and 1."""
        span = scale.astype(np.float64) * _LAST
        largest = span + least
        lowest = -math.log(self.n_vocab)
        good = (scale >= 0) & (span <= _SPAN + _TOLERANCE) & (largest >= lowest - _TOLERANCE) & (largest <= _TOLERANCE)
        bad = np.flatnonzero(~good)
        if bad.size:
            i = int(bad[0])
            message = (
                f"log-probabilities from {least[i]:g} to {largest[i]:g}; the largest can be {lowest:g} to 0, "
                f"and the least {_SPAN} below"
            )
            raise ModelFileError(self.path, message, place="row", offset=start + i * row_bytes)

    def _read(self, start: int, n_bytes: int) -> bytes:
        with _reading(self.path):
            self._file.seek(start)
            found = self._file.read(n_bytes)
        if len(found) < n_bytes:
            raise ModelFileError(self.path, f"ends at byte {start + len(found)}; {n_bytes} are needed from {start} on")
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


@contextlib.contextmanager
def _reading(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
