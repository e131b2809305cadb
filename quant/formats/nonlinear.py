"""IQ4_NL, IQ4_XS and MXFP4: a code of 4 bits stands for one of 16 uneven values.  Enters: float32; leaves: blocks.

Layouts (source: ggml's block structs; little-endian; d is float16; byte j of `low` holds element j of 32 in its low
and element j + 16 in its high four bits; the values are in `codebooks.py`):

    IQ4_NL  d   low[16]                          w = d * IQ4[q]              32 elements
    IQ4_XS  d   high u16   s[4]   low[8][16]     w = d*(s - 32) * IQ4[q]     256, s for each 32
    MXFP4   e   low[16]                          w = 2^(e - 128) * E2M1[q]   32 elements

Of the eight s of IQ4_XS, the low four bits lie in order in s[4], the upper two in order in `high`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import jit
from . import fit_loops, fits, unpack_loops
from .base import BlockFormat
from .block256 import Symmetric
from .codebooks import E2M1, E2M1_MIDDLES, IQ4, IQ4_MIDDLES
from .fitted import Fitted, fold, halve, in_steps, raised, times, unfold

_TRIES = np.array([127, *range(-134, -119)], np.float32)
"""The values that the largest element is laid on: IQ4's lowest and seven to each side, after its negative."""

_IQ4_CODES = np.searchsorted(2 * IQ4_MIDDLES, np.array([*range(256), *range(-256, 0)]), side="right").astype(np.uint8)
"""Code by the whole part of twice the value, negative ones counted from the end."""


@dataclass(frozen=True)
class IQ4_NL(Fitted):
    """d, low[16]."""

    sub_size, n_found, halves = 32, 1, slice(0, 2)
    fit, fit_loop, tries = fits.codebook, fit_loops.codebook, _TRIES

    def store(self, blocks: np.ndarray, found: np.ndarray, exponent: np.ndarray) -> np.ndarray:
        """d is the scale that was found."""
        step = raised(found[:, :, 0], exponent)
        return np.hstack([halve(step)[0], fold(_nearest_iq4(in_steps(blocks, step)[:, 0]), 2, 16)])

    def dequantize_blocks(self, packed: np.ndarray) -> np.ndarray:
        """uint8 [n, 18] -> float32 [n, 32]."""
        return times(self._scales(packed), IQ4[unfold(packed[:, 2:], 2, 16)])

    def dequantize_compiled(self, packed: np.ndarray) -> np.ndarray:
        """As `dequantize_blocks`."""
        return _look_up(packed[:, 2:], self._scales(packed), IQ4)


@dataclass(frozen=True)
class IQ4_XS(Symmetric):
    """d, high, s[4], low[8][16]."""

    sub_size, levels, halves, rounds_as_stored = 32, 32, slice(0, 2), False
    fit, fit_loop, tries = fits.codebook, fit_loops.codebook, _TRIES

    def nearest(self, steps: np.ndarray) -> np.ndarray:
        """float32 of any shape -> uint8 of the same shape."""
        return _nearest_iq4(steps)

    def pack(self, halves: np.ndarray, s: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """uint8 [n, 2], int8 [n, 8], uint8 [n, 256] -> uint8 [n, 136]."""
        s = (s + 32).view(np.uint8)
        return np.hstack([halves, fold(s >> 4, 4, 1), fold(s & 15, 2, 1), fold(codes, 2, 16)])

    def factors(self, packed: np.ndarray) -> np.ndarray:
        """uint8 [n, 136] -> s - 32, int8 [n, 8]."""
        s = unfold(packed[:, 4:8], 2, 1) | (unfold(packed[:, 2:4], 4, 1) << 4)
        return s.view(np.int8) - np.int8(32)

    def values(self, packed: np.ndarray) -> np.ndarray:
        """uint8 [n, 136] -> float32 [n, 256]."""
        return IQ4[unfold(packed[:, 8:], 2, 16)]

    def dequantize_compiled(self, packed: np.ndarray) -> np.ndarray:
        """As `dequantize_blocks`."""
        return _look_up(packed[:, 8:], self.steps(packed), IQ4).reshape(-1, 256)


@dataclass(frozen=True)
class MXFP4(BlockFormat):
    """e, low[16]: the microscaling format of the OCP, with a power of two as scale."""

    def quantize_blocks(self, blocks: np.ndarray) -> np.ndarray:
        """float32 [n, 32] -> uint8 [n, 17]; the largest magnitude comes to lie between 8 and 16 of E2M1's 12."""
        largest = np.abs(blocks).max(axis=1, keepdims=True)
        with np.errstate(divide="ignore"):
            power: np.ndarray = np.floor(np.log2(largest)) + np.float32(125)
        exponent = power.clip(0).astype(np.uint8)
        magnitude = np.abs(blocks) / _power(exponent)
        codes = _count_below(magnitude, E2M1_MIDDLES)
        codes |= ((blocks < 0) & (codes > 0)).astype(np.uint8) << 3
        return np.hstack([exponent, fold(codes, 2, 16)])

    def dequantize_blocks(self, packed: np.ndarray) -> np.ndarray:
        """uint8 [n, 17] -> float32 [n, 32]."""
        with np.errstate(over="ignore"):
            return _power(packed[:, :1]) * E2M1[unfold(packed[:, 1:], 2, 16)]

    quantize_compiled = quantize_blocks  # no search: NumPy is as fast as memory allows

    def dequantize_compiled(self, packed: np.ndarray) -> np.ndarray:
        """As `dequantize_blocks`."""
        return _look_up(packed[:, 1:], _power(packed[:, :1]), E2M1)

    def first_nonfinite(self, data: np.ndarray) -> int | None:
        """Index of the first block of `data`, uint8 [..., row_bytes], with e = 255 (NaN) or an infinite element."""
        packed = np.require(data, np.uint8, ["C"]).reshape(-1, self.block_bytes)
        for i in np.flatnonzero(packed[:, 0] >= 253):  # 12 * 2^124 is finite
            if packed[i, 0] == 255 or not np.isfinite(self.dequantize_blocks(packed[i : i + 1])).all():
                return int(i)
        return None


def _nearest_iq4(steps: np.ndarray) -> np.ndarray:
    """float32 of any shape -> code of the nearest of IQ4, of two the upper, uint8 of the same shape."""
    # The middles are multiples of 1/2, so that the whole part of twice the value tells the code.
    halves: np.ndarray = np.floor(steps * np.float32(2))
    return _IQ4_CODES[halves.clip(-256, 255).astype(np.int16)]


def _count_below(magnitude: np.ndarray, middles: np.ndarray) -> np.ndarray:
    """float32 of any shape -> how many of `middles` are smaller, uint8 of the same shape."""
    count = np.zeros(magnitude.shape, np.uint8)
    for middle in middles:
        count += magnitude > middle
    return count


def _power(exponent: np.ndarray) -> np.ndarray:
    """uint8 of any shape -> 2^(exponent - 128), float32 of the same shape."""
    return np.ldexp(np.float32(1), exponent.astype(np.int32) - 128)


def _look_up(nibbles: np.ndarray, scales: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Codes uint8 [n, 16k] of 32 elements each 16 bytes, scales float32 [n, k], values float32 [16] -> [n * k, 32]."""
    low = np.ascontiguousarray(nibbles).reshape(-1, 16)
    blocks = np.empty((low.shape[0], 32), np.float32)
    loop = jit.compiled(unpack_loops.look_up, "uint8[:,:]", "float32[:]", "float32[:]", "float32[:,:]")
    loop(low, scales.reshape(-1), values, blocks)
    return blocks
