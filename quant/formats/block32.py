"""Q8_0, Q4_0, Q4_1, Q5_0, Q5_1: 32 elements share a float16 scale (and offset).  Enters: float32; leaves: blocks.

Layouts (source: ggml's block structs; little-endian; d, m are float16; byte j of `low` holds element j in its low and
element j + 16 in its high four bits; bit i of `high` is the fifth bit of element i):

    Q8_0  d      int8[32]            w = d * q              d = absmax / 127
    Q4_0  d      low[16]             w = d * (q - 8)        d = value of largest magnitude / -8
    Q4_1  d m    low[16]             w = d * q + m          d = (max - min) / 15, m = min
    Q5_0  d      high u32  low[16]   w = d * (q - 16)       d = value of largest magnitude / -16
    Q5_1  d m    high u32  low[16]   w = d * q + m          d = (max - min) / 31, m = min

Codes are rounded with the float32 scale, before it is rounded to float16, as ggml does.  Where d or 1/d overflows
float32 every code is 0, which is what the C code and the `gguf` package come to on x86.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .. import jit
from . import loops
from .base import BlockFormat


@dataclass(frozen=True)
class Block32(BlockFormat):
    """A block of 32: `n_scales` float16 numbers, then the codes."""

    n_scales: ClassVar[int]
    quantize_loop: ClassVar[Callable[..., None]]
    dequantize_loop: ClassVar[Callable[..., None]]

    def quantize_blocks(self, blocks: np.ndarray) -> np.ndarray:
        """float32 [n, 32] -> uint8 [n, block_bytes]."""
        scales, codes = self.encode(blocks)
        return np.concatenate([_to_half(scales), codes], axis=1)

    def dequantize_blocks(self, packed: np.ndarray) -> np.ndarray:
        """uint8 [n, block_bytes] -> float32 [n, 32]."""
        return self.decode(self._scales(packed), packed[:, 2 * self.n_scales :])

    @abstractmethod
    def encode(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 [n, 32] -> scales float32 [n, n_scales], codes uint8 [n, block_bytes - 2 * n_scales]."""

    @abstractmethod
    def decode(self, scales: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """scales float32 [n, n_scales], codes uint8 [n, ...] -> float32 [n, 32]."""

    def quantize_compiled(self, blocks: np.ndarray) -> np.ndarray:
        """As `quantize_blocks`."""
        packed = np.empty((blocks.shape[0], self.block_bytes), np.uint8)
        scales = np.empty((blocks.shape[0], self.n_scales), np.float32)
        loop = jit.compiled(type(self).quantize_loop, "float32[:,:]", "float32[:,:]", "uint8[:,:]")
        loop(blocks, scales, packed)
        packed[:, : 2 * self.n_scales] = _to_half(scales)
        return packed

    def dequantize_compiled(self, packed: np.ndarray) -> np.ndarray:
        """As `dequantize_blocks`."""
        blocks = np.empty((packed.shape[0], 32), np.float32)
        loop = jit.compiled(type(self).dequantize_loop, "uint8[:,:]", "float32[:,:]", "float32[:,:]")
        loop(packed, self._scales(packed), blocks)
        return blocks

    def first_nonfinite(self, data: np.ndarray) -> int | None:
        """Index of the first block of `data`, uint8 [..., row_bytes], with a NaN or infinite scale."""
        packed = np.require(data, np.uint8, ["C"]).reshape(-1, self.block_bytes)
        halves = np.ascontiguousarray(packed[:, : 2 * self.n_scales]).view("<u2")
        bad = np.flatnonzero(((halves & 0x7C00) == 0x7C00).any(axis=1))
        return int(bad[0]) if bad.size else None

    def _scales(self, packed: np.ndarray) -> np.ndarray:
        """uint8 [n, block_bytes] -> the float16 numbers at the front of each block as float32 [n, n_scales]."""
        return np.ascontiguousarray(packed[:, : 2 * self.n_scales]).view("<f2").astype(np.float32)


@dataclass(frozen=True)
class Q8_0(Block32):
    """d, int8[32]."""

    n_scales = 1
    quantize_loop = loops.q8_0_quantize
    dequantize_loop = loops.q8_0_dequantize

    def encode(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Round to the nearest code, halves away from zero."""
        scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
        steps = blocks * _inverse(scale)[0]
        whole = np.trunc(steps)
        codes = whole + np.sign(steps) * (np.abs(steps - whole) >= 0.5)
        return scale, codes.astype(np.int8).view(np.uint8)

    def decode(self, scales: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """d * q."""
        return scales * codes.view(np.int8).astype(np.float32)


@dataclass(frozen=True)
class _Symmetric(Block32):
    """w = d * (q - middle): the value of largest magnitude (the first, among equals) becomes code 0."""

    n_scales = 1
    bits: ClassVar[int]

    def encode(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Round half up, in code space."""
        middle = 1 << (self.bits - 1)
        extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
        scale = extreme / np.float32(-middle)
        inverse, usable = _inverse(scale)
        codes = np.where(usable, blocks * inverse + np.float32(middle + 0.5), 0)
        return scale, _pack(codes.astype(np.uint8).clip(0, 2 * middle - 1), self.bits)

    def decode(self, scales: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """d * (q - middle)."""
        return scales * (_unpack(codes, self.bits).astype(np.float32) - np.float32(1 << (self.bits - 1)))


@dataclass(frozen=True)
class Q4_0(_Symmetric):
    """d, low[16]."""

    bits = 4
    quantize_loop = loops.q4_0_quantize
    dequantize_loop = loops.q4_0_dequantize


@dataclass(frozen=True)
class Q5_0(_Symmetric):
    """d, high, low[16]."""

    bits = 5
    quantize_loop = loops.q5_0_quantize
    dequantize_loop = loops.q5_0_dequantize


@dataclass(frozen=True)
class _Affine(Block32):
    """w = d * q + m: the smallest value (the first, among zeros of both signs) becomes code 0."""

    n_scales = 2
    bits: ClassVar[int]

    def encode(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Round half up, in code space."""
        top = (1 << self.bits) - 1
        smallest = np.take_along_axis(blocks, blocks.argmin(axis=1, keepdims=True), axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            scale = (blocks.max(axis=1, keepdims=True) - smallest) / np.float32(top)
            inverse, usable = _inverse(scale)
            codes = np.where(usable, (blocks - smallest) * inverse + np.float32(0.5), 0)
        return np.concatenate([scale, smallest], axis=1), _pack(codes.astype(np.uint8).clip(0, top), self.bits)

    def decode(self, scales: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """d * q + m."""
        return scales[:, :1] * _unpack(codes, self.bits).astype(np.float32) + scales[:, 1:]


@dataclass(frozen=True)
class Q4_1(_Affine):
    """d, m, low[16]."""

    bits = 4
    quantize_loop = loops.q4_1_quantize
    dequantize_loop = loops.q4_1_dequantize


@dataclass(frozen=True)
class Q5_1(_Affine):
    """d, m, high, low[16]."""

    bits = 5
    quantize_loop = loops.q5_1_quantize
    dequantize_loop = loops.q5_1_dequantize


def _to_half(scales: np.ndarray) -> np.ndarray:
    """float32 [n, k] -> their float16 bytes, uint8 [n, 2k], rounded to nearest even."""
    with np.errstate(over="ignore"):
        return scales.astype("<f2").view(np.uint8)


def _inverse(scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [n, 1] -> 1/scale with 0 where that is not finite, and where the codes are more than 0, bool [n, 1]."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    usable = np.isfinite(inverse)
    return np.where(usable, inverse, np.float32(0)), (usable | (scale == 0)) & np.isfinite(scale)


def _pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes uint8 [n, 32] of 4 or 5 bits -> uint8 [n, 16] or, with the fifth bits in front, [n, 20]."""
    low = (codes[:, :16] & 15) | (codes[:, 16:] << 4)
    return low if bits == 4 else np.concatenate([np.packbits(codes >> 4, axis=1, bitorder="little"), low], axis=1)


def _unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """The codes that `_pack` packed, uint8 [n, 32]."""
    low = packed[:, -16:]
    codes = np.concatenate([low & 15, low >> 4], axis=1)
    return codes if bits == 4 else codes | (np.unpackbits(packed[:, :4], axis=1, bitorder="little") << 4)
