"""What an instruction set is to the kernels.  Enters: bytes of weights and activations; leaves: code of their products.

A target is its vector width in 32-bit lanes, how many weight panels meet how many activation rows in its registers,
its dot product of unsigned or signed weight bytes with signed activation bytes, and its look-up of bytes in a table of
16.  LLVM picks every other instruction.  `Portable` is the one that every CPU runs.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from llvmlite import ir

from .emit import Emitter
from .layouts import ACTIVATION_MAX, BlockLayout
from .values import F16, F32, I16, I32, Value, vec

# columns(row, count): the next 4, 8 or 16 activations of a row, again and again in a vector of 4 * lanes bytes.
Columns = Callable[[int, int], Value]
# The products of 32 columns, four at a time: the weights of each panel, and the activations from these columns on.
Steps = Iterable[tuple[list[Value], Columns]]


Shapes = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


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
    together: ClassVar[int] = 1  # steps of neighbouring columns that `dots` wants one after the other
    registers: ClassVar[int] = 32  # that hold a vector
    word_sums: ClassVar[bool] = False  # `dots` sums products of codes that are not signed in 16 bits, two columns each
    weight_offset: ClassVar[int] = 0  # signed weights are stored as code + offset, so 128 makes them unsigned
    word_scales: ClassVar[bool] = False  # `add_scaled` is one instruction for sums that fit 16 bits
    asks_ahead: ClassVar[bool] = False  # tiles of several rows ask memory for weights ahead of time
    anchors: ClassVar[bool] = False  # `dots` adds to its starts and the CPU has fma: sums may start at ANCHOR
    has_half: ClassVar[bool] = True  # the CPU converts between float16 and float32

    def dots(
        self, e: Emitter, starts: list[Value], steps: Steps, bound: int, halves: bool = False
    ) -> list[list[Value]]:
        """sums[p][r][lane] = starts[r][lane] + sum over steps and c<4 of weights[p][4*lane+c] * x[r][4*lane+c].

        starts <lanes x i32>; halves (of word_sums): two int16 each, for a lane's first and last two columns, which
        make up for what the sums have too much for 16 bits.  x[r] = columns(r, 4).  A step has the weights of each
        panel, <4*lanes x i8>, and a function that gives a row's activations, -127..127, from the step's columns on; it
        may be asked for those of later steps too.  Weights hold 0..bound, or (bound 128) signed codes -128..127 plus
        `weight_offset`.  Each step meets all rows before the next: their sums are chains of instructions that run side
        by side, and one load of activations serves all panels.  Targets without a dot product sum all steps in 16
        bits, unless bound is 128: their products have to fit.
        """
        raise NotImplementedError

    def shape(self, layout: BlockLayout) -> tuple[int, int]:
        """Panels and rows of a micro-kernel that multiplies codes of this type."""
        return self.shapes[1 if layout.parts == 1 else 2]

    def streams(self, layout: BlockLayout) -> int:
        """Panels that a single row reads side by side, as streams of memory."""
        return self.shape(layout)[0]

    def asks_afar(self, layout: BlockLayout) -> bool:
        """Whether a single row asks for a line of each block FAR_BYTES ahead: where that is in memory is known then."""
        return False

    @property
    def asks_for_rows(self) -> bool:
        """Whether full tiles ask for activations ROWS_AHEAD, and for the results that the next tile starts from.

        Where panels are taken apart, also for those that it only writes.
        """
        return False

    def keeps_sums(self, layout: BlockLayout, vectors: int) -> bool:
        """Whether the float sums of a tile, so many vectors, stay in registers while those of whole numbers grow."""
        return self.registers >= 32 or vectors < 4

    def opens_codes(self, layout: BlockLayout) -> bool:
        """Whether codes of this type are taken apart once for all tiles of a prompt (opened.py).

        All but nibbles and bytes: on AVX-512 products with many rows take 8 to 15 % less time so in Q5_K and Q6_K;
        beside a busy neighbour as much as before in Q4_0, and 1 to 8 % more in Q4_K, as twice the bytes pass through
        the cache.
        """
        return layout.codebook is not None or layout.planes not in ((4,), (8,))

    @property
    def cached_bytes(self) -> int:
        """Of a panel's blocks whose codes are taken apart at a time, beside which tiles pass through the cache."""
        return 10 << 10

    def loads_again(self, layout: BlockLayout, alone: bool) -> int:
        """After how many vectors of a part's eight to load again what they share; alone: for a single row."""
        return 1 if self.registers < 32 and not alone else 8 // layout.groups

    @property
    def has_spare_units(self) -> bool:
        """Whether what is no product, as shifts, logic and sums, costs nothing beside products, for which others wait.

        A product of 32 bits by 32 then is one instruction that takes as long as one of 16.
        """
        return False

    def add_scaled(self, e: Emitter, total: Value, x: Value, scale: Value) -> Value:
        """total + x * scale of <lanes x i32>, for targets with `word_scales`.

        x: -32768..32767; scale: an int16 in the low half, of which the high half is 0.
        """
        raise NotImplementedError

    def add_words(self, e: Emitter, total: Value, x: Value, y: Value) -> Value:
        """total + the sum of both products of each lane's two int16, for targets with `word_scales`.

        All are <lanes x i32>.
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

    def _in_parts(self, x: Value, width: int, call: Callable[[Value], Value]) -> Value:
        """`call` of every `width` elements of a vector of one or two times as many."""
        first = call(x.pick(list(range(width)))) if x.lanes > width else call(x)
        rest = list(range(width, x.lanes))
        return first.pick(list(range(x.lanes)), call(x.pick(rest))) if rest else first

    @property
    def is_arm(self) -> bool:
        return self.triple.startswith(("aarch64", "arm64"))

    @property
    def vector_letter(self) -> str | None:
        """LLVM's letter for any vector register, where this CPU is known here."""
        return "w" if self.is_arm else "v" if self.triple.startswith("x86") else None

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


class WideningTarget(Target):
    """No instruction for dot products: those of 16 bits are summed there while they fit, then in pairs in 32 bits."""

    def dots(
        self, e: Emitter, starts: list[Value], steps: Steps, bound: int, halves: bool = False
    ) -> list[list[Value]]:
        signed, rest = bound == 128, iter(steps)  # 16 bits hold two products of bytes, and of others all that there are
        halves_of_lanes = [list(range(8)), list(range(8, 16))]
        sums: list[list[list[Value]]] = []  # [panel][row][half of the lanes]
        done = 0
        while taken := list(islice(rest, 2 if signed else 1)):
            done += len(taken)
            assert signed or done * bound * ACTIVATION_MAX < 1 << 15, bound
            first = e.zero(vec(I32, 4) if signed else vec(I16, 8))
            sums = sums or [[[first] * 2 for _ in starts] for _ in taken[0][0]]
            wide = [[[w.pick(half).to(I16) for half in halves_of_lanes] for w in weights] for weights, _ in taken]
            for r in range(len(starts)):
                rows = [columns(r, 4) for _, columns in taken]
                for p, of_panel in enumerate(sums):
                    for h, half in enumerate(halves_of_lanes):
                        products = [w[p][h] * x.pick(half).to(I16) for w, x in zip(wide, rows, strict=True)]
                        words = functools.reduce(operator.add, products)
                        of_panel[r][h] = of_panel[r][h] + (self._pairs(e, words) if signed else words)
                e.settle(of_panel[r] for of_panel in sums)
            e.settle(two for of_panel in sums for two in of_panel)
        if not signed:
            sums = [[[self._pairs(e, words) for words in two] for two in of_panel] for of_panel in sums]
        return [[s + self._joined(e, *two) for s, two in zip(starts, rows, strict=True)] for rows in sums]

    def _pairs(self, e: Emitter, words: Value) -> Value:
        """Sums of neighbours of <8 x i16>, as <4 x i32>."""
        return words.pick([0, 2, 4, 6]).to(I32) + words.pick([1, 3, 5, 7]).to(I32)

    def _joined(self, e: Emitter, low: Value, high: Value) -> Value:
        """Sums of neighbours of two <4 x i32>, one after the other."""
        return low.pick([0, 2, 4, 6], high) + low.pick([1, 3, 5, 7], high)


class Portable(WideningTarget):
    """Plain arithmetic on 128-bit vectors: any CPU that LLVM knows."""

    name, lanes = "portable", 4
    withholds = ("avx", "amx", "f16c", "fma", "vaes", "vpclmulqdq", "sha512", "sm3", "sm4")  # all of AVX: some imply it
    tile, shapes, registers = 4, ((1, 4), (1, 4), (1, 4)), 16
    has_half = False

    def keeps_sums(self, layout: BlockLayout, vectors: int) -> bool:
        return False
