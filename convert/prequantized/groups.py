"""Whole numbers that share scales in groups of columns.  Enters: codes, scales and zeros; leaves: rows, or GGUF blocks.

w[r, c] = scale[r, g] * (code[r, c] - zero[r, g]), g the group of column c.  Where a group is made of whole blocks of 32
columns and its scale has a float16, a block of GGUF holds the same values:

    Q4_0   d = scale, q = v + 8             v = code - zero from -8 to 7
    Q4_1   d = scale, q = code, m = -scale * zero    codes from 0 to 15, and m has a float16
    Q5_0   d = scale, q = v + 16            v from -16 to 15
    Q8_0   d = scale, q = v                 v from -128 to 127

A scale that has no float16 but one within 2^-11 of itself makes blocks that are nearly the same: codes stay, and the
values of a group all become larger or smaller by that part.  Rounding them anew costs ten times as much in 8 bits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...quant.formats import FORMATS, BlockFormat
from .base import Quantized, Store

_BLOCK = 32
# Name of a format, the lowest and the highest v.
_SYMMETRIC = (("q4_0", -8, 7), ("q5_0", -16, 15), ("q8_0", -128, 127))


@dataclass(frozen=True)
class Scales:
    """Of one matrix.

    scale   float32 [rows, groups]
    zero    int32 [rows, groups]
    group   int64 [columns]: the group of each column
    lowest, highest   the codes that there can be
    """

    scale: np.ndarray
    zero: np.ndarray
    group: np.ndarray
    lowest: int
    highest: int

    def held_by(self, nearly: bool) -> tuple[BlockFormat, ...]:
        """Return the formats whose blocks hold any such codes with these scales (or near ones), the smallest first."""
        runs = self.group.reshape(-1, _BLOCK) if self.group.size % _BLOCK == 0 else None
        if runs is None or (runs != runs[:, :1]).any() or not _has_float16(self.scale, nearly):
            return ()
        low, high = self.lowest - int(self.zero.max()), self.highest - int(self.zero.min())
        found = [name for name, lowest, highest in _SYMMETRIC if lowest <= low and high <= highest]
        if not nearly and self.lowest >= 0 and self.highest <= 15 and _has_float16(self.scale * self.zero):
            found.append("q4_1")
        return tuple(sorted((FORMATS[name] for name in found), key=lambda format: format.block_bytes))


class Groups(Quantized):
    """A matrix of codes with scales of groups.

    read_scales  () -> Scales
    read_packed  () -> the codes of the whole matrix as they are stored, kept until `release`
    unpack       (these, begin, end) -> the codes of rows [begin, end), uint8 or int8 [end - begin, columns]
    """

    def __init__(
        self,
        store: Store,
        scheme: str,
        shape: Sequence[int],
        sources: Sequence[str],
        read_scales: Callable[[], Scales],
        read_packed: Callable[[], np.ndarray],
        unpack: Callable[[np.ndarray, int, int], np.ndarray],
    ):
        super().__init__(store, shape, sources)
        self.scheme = scheme
        self._read_scales, self._read_packed, self._unpack = read_scales, read_packed, unpack
        self._lock = threading.Lock()
        self._held: tuple[Scales, np.ndarray] | None = None
        self._formats: dict[bool, tuple[BlockFormat, ...]] = {}

    def held_by(self, nearly: bool = False) -> tuple[BlockFormat, ...]:
        """Return the block formats that hold the codes, the smallest first; reads the scales, which have to have
        float16s, or `nearly` ones."""
        if nearly not in self._formats:
            self._formats[nearly] = self._read_scales().held_by(nearly)
        return self._formats[nearly]

    def rows(self, begin: int, end: int) -> np.ndarray:
        """Return rows [begin, end) as float32 [end - begin, n_cols]."""
        scales, values = self._values(begin, end)
        step: np.ndarray = scales.scale[begin:end, scales.group]
        return step * values.astype(np.float32)

    def packed(self, format: BlockFormat, begin: int, end: int) -> np.ndarray:
        """Return rows [begin, end) in one of the formats of `held_by`, uint8 [end - begin, row_bytes]."""
        scales, values = self._values(begin, end)
        groups = scales.group[::_BLOCK]
        step = scales.scale[begin:end, groups].reshape(-1, 1)
        numbers = [step]
        if format.name == "q4_1":
            zero = scales.zero[begin:end, groups].reshape(-1, 1)
            numbers.append(-step * zero.astype(np.float32))
            codes = values.reshape(-1, _BLOCK) + zero
        else:
            middle = {"q4_0": 8, "q5_0": 16, "q8_0": 0}[format.name]
            codes = values.reshape(-1, _BLOCK) + middle
        halves = np.hstack(numbers).astype("<f2").view(np.uint8)
        return np.hstack([halves, _pack(codes, format)]).reshape(end - begin, -1)

    def release(self) -> None:
        """Give back the codes."""
        self._held = None

    def _values(self, begin: int, end: int) -> tuple[Scales, np.ndarray]:
        """Return the scales of the matrix and code - zero of its rows [begin, end), int32 [end - begin, n_cols]."""
        with self._lock:
            if self._held is None:
                self._held = self._read_scales(), self._read_packed()
            scales, packed = self._held
        return scales, self._unpack(packed, begin, end) - scales.zero[begin:end, scales.group]


def _has_float16(values: np.ndarray, nearly: bool = False) -> bool:
    """Whether every one of float32 `values` is a finite float16, or `nearly`: within 2^-11 of itself."""
    with np.errstate(over="ignore", invalid="ignore"):
        lost = np.abs(values.astype(np.float16).astype(np.float32) - values)
        return bool((lost <= (np.abs(values) * 2.0**-11 if nearly else 0)).all())


def _pack(codes: np.ndarray, format: BlockFormat) -> np.ndarray:
    """int32 [n, 32] -> what follows the float16 numbers of a block (quant/formats/block32.py), uint8 [n, ...]."""
    if format.name == "q8_0":
        return codes.astype(np.int8).view(np.uint8)
    codes = codes.astype(np.uint8)
    low = (codes[:, :16] & 15) | (codes[:, 16:] << 4)
    return np.hstack([np.packbits(codes >> 4, axis=1, bitorder="little"), low]) if format.name == "q5_0" else low


def even_groups(columns: int, groups: int, size: int) -> np.ndarray:
    """Return the group of each column where `groups` groups of `size` follow each other, int64 [columns]."""
    return np.minimum(np.arange(columns) // size, groups - 1)


def part(codes: np.ndarray, begin: int, end: int) -> np.ndarray:
    """Return rows [begin, end) of codes that are stored one by one, int8 [end - begin, columns]."""
    return codes[begin:end]
