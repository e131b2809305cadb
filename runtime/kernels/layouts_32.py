"""Types with blocks of 32 columns.  Enters: addresses of a GGUF file's blocks; leaves: their codes and scales.

Source of the layouts: the block structs of ggml.  d and m are float16; "nibbles" are 16 bytes whose low halves are
columns 0..15 and high halves columns 16..31.
"""

from __future__ import annotations

from .emit import Emitter
from .layouts import BLOCK, BlockLayout, half, nibbles
from .values import F32, I8, I16, I32, Value, vec

# The values of IQ4_NL's and IQ4_XS's codes (ggml's kvalues_iq4nl).
NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# Twice the values of E2M1 (OCP Microscaling Formats 1.0), so that they are whole; a code's top bit is its sign.
E2M1_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


class _Plain(BlockLayout):
    """d, or d and m, and then the codes."""

    def scales(self, e: Emitter, header: list[Value]) -> tuple[list[Value], list[Value]]:
        scale, *minimum = (half(field) for field in header)
        return [scale], minimum

    def codes(self, e: Emitter, block: Value, part: int) -> Value:
        return nibbles(e, block + self.header_bytes(1))


class _Fifth(_Plain):
    """An int32 lies before the nibbles: its bit i is the fifth bit of column i."""

    def codes(self, e: Emitter, block: Value, part: int) -> Value:
        at, ty = block + self.header_bytes(1), vec(I8, BLOCK)
        spread = e.load(at, vec(I8, 4)).pick([i // 8 for i in range(BLOCK)])
        single = e.const(ty, [1 << i % 8 if i % 8 < 7 else -128 for i in range(BLOCK)])
        return nibbles(e, at + 4) | e.select((spread & single).differs(0), e.const(ty, 16), 0)


class Q8_0(_Plain):
    """d, 32 signed bytes: w = d*q."""

    name, header, planes, signed = "q8_0", ((0, I16),), (8,), True

    def codes(self, e: Emitter, block: Value, part: int) -> Value:
        return e.load(block + 2, vec(I8, BLOCK))


class Q4_0(_Plain):
    """d, nibbles: w = d*(q - 8)."""

    name, header, planes, zero = "q4_0", ((0, I16),), (4,), 8


class Q4_1(_Plain):
    """d, m, nibbles: w = d*q + m."""

    name, header, planes, minimum = "q4_1", ((0, I16), (2, I16)), (4,), True


class Q5_0(_Fifth):
    """d, fifth bits, nibbles: w = d*(q - 16)."""

    name, header, planes, zero = "q5_0", ((0, I16),), (4, 1), 16


class Q5_1(_Fifth):
    """d, m, fifth bits, nibbles: w = d*q + m."""

    name, header, planes, minimum = "q5_1", ((0, I16), (2, I16)), (4, 1), True


class IQ4_NL(_Plain):
    """d, nibbles: w = d*NONLINEAR[q]."""

    name, header, planes, codebook, signed = "iq4_nl", ((0, I16),), (4,), NONLINEAR, True


class MXFP4(_Plain):
    """A power of two as its exponent byte, nibbles: w = 2^(exponent - 127) * E2M1[q]."""

    name, header, planes = "mxfp4", ((0, I8),), (4,)
    zero = 12  # values 0..24 make products of unsigned bytes, which x86 wants; less 12, sums of 32 fit 16 bits
    codebook = tuple(12 + value for value in E2M1_DOUBLED)

    def scales(self, e: Emitter, header: list[Value]) -> tuple[list[Value], list[Value]]:
        exponent = header[0].zext(I32)  # of 2^(exponent - 128), which is subnormal for 0 and 1
        bits = e.select(exponent < 2, (exponent + 1) << 21, (exponent - 1) << 23)
        return [bits.view(vec(F32, bits.lanes))], []
