"""Q2_K to Q6_K: 256 elements share float16 scales, and each 16 or 32 of them a small multiple.

Enters: float32; leaves: blocks.  Layouts (source: ggml's block structs; little-endian; d, m are float16; s, o are the
whole numbers of the sub-blocks, `pairs` is what `_pack_pairs` makes of them; n:c/w are n-bit parts of numbers folded as
in `fitted.py`, c to a byte from places w apart):

    Q2_K  s | o << 4   q 2:4/32   d   m                                     w = d*s * q - m*o
    Q3_K  q >> 2 1:8/32   q & 3 2:4/32   s & 15 4:2/8   s >> 4 2:4/4   d    w = d*(s - 32) * (q - 4)
    Q4_K  d   m   pairs   q 4:2/32                                          w = d*s * q - m*o
    Q5_K  d   m   pairs   q >> 4 1:8/32   q & 15 4:2/32                     w = d*s * q - m*o
    Q6_K  q & 15 4:2/64   q >> 4 2:4/32   s int8[16]   d                    w = d*s * (q - 32)

Sub-blocks have 32 elements in Q4_K and Q5_K, and 16 in the others.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .. import jit
from . import fit_loops, fits, unpack_loops
from .fitted import Fitted, fold, halve, in_steps, multiples, raised, times, unfold


def _affine_tries(top: int, first: float, step: float, count: int) -> np.ndarray:
    """The largest code `top`, then top + first + i * step for i < count: float32 [1 + count]."""
    spread = np.float32(first) + np.float32(step) * np.arange(count, dtype=np.float32)
    return np.concatenate([np.array([top], np.float32), spread + np.float32(top)])


@dataclass(frozen=True)
class _Affine(Fitted):
    """w = d*s * q - m*o with whole numbers s, o = 0 .. `levels` for each sub-block, q = 0 .. `top`."""

    n_found = 2
    top: ClassVar[int]
    levels: ClassVar[int]
    unpack_loop: ClassVar[Callable[..., None]]

    def store(self, blocks: np.ndarray, found: np.ndarray, exponent: np.ndarray) -> np.ndarray:
        """d and m are 1/levels of the largest scale and offset."""
        largest = found.max(axis=1).clip(0)
        halves, stored = halve(raised(largest / np.float32(self.levels), exponent))
        s = multiples(found[:, :, 0], largest[:, :1], 0, self.levels, self.levels)
        o = multiples(found[:, :, 1], largest[:, 1:], 0, self.levels, self.levels)
        steps = in_steps(blocks, times(stored[:, :1], s), times(stored[:, 1:], o))
        codes = np.rint(steps).clip(0, self.top).astype(np.uint8)
        return self.pack(halves, s.astype(np.uint8), o.astype(np.uint8), codes.reshape(-1, 256))

    def dequantize_blocks(self, packed: np.ndarray) -> np.ndarray:
        """uint8 [n, block_bytes] -> float32 [n, 256]."""
        scale, offset = self._steps(packed)
        q = self.codes(packed).reshape(*scale.shape, -1).astype(np.float32)
        with np.errstate(invalid="ignore"):  # infinite d and m
            return (scale[:, :, None] * q - offset[:, :, None]).reshape(-1, 256)

    def dequantize_compiled(self, packed: np.ndarray) -> np.ndarray:
        """As `dequantize_blocks`."""
        blocks = np.empty((packed.shape[0], 256), np.float32)
        loop = jit.compiled(type(self).unpack_loop, "uint8[:,:]", "float32[:,:]", "float32[:,:]", "float32[:,:]")
        loop(packed, *self._steps(packed), blocks)
        return blocks

    def _steps(self, packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [n, block_bytes] -> d*s and m*o of each sub-block, float32 [n, sub-blocks] each."""
        stored = self._scales(packed)
        s, o = self.factors(packed)
        return times(stored[:, :1], s.astype(np.float32)), times(stored[:, 1:], o.astype(np.float32))

    @abstractmethod
    def pack(self, halves: np.ndarray, s: np.ndarray, o: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Bytes of d and m [n, 4], s and o [n, sub-blocks], codes [n, 256], all uint8 -> uint8 [n, block_bytes]."""

    @abstractmethod
    def factors(self, packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [n, block_bytes] -> s and o, uint8 [n, sub-blocks] each."""

    @abstractmethod
    def codes(self, packed: np.ndarray) -> np.ndarray:
        """uint8 [n, block_bytes] -> q, uint8 [n, 256]."""


@dataclass(frozen=True)
class Q2_K(_Affine):
    """s,o, c:4/32, d, m."""

    sub_size, top, levels, halves = 16, 3, 15, slice(80, 84)
    fit, fit_loop = fits.affine_absolute, fit_loops.affine_absolute
    tries = _affine_tries(3, -0.5, 0.1, 16)
    unpack_loop = unpack_loops.q2_k

    def weights(self, x: np.ndarray) -> np.ndarray:
        """The magnitude."""
        return np.abs(x)

    def pack(self, halves: np.ndarray, s: np.ndarray, o: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """uint8 [n, 4], [n, 16], [n, 16], [n, 256] -> uint8 [n, 84]."""
        return np.hstack([s | (o << 4), fold(codes, 4, 32), halves])

    def factors(self, packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [n, 84] -> s and o, uint8 [n, 16] each."""
        return packed[:, :16] & 15, packed[:, :16] >> 4

    def codes(self, packed: np.ndarray) -> np.ndarray:
        """uint8 [n, 84] -> q, uint8 [n, 256]."""
        return unfold(packed[:, 16:80], 4, 32)


@dataclass(frozen=True)
class _AffinePairs(_Affine):
    """The head that Q4_K and Q5_K share: d, m, s,o."""

    sub_size, levels, halves = 32, 63, slice(0, 4)
    fit, fit_loop = fits.affine, fit_loops.affine

    def weights(self, x: np.ndarray) -> np.ndarray:
        """The magnitude and the root mean square of the sub-block."""
        return np.sqrt(fits.total(x * x) / np.float32(32)) + np.abs(x)

    def factors(self, packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [n, block_bytes] -> s and o, uint8 [n, 8] each."""
        return _unpack_pairs(packed[:, 4:16])


@dataclass(frozen=True)
class Q4_K(_AffinePairs):
    """d, m, s,o, c:2/32."""

    top = 15
    tries = _affine_tries(15, -1, 0.1, 21)
    unpack_loop = unpack_loops.q4_k

    def pack(self, halves: np.ndarray, s: np.ndarray, o: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """uint8 [n, 4], [n, 8], [n, 8], [n, 256] -> uint8 [n, 144]."""
        return np.hstack([halves, _pack_pairs(s, o), fold(codes, 2, 32)])

    def codes(self, packed: np.ndarray) -> np.ndarray:
        """uint8 [n, 144] -> q, uint8 [n, 256]."""
        return unfold(packed[:, 16:], 2, 32)


@dataclass(frozen=True)
class Q5_K(_AffinePairs):
    """d, m, s,o, high c:8/32, c:2/32."""

    top = 31
    tries = _affine_tries(31, -0.5, 0.1, 16)
    unpack_loop = unpack_loops.q5_k

    def pack(self, halves: np.ndarray, s: np.ndarray, o: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """uint8 [n, 4], [n, 8], [n, 8], [n, 256] -> uint8 [n, 176]."""
        return np.hstack([halves, _pack_pairs(s, o), fold(codes >> 4, 8, 32), fold(codes & 15, 2, 32)])

    def codes(self, packed: np.ndarray) -> np.ndarray:
        """uint8 [n, 176] -> q, uint8 [n, 256]."""
        return unfold(packed[:, 48:], 2, 32) | (unfold(packed[:, 16:48], 8, 32) << 4)


@dataclass(frozen=True)
class Symmetric(Fitted):
    """w = d*s * value of a code, with a whole number s = -levels .. levels - 1 for each sub-block.

    rounds_as_stored  whether elements are rounded with d as float16, or as it was before
    """

    n_found = 1
    levels: ClassVar[int]
    rounds_as_stored: ClassVar[bool]

    def store(self, blocks: np.ndarray, found: np.ndarray, exponent: np.ndarray) -> np.ndarray:
        """The sub-block's scale of largest magnitude (the first, among equals) is -levels times d."""
        found = found[:, :, 0]
        extreme = np.take_along_axis(found, np.abs(found).argmax(axis=1, keepdims=True), axis=1)
        whole = raised(extreme / np.float32(-self.levels), exponent)
        halves, stored = halve(whole)
        s = multiples(found, extreme, -self.levels, self.levels - 1, -self.levels)
        codes = self.nearest(in_steps(blocks, times(stored if self.rounds_as_stored else whole, s)))
        return self.pack(halves, s.astype(np.int8), codes.reshape(-1, 256))

    def dequantize_blocks(self, packed: np.ndarray) -> np.ndarray:
        """uint8 [n, block_bytes] -> float32 [n, 256]."""
        step = self.steps(packed)
        values = self.values(packed).reshape(*step.shape, -1)
        return times(step[:, :, None], values).reshape(-1, 256)

    def steps(self, packed: np.ndarray) -> np.ndarray:
        """uint8 [n, block_bytes] -> d*s of each sub-block, float32 [n, sub-blocks]."""
        return times(self._scales(packed), self.factors(packed).astype(np.float32))

    @abstractmethod
    def nearest(self, steps: np.ndarray) -> np.ndarray:
        """float32 of any shape -> the codes of the nearest values, uint8 of the same shape."""

    @abstractmethod
    def pack(self, halves: np.ndarray, s: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Bytes of d, uint8 [n, 2], s, int8 [n, sub-blocks], codes, uint8 [n, 256] -> uint8 [n, block_bytes]."""

    @abstractmethod
    def factors(self, packed: np.ndarray) -> np.ndarray:
        """uint8 [n, block_bytes] -> s, int8 [n, sub-blocks]."""

    @abstractmethod
    def values(self, packed: np.ndarray) -> np.ndarray:
        """uint8 [n, block_bytes] -> the values of the codes, float32 [n, 256]."""


@dataclass(frozen=True)
class _SymmetricEven(Symmetric):
    """The value of code q is q - `zero`."""

    sub_size, rounds_as_stored = 16, True
    zero: ClassVar[int]
    unpack_loop: ClassVar[Callable[..., None]]

    def nearest(self, steps: np.ndarray) -> np.ndarray:
        """float32 of any shape -> uint8 of the same shape."""
        return (np.rint(steps).clip(-self.zero, self.zero - 1) + np.float32(self.zero)).astype(np.uint8)

    def values(self, packed: np.ndarray) -> np.ndarray:
        """uint8 [n, block_bytes] -> q - zero, float32 [n, 256]."""
        return self.codes(packed).astype(np.float32) - np.float32(self.zero)

    def dequantize_compiled(self, packed: np.ndarray) -> np.ndarray:
        """As `dequantize_blocks`."""
        blocks = np.empty((packed.shape[0], 256), np.float32)
        loop = jit.compiled(type(self).unpack_loop, "uint8[:,:]", "float32[:,:]", "float32[:,:]")
        loop(packed, self.steps(packed), blocks)
        return blocks

    @abstractmethod
    def codes(self, packed: np.ndarray) -> np.ndarray:
        """uint8 [n, block_bytes] -> q, uint8 [n, 256]."""


@dataclass(frozen=True)
class Q3_K(_SymmetricEven):
    """High c:8/32, c:4/32, s, d."""

    levels, zero, halves = 32, 4, slice(108, 110)
    fit, fit_loop = fits.stepwise, fit_loops.stepwise
    tries = np.array([-4], np.float32)
    unpack_loop = unpack_loops.q3_k

    def pack(self, halves: np.ndarray, s: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """uint8 [n, 2], int8 [n, 16], uint8 [n, 256] -> uint8 [n, 110]."""
        s = (s + 32).view(np.uint8)
        scales = [fold(s & 15, 2, 8), fold(s >> 4, 4, 4)]
        return np.hstack([fold(codes >> 2, 8, 32), fold(codes & 3, 4, 32), *scales, halves])

    def factors(self, packed: np.ndarray) -> np.ndarray:
        """uint8 [n, 110] -> s - 32, int8 [n, 16]."""
        s = unfold(packed[:, 96:104], 2, 8) | (unfold(packed[:, 104:108], 4, 4) << 4)
        return s.view(np.int8) - np.int8(32)

    def codes(self, packed: np.ndarray) -> np.ndarray:
        """uint8 [n, 110] -> q, uint8 [n, 256]."""
        return unfold(packed[:, 32:96], 4, 32) | (unfold(packed[:, :32], 8, 32) << 2)


@dataclass(frozen=True)
class Q6_K(_SymmetricEven):
    """Low c:2/64, high c:4/32, s, d."""

    levels, zero, halves = 128, 32, slice(208, 210)
    fit, fit_loop = fits.symmetric, fit_loops.symmetric
    tries = -(np.float32(32) + np.float32(0.1) * np.array([0, *range(-9, 0), *range(1, 10)], np.float32))
    unpack_loop = unpack_loops.q6_k

    def pack(self, halves: np.ndarray, s: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """uint8 [n, 2], int8 [n, 16], uint8 [n, 256] -> uint8 [n, 210]."""
        return np.hstack([fold(codes & 15, 2, 64), fold(codes >> 4, 4, 32), s.view(np.uint8), halves])

    def factors(self, packed: np.ndarray) -> np.ndarray:
        """uint8 [n, 210] -> s, int8 [n, 16]."""
        return packed[:, 192:208].view(np.int8)

    def codes(self, packed: np.ndarray) -> np.ndarray:
        """uint8 [n, 210] -> q, uint8 [n, 256]."""
        return unfold(packed[:, :128], 2, 64) | (unfold(packed[:, 128:192], 4, 32) << 4)


def _pack_pairs(s: np.ndarray, o: np.ndarray) -> np.ndarray:
    """s and o of 6 bits, uint8 [n, 8] each -> uint8 [n, 12]: s 0-3, o 0-3, the low bits of s and o 4-7.

    The upper two bits of s and o 4-7 go above those of s and o 0-3.
    """
    s_low, s_high, o_low, o_high = s[:, :4], s[:, 4:], o[:, :4], o[:, 4:]
    return np.hstack([s_low | ((s_high >> 4) << 6), o_low | ((o_high >> 4) << 6), (s_high & 15) | ((o_high & 15) << 4)])


def _unpack_pairs(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers that `_pack_pairs` packed: s and o, uint8 [n, 8] each."""
    s_low, o_low, both = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    s = np.hstack([s_low & 63, (both & 15) | ((s_low >> 6) << 4)])
    o = np.hstack([o_low & 63, (both >> 4) | ((o_low >> 6) << 4)])
    return s, o
