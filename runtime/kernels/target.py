"""What an instruction set is to the kernels.  Enters: bytes of weights and activations; leaves: code of their products.

A target is its vector width in 32-bit lanes, how many weight panels meet how many activation rows in its registers,
its dot product of unsigned or signed weight bytes with signed activation bytes, and its look-up of bytes in a table of
16.  LLVM picks every other instruction.  `Portable` is the one that every CPU runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir

from .emit import F16, F32, I16, I32, Emitter, Value, vec

# columns(row, count): the next 4, 8 or 16 activations of a row, again and again in a vector of 4 * lanes bytes.
Columns = Callable[[int, int], Value]
# The products of 32 columns, four at a time: the weights of each panel, and the activations from these columns on.
Steps = Iterable[tuple[list[Value], Columns]]

Shapes = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

ACTIVATION_MAX = 127  # |activation code| <= 127; a weight code may be -128


@dataclass(frozen=True)
class Target:
    """One instruction set, and LLVM's names of the system, the CPU and its features that code is made for."""

    triple: str
    cpu: str
    features: str  # LLVM's "+a,-b" list

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()  # features the CPU must have
    withholds: ClassVar[tuple[str, ...]] = ()  # prefixes of features LLVM may not use here
    lanes: ClassVar[int]
    tile: ClassVar[int]  # activation rows that share a record (activations.py)
    # Panels by rows of a micro-kernel, for floats, blocks of 32 columns and super-blocks (whose rows divide `tile`).
    # Two panels share each load of activations, where that is an instruction; the scales of two super-blocks crowd out
    # the first-level cache.
    shapes: ClassVar[Shapes]
    streams: ClassVar[int] = 1  # panels of blocks that a single row reads side by side, where more than `shapes` has
    together: ClassVar[int] = 1  # steps of neighbouring columns that `dots` wants one after the other
    weight_offset: ClassVar[int] = 0  # signed weights are stored as code + offset, so 128 makes them unsigned
    has_half: ClassVar[bool] = True  # the CPU converts between float16 and float32

    def dots(self, e: Emitter, starts: list[Value], steps: Steps, bound: int) -> list[list[Value]]:
        """sums[p][r][lane] = starts[r][lane] + sum over steps and c<4 of weights[p][4*lane+c] * x[r][4*lane+c].

        starts <lanes x i32>; x[r] = columns(r, 4).  A step has the weights of each panel, <4*lanes x i8>, and a
        function that gives a row's activations, -127..127, from the step's columns on; it may be asked for those of
        later steps too.  Weights hold 0..bound, or (bound 128) signed codes -128..127 plus `weight_offset`.  Each step
        meets all rows before the next: their sums are chains of instructions that run side by side, and one load of
        activations serves all panels.
        """
        raise NotImplementedError

    def scaled(self, e: Emitter, x: Value, n: Value) -> Value:
        """x * 2**n for float32 x of 0.5 to 2 and whole float32 n <= 100; 0 for n < -125."""
        exponent = e.max(e.const(n.type, -126.0), n).to(I32) << 23  # in this order NaN passes
        product = (x.view(exponent.type) + exponent).view(x.type)
        return e.select(n < -125.0, e.zero(x.type), product)

    def lookup(self, e: Emitter, table: list[int], indices: Value) -> Value:
        """table[i] for each byte i, 0..15, of `indices`; the table's 16 numbers are -128..127."""
        level = [e.const(indices.type, number) for number in table]
        for bit in range(4):
            odd = (indices & (1 << bit)).differs(0)
            level = [e.select(odd, b, a) for a, b in zip(level[::2], level[1::2], strict=True)]
        return level[0]

    @property
    def is_arm(self) -> bool:
        return self.triple.startswith(("aarch64", "arm64"))

    def pause(self, e: Emitter) -> None:
        """Tell the CPU that this is a spinning loop."""
        if (
            self.is_arm
        ):  # most cores ignore `yield`; `isb` empties the pipeline, which takes about as long as x86's pause
            e.call("llvm.aarch64.isb", ir.VoidType(), [e.const(I32, 15)])
        elif self.triple.startswith("x86"):
            e.call("llvm.x86.sse2.pause", ir.VoidType(), [])

    def from_half(self, h: Value) -> Value:
        """float16 -> float32, exact."""
        ty = vec(F32, h.lanes)
        if self.has_half:
            return Value(h.e, h.e.b.fpext(h.ir, ty))
        i16, i32 = (vec(t, h.lanes) for t in (I16, I32))
        bits = h.view(i16).zext(I32)
        magnitude, sign = bits & 0x7FFF, (bits & 0x8000) << 16
        finite = ((magnitude << 13).view(ty) * 2.0**112).view(i32)
        special = (magnitude << 13) | 0x7F800000
        return (h.e.select(magnitude > 0x7BFF, special, finite) | sign).view(ty)

    def to_half(self, x: Value) -> Value:
        """float32 -> float16, nearest, ties to even."""
        ty = vec(F16, x.lanes)
        if self.has_half:
            return Value(x.e, x.e.b.fptrunc(x.ir, ty))
        i32, i16, f32 = (vec(t, x.lanes) for t in (I32, I16, F32))
        e, bits = x.e, x.view(i32)
        sign, magnitude = (bits & -0x80000000) >> 16, bits & 0x7FFFFFFF
        subnormal = (magnitude.view(f32) + 0.5).view(i32) - 0x3F000000  # the addition rounds at 2**-24
        normal = (magnitude + (((magnitude >> 13) & 1) + (0xFFF - (112 << 23)))) >> 13
        special = e.select(magnitude > 0x7F800000, e.const(i32, 0x7E00), e.const(i32, 0x7C00))
        half = e.select(magnitude < 0x38800000, subnormal, e.select(magnitude >= 0x47800000, special, normal))
        return Value(e, e.b.trunc((half | sign).ir, i16)).view(ty)


class Portable(Target):
    """Plain widening arithmetic on 128-bit vectors: any CPU that LLVM knows."""

    name = "portable"
    withholds = ("avx", "amx", "f16c", "fma", "vaes", "vpclmulqdq", "sha512", "sm3", "sm4")  # all of AVX: some imply it
    lanes, tile, shapes = 4, 4, ((1, 4), (1, 4), (1, 4))
    has_half = False

    def dots(self, e: Emitter, starts: list[Value], steps: Steps, bound: int) -> list[list[Value]]:
        group = 32767 // (ACTIVATION_MAX * bound)  # how many products fit one 16-bit word: 2 of 8 bits, 4 of 6, 17 of 4
        numbered = list(enumerate(steps))
        sums = [list(starts) for _ in numbered[0][1][0]]
        partial = [list(starts) for _ in sums]
        for i, (weights, columns) in numbered:
            for r in range(len(starts)):
                x = columns(r, 4).to(I16)
                for p, w in enumerate(weights):
                    products = w.to(I16) * x
                    partial[p][r] = partial[p][r] + products if i % group else products
                    if i % group == group - 1 or i == len(numbered) - 1:
                        for c in range(4):
                            quarter = partial[p][r].pick([4 * lane + c for lane in range(self.lanes)])
                            sums[p][r] = sums[p][r] + quarter.to(I32)
        return sums
