"""Types with super-blocks of 256 columns.  Enters: addresses of a GGUF file's blocks; leaves: their codes and scales.

Source of the layouts: the block structs of ggml.  A super-block has a float16 d (and dmin) and small integers sc (and
m) for each 32 or 16 columns: w = d*sc*(q - zero), or d*sc*q - dmin*m.

Panels keep these integers as the file packs them.  Widened to bytes they would add 2.8 % to the bytes of Q4_K (2.3 % to
Q5_K, 3.6 % to Q3_K, 1.5 % to IQ4_XS), which decoding pays: on two threads it takes 1 to 5 % less time as they are.
Prompts take them apart once for all tiles that a panel meets (`SuperScales` in scales.py, opened.py).
"""

from __future__ import annotations

from typing import ClassVar

from .emit import Emitter
from .layouts import BLOCK, BlockLayout, half, nibbles
from .layouts_32 import NONLINEAR
from .values import F32, I8, I16, I32, Value, vec


class _Super(BlockLayout):
    parts = 8

    def scales(self, e: Emitter, header: list[Value]) -> tuple[list[Value], list[Value]]:
        scales, *minimums = (
            [number.to(F32) * factor for number in integers] for factor, integers in self.integers(e, header)
        )
        return scales, [m for of_block in minimums for m in of_block]


def _bytes(e: Emitter, address: Value) -> Value:
    """Read one byte for each of 32 columns."""
    return e.load(address, vec(I8, BLOCK))


def _each_byte(word: Value) -> list[Value]:
    """The four bytes of an int32, lowest first, as int32."""
    return [(word >> 8 * k) & 0xFF for k in range(4)]


class Q4_K(_Super):
    """d, dmin; 8 sc and 8 m of 6 bits in 12 bytes; nibbles: part 2g is the low ones of 32 bytes, part 2g+1 the high.

    Of the 12 bytes S, sc[j] and m[j] for j < 4 are the low 6 bits of S[j] and S[4+j]; sc[4+j] and m[4+j] are the low
    and high nibble of S[8+j] under the top 2 bits of S[j] and S[4+j].
    """

    name, minimum = "q4_k", True
    planes: ClassVar[tuple[int, ...]] = (4,)
    header = ((0, I16), (2, I16), (4, I32), (8, I32), (12, I32))
    _nibbles_at = 16

    def integers(self, e: Emitter, header: list[Value]) -> list[tuple[Value, list[Value]]]:
        d, dmin, first, second, third = header
        low, high = third & 0x0F0F0F0F, (third >> 4) & 0x0F0F0F0F
        scales = [first & 0x3F3F3F3F, low | ((first >> 2) & 0x30303030)]
        minimums = [second & 0x3F3F3F3F, high | ((second >> 2) & 0x30303030)]
        return [
            (half(d), [b for word in scales for b in _each_byte(word)]),
            (-half(dmin), [b for word in minimums for b in _each_byte(word)]),
        ]

    def codes(self, e: Emitter, block: Value, part: int) -> Value:
        both = _bytes(e, block + (self._nibbles_at + 32 * (part // 2)))
        return both >> 4 if part % 2 else both & 15


class Q5_K(Q4_K):
    """As Q4_K, with 32 bytes before the nibbles: bit p of byte i is the fifth bit of column i of part p."""

    name, planes = "q5_k", (4, 1)
    _nibbles_at = 48

    def codes(self, e: Emitter, block: Value, part: int) -> Value:
        fifth = (_bytes(e, block + 16) >> part) & 1
        return super().codes(e, block, part) | (fifth << 4)


class Q6_K(_Super):
    """Two halves of 64 bytes of nibbles; two of 32 bytes of 2 high bits; 16 signed sc; d.  w = d*sc*(q - 32).

    Parts 0 and 2 of a half are the low and high nibbles of its first 32 bytes, parts 1 and 3 those of the next; the
    high bits of its part j are bits 2j of its 32 bytes.
    """

    name, planes, groups, zero = "q6_k", (4, 2), 2, 32
    header = ((208, I16), *((192 + i, I8) for i in range(16)))

    def integers(self, e: Emitter, header: list[Value]) -> list[tuple[Value, list[Value]]]:
        d, *scales = header
        return [(half(d), scales)]

    def codes(self, e: Emitter, block: Value, part: int) -> Value:
        side, j = divmod(part, 4)
        both = _bytes(e, block + (64 * side + 32 * (j % 2)))
        high = (_bytes(e, block + (128 + 32 * side)) >> 2 * j) & 3
        return (both >> 4 if j > 1 else both & 15) | (high << 4)


def _two_bits(e: Emitter, quads: Value, part: int) -> Value:
    """The codes of a part in 64 bytes of four codes each: part j of a half is bits 2j of its 32 bytes."""
    side, j = divmod(part, 4)
    return (_bytes(e, quads + 32 * side) >> 2 * j) & 3


class Q3_K(_Super):
    """32 bytes of third bits, one for each part; 64 of 2 low bits; 16 sc of 6 bits in 12; d.  w = d*(sc - 32)*(q - 4).

    Of the 12 bytes S, the nibbles of S[0..7], low ones first, are the low bits of sc; sc[4g+j] has bits 2g of S[8+j]
    as its high ones.
    """

    name, planes, groups, zero = "q3_k", (2, 1), 2, 4
    header = ((108, I16), (96, I32), (100, I32), (104, I32))

    def integers(self, e: Emitter, header: list[Value]) -> list[tuple[Value, list[Value]]]:
        d, first, second, high = header
        low = [first, second, first >> 4, second >> 4]
        top = [high << 4, high << 2, high, high >> 2]
        words = [(a & 0x0F0F0F0F) | (b & 0x30303030) for a, b in zip(low, top, strict=True)]
        return [(half(d), [b - 32 for word in words for b in _each_byte(word)])]

    def codes(self, e: Emitter, block: Value, part: int) -> Value:
        third = (_bytes(e, block) >> part) & 1
        return _two_bits(e, block + 32, part) | (third << 2)


class Q2_K(_Super):
    """16 bytes of 4-bit sc and m; 64 of 2-bit codes; d, dmin.  w = d*sc*q - dmin*m."""

    name, planes, groups, minimum = "q2_k", (2,), 2, True
    header = ((80, I16), (82, I16), *((i, I8) for i in range(16)))

    def integers(self, e: Emitter, header: list[Value]) -> list[tuple[Value, list[Value]]]:
        d, dmin, *pairs = header
        both = [pair.zext(I32) for pair in pairs]
        return [(half(d), [b & 15 for b in both]), (-half(dmin), [b >> 4 for b in both])]

    def codes(self, e: Emitter, block: Value, part: int) -> Value:
        return _two_bits(e, block + 16, part)


class IQ4_XS(_Super):
    """d; 8 sc of 6 bits: high bits in an int16, low ones in an int32; nibbles.  w = d*(sc - 32)*NONLINEAR[q]."""

    name, planes, codebook, signed = "iq4_xs", (4,), NONLINEAR, True
    header = ((0, I16), (2, I16), (4, I32))

    def integers(self, e: Emitter, header: list[Value]) -> list[tuple[Value, list[Value]]]:
        d, top, low = header
        high = top.zext(I32) << 4
        return [(half(d), [(((low >> 4 * j) & 15) | ((high >> 2 * j) & 0x30)) - 32 for j in range(8)])]

    def codes(self, e: Emitter, block: Value, part: int) -> Value:
        return nibbles(e, block + (8 + 16 * part))
