"""Arrays of strings in GGUF metadata.  Enters: the file's leading bytes; leaves: strings, decoded when asked for.

A vocabulary holds hundreds of thousands of strings, each behind its own u64 length, so the place of one is known only
after the one before.  `index_strings` follows that chain with NumPy, a window at a time, and keeps 4 bytes a string.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Protocol, overload

import numpy as np

from ..errors import ModelFileError

_U64 = struct.Struct("<Q")
_WINDOW = 1 << 16
_WORTHWHILE = 64
_LONGEST_WALK = 4096


class Source(Protocol):
    """The growing private copy of a file's front that the header parser reads."""

    data: bytearray
    pos: int
    limit: int

    def load(self, end: int, place: str) -> None:
        """Make data[:end] available, or raise ModelFileError naming `place`."""


def index_strings(source: Source, count: int, place: str) -> np.ndarray:
    """Return where each of the `count` strings at `source.pos` ends, uint32 [count], and move `pos` behind the last.

    The caller has checked that 8 * count bytes are left.  A string that passes the end of the file (or of the metadata
    limit) raises ModelFileError naming its index.  String i is data[ends[i-1] + 8 : ends[i]].
    """
    ends = np.empty(count, np.uint32)
    done, walk = 0, _WORTHWHILE
    while done < count:
        gained = _follow(source, ends, done, place) if count - done > _WORTHWHILE else 0
        done += gained
        if gained >= _WORTHWHILE:
            walk = _WORTHWHILE
            continue
        # Long strings, or some that look like lengths: walk a while, longer each time so that no file makes this slow.
        stop = min(done + walk, count)
        _walk(source, ends, done, stop, place)
        done, walk = stop, min(2 * walk, _LONGEST_WALK)
    return ends


def _walk(source: Source, ends: np.ndarray, done: int, stop: int, place: str) -> None:
    """Index strings done..stop-1 one by one."""
    data, pos = source.data, source.pos
    for i in range(done, stop):
        if pos + 8 > len(data):
            source.load(pos + 8, f"{place} element {i}")
        length = _U64.unpack_from(data, pos)[0]
        if pos + 8 + length > source.limit:
            source.pos = pos
            source.load(pos + 8 + length, f"{place} element {i}")
        pos += 8 + length
        ends[i] = pos
    source.pos = pos


def _follow(source: Source, ends: np.ndarray, done: int, place: str) -> int:
    """Index as many strings from number `done` on as one look at a window of the file tells; return how many.

    Wherever seven zero bytes follow one, a length below 256 may stand.  As long as each such place is just behind the
    string that the one before announces, the places are the chain itself.
    """
    source.load(min(source.pos + _WINDOW, source.limit), place)
    with memoryview(source.data) as view:
        window = bytes(view[source.pos : source.pos + _WINDOW])
    if window[:8] == bytes(8):
        numbers = np.frombuffer(window, "<u8", len(window) // 8)
        used = np.flatnonzero(numbers)
        run = min(int(used[0]) if used.size else numbers.size, ends.size - done)
        ends[done : done + run] = source.pos + 8 * np.arange(1, run + 1)
        source.pos += 8 * run
        return run
    zero = np.frombuffer(window, np.uint8) == 0
    two = zero[:-1] & zero[1:]
    four = two[:-2] & two[2:]
    starts = np.flatnonzero(four[1:-3] & four[4:])  # seven zero bytes behind
    if starts.size == 0 or starts[0] != 0:
        return 0
    behind = starts + 8 + np.frombuffer(window, np.uint8)[starts]
    breaks = np.flatnonzero(starts[1:] != behind[:-1])
    run = min(int(breaks[0]) + 1 if breaks.size else starts.size, ends.size - done)
    if source.pos + int(behind[run - 1]) > source.limit:
        run -= 1  # the walk names the string that passes the end
    if run:
        ends[done : done + run] = source.pos + behind[:run]
        source.pos += int(behind[run - 1])
    return run


class StringArray(Sequence[str]):
    """Strings of a metadata array, decoded when they are read.

    Text that is not UTF-8 raises ModelFileError from `[]`, iteration and `to_list`; `raw` returns the bytes as is.
    """

    def __init__(self, data: bytearray, start: int, ends: np.ndarray, path: object, key: str):
        """`data` holds the file's front, the first length is at `start`, `ends` is from `index_strings`."""
        self._data, self._start, self._ends, self._path, self._key = data, start, ends, path, key

    def __len__(self) -> int:
        return int(self._ends.size)

    def raw(self, i: int) -> bytes:
        """Return the bytes of string `i`."""
        start, end = self._span(i)
        return bytes(self._data[start:end])

    @overload
    def __getitem__(self, i: int) -> str: ...

    @overload
    def __getitem__(self, i: slice) -> list[str]: ...

    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        start, end = self._span(i)
        try:
            return self._data[start:end].decode()
        except UnicodeDecodeError as error:
            raise ModelFileError(
                str(self._path),
                f"is not UTF-8: byte {error.start} of {end - start} is {error.object[error.start]:#04x}",
                place=f"key {self._key!r} element {i}",
                offset=start,
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_list())

    def to_list(self) -> list[str]:
        """Return all strings; many times faster than one by one."""
        if not len(self):
            return []
        # Of each length only the last byte stays, which is 0: the text is decoded and split at once.
        with memoryview(self._data) as view:
            region = np.frombuffer(view[self._start : int(self._ends[-1])], np.uint8).copy()
        keep = np.ones(region.size, bool)
        starts = np.concatenate([[0], self._ends[:-1].astype(np.int64) - self._start])
        for k in range(7):
            keep[starts + k] = False
        region = region[keep]
        if np.count_nonzero(region == 0) == len(self):
            try:
                return region.tobytes().decode().split("\0")[1:]
            except UnicodeDecodeError:
                pass
        return self[:]

    def _span(self, i: int) -> tuple[int, int]:
        """Where string `i` lies in the data."""
        n = len(self)
        if not -n <= i < n:
            raise IndexError(f"string {i} of {n}")
        i %= n
        return (int(self._ends[i - 1]) if i else self._start) + 8, int(self._ends[i])
