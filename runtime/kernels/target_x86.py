"""Instruction sets of x86.  Enters: bytes of weights and activations; leaves: code of their products."""

from __future__ import annotations

from typing import ClassVar

from llvmlite import ir

from .emit import Emitter
from .layouts import ACTIVATION_MAX, BlockLayout
from .target import Portable, Steps, Target
from .values import I8, I16, I32, Value, vec


class _X86(Target):
    """vpshufb looks up 16 bytes at a time, within each 128 bits."""

    @property
    def is_amd(self) -> bool:
        return self.cpu.startswith("znver")

    def streams(self, layout: BlockLayout) -> int:
        """Two: on an Intel server a model in Q4_K_M generates 11 % faster so, matrices in Q8_0 take 10 % less time.

        AMD's cores read one stream faster: on Zen 5 one thread takes 6 to 21 % less time with it, with AVX2 15 to 21 %.
        Two panels of Q3_K want more than 16 registers.
        """
        crowded = self.registers < 32 and layout.groups > 1 and layout.planes == (2, 1)
        return 1 if self.is_amd or crowded else 2

    def lookup(self, e: Emitter, table: list[int], indices: Value) -> Value:
        width = min(indices.lanes, 4 * self.lanes)
        name = {16: "ssse3.pshuf.b.128", 32: "avx2.pshuf.b", 64: "avx512.pshuf.b.512"}[width]
        entries = e.const(vec(I8, width), table * (width // 16))
        return self._in_parts(indices, width, lambda part: e.call(f"llvm.x86.{name}", part.type, [entries, part]))


class _Vnni(_X86):
    """vpdpbusd: four u8*s8 products added to an i32 lane, no saturation."""

    weight_offset, anchors, word_scales = 128, True, True

    def dots(
        self, e: Emitter, starts: list[Value], steps: Steps, bound: int, halves: bool = False
    ) -> list[list[Value]]:
        sums: list[list[Value]] = []
        for weights, columns in steps:
            sums = sums or [list(starts) for _ in weights]
            for r in range(len(starts)):
                x = columns(r, 4)
                for w, of_panel in zip(weights, sums, strict=True):
                    of_panel[r] = e.call(self._intrinsic("vpdpbusd"), vec(I32, self.lanes), [of_panel[r], w, x])
            if self.registers < 32:
                e.settle(sums)
        return sums

    def add_scaled(self, e: Emitter, total: Value, x: Value, scale: Value) -> Value:
        return self.add_words(e, total, x, scale)

    def add_words(self, e: Emitter, total: Value, x: Value, y: Value) -> Value:
        words = vec(I16, 2 * self.lanes)
        return e.call(self._intrinsic("vpdpwssd"), total.type, [total, x.view(words), y.view(words)])

    def _intrinsic(self, instruction: str) -> str:
        return f"llvm.x86.avx512.{instruction}.{32 * self.lanes}"


class Avx512Vnni(_Vnni):
    name = "avx512_vnni"
    requires = ("avx512f", "avx512bw", "avx512vl", "avx512vnni")
    withholds = ("amx",)
    # Products take activations as broadcast operands, which cost no instruction.  One panel by twelve rows is so 160
    # instructions for 96 products, two by six 220 to 270: Intel's cores read prompts 10 to 28 % slower so.  Rows of
    # floats lie apart, and their addresses cost more: there two by six are 10 to 20 % faster.
    lanes, tile, shapes, asks_ahead = 16, 12, ((2, 6), (1, 12), (1, 12)), True

    def shape(self, layout: BlockLayout) -> tuple[int, int]:
        """AMD's cores load two vectors a cycle at most, for as many products: two panels share loads of activations.

        On Zen 5 products of many rows take 6 to 11 % less time so; minimums of 32 columns take the registers for it.
        """
        has_room = layout.parts > 1 or not layout.minimum
        return self.shapes[0] if self.is_amd and has_room else super().shape(layout)

    @property
    def asks_for_rows(self) -> bool:
        """AMD's cores: on Zen 5 products take 1 to 2 % less time, those that add to what is there 3 to 10 %.

        What a tile starts from is further away than all else that it reads.  On an Intel server, all products asking
        for results, they took 5 % longer.
        """
        return self.is_amd

    @property
    def cached_bytes(self) -> int:
        """AMD's cores: two panels share the cache, which in Q6_K has room for two super-blocks of each.

        With three of 8192 columns a 1B model in Q4_K_M takes 0.5 % longer for prompts.
        """
        return 9 << 10 if self.is_amd else super().cached_bytes

    def asks_afar(self, layout: BlockLayout) -> bool:
        """Bytes, which take the fewest instructions for what they read; other types take 0 to 2 % longer so.

        On Zen 5 a 1B model in Q8_0 generates 4 to 5 % faster with one thread, 0 to 3 % with two
        (with AVX2 as fast).
        """
        return self.is_amd and layout.planes == (8,)

    @property
    def has_spare_units(self) -> bool:
        """AMD's cores do: two of four units multiply.  Intel's multiply 32 bits by 32 in two, which wait long."""
        return self.is_amd

    def scaled(self, e: Emitter, x: Value, n: Value) -> Value:
        if x.lanes != self.lanes:
            return super().scaled(e, x, n)
        every, nearest = e.const(I16, -1), e.const(I32, 4)  # lanes, rounding mode
        return e.call("llvm.x86.avx512.mask.scalef.ps.512", x.type, [x, n, x, every, nearest])


class AvxVnni(_Vnni):
    name = "avx_vnni"
    requires = ("avx2", "fma", "f16c", "avxvnni")
    withholds = ("avx512", "amx", "avx10")
    lanes, tile, shapes, registers, asks_ahead = 8, 12, ((2, 4), (2, 6), (1, 12)), 16, True

    def shape(self, layout: BlockLayout) -> tuple[int, int]:
        """Two panels share each load of activations, unless to take codes apart takes the registers."""
        if layout.parts > 1 or len(layout.planes) > 1 or (layout.codebook and not layout.signed):
            return self.shapes[2]
        return (2, 4) if layout.minimum else self.shapes[1]

    def opens_codes(self, layout: BlockLayout) -> bool:
        """Also nibbles of blocks of 32 columns: products of many rows take 10 % less time in Q4_0, 2 % more in Q4_K."""
        return super().opens_codes(layout) or (layout.parts == 1 and layout.planes == (4,))


class _Pairs(_X86):
    """pmaddubsw + pmaddwd: products are summed in 16 bits as long as they fit, those of 8-bit weights in pairs."""

    registers, word_sums = 16, True
    _instructions: ClassVar[tuple[str, str, str]]  # pmaddubsw, pmaddwd, psignb

    def shape(self, layout: BlockLayout) -> tuple[int, int]:
        """As `AvxVnni`: two panels of nibbles, one of other codes."""
        plain = layout.parts == 1 and layout.planes == (4,) and layout.codebook is None
        return self.shapes[1 if plain else 2]

    def opens_codes(self, layout: BlockLayout) -> bool:
        """All but bytes: products with many rows take 7 % less time in Q4_0, 10 to 14 % in K types, 25 % in Q5_0."""
        return layout.planes != (8,)

    def dots(
        self, e: Emitter, starts: list[Value], steps: Steps, bound: int, halves: bool = False
    ) -> list[list[Value]]:
        pairs_of_bytes, _, sign = self._instructions
        bytes_, words, signed = vec(I8, 4 * self.lanes), vec(I16, 2 * self.lanes), bound == 128
        zeros = [e.zero(vec(I32, self.lanes))] * len(starts)
        first = starts if signed else [start.view(words) for start in (starts if halves else zeros)]
        sums: list[list[Value]] = []
        for done, (weights, columns) in enumerate(steps, 1):
            assert signed or halves or 2 * done * bound * ACTIVATION_MAX < 1 << 15, bound
            sums = sums or [list(first) for _ in weights]
            unsigned = weights
            if signed:  # |w| * (x with w's sign); 128 * 127 * 2 = 32512 fits 16 bits
                unsigned = [
                    e.call(f"llvm.abs.v{4 * self.lanes}i8", bytes_, [w, e.const(ir.IntType(1), 0)]) for w in weights
                ]
            for r in range(len(starts)):
                shared = columns(r, 4)
                for w, u, of_panel in zip(weights, unsigned, sums, strict=True):
                    x = e.call(f"llvm.x86.{sign}", bytes_, [shared, w]) if signed else shared
                    pairs = e.call(f"llvm.x86.{pairs_of_bytes}", words, [u, x])
                    of_panel[r] = of_panel[r] + (self._widened(e, pairs) if signed else pairs)
                if r % 2:  # two rows at a time: LLVM starts all of them otherwise, and their products wait
                    last = [of_panel[r - 1 : r + 1] for of_panel in sums]
                    e.settle(last)
                    for of_panel, two in zip(sums, last, strict=True):
                        of_panel[r - 1 : r + 1] = two
            e.settle(sums)
        if signed:
            return sums
        later = zeros if halves else starts
        return [[start + self._widened(e, v) for start, v in zip(later, rows, strict=True)] for rows in sums]

    def _widened(self, e: Emitter, words: Value) -> Value:
        """Sums of two neighbouring int16, as int32."""
        return e.call(f"llvm.x86.{self._instructions[1]}", vec(I32, self.lanes), [words, e.const(words.type, 1)])


class Avx2(_Pairs):
    name = "avx2"
    requires = ("avx2", "fma", "f16c")
    withholds = ("avx512", "amx", "avx10", "avxvnni")
    lanes, tile, shapes, asks_ahead = 8, 8, ((2, 4), (2, 4), (1, 8)), True
    _instructions = "avx2.pmadd.ub.sw", "avx2.pmadd.wd", "avx2.psign.b"


class Sse41(_Pairs):
    """x86 since 2008, and the small cores that were sold without AVX until 2021."""

    name = "sse41"
    requires = ("ssse3", "sse4.1")
    withholds = Portable.withholds
    lanes, tile, shapes, has_half = 4, 8, ((1, 4), (2, 4), (1, 8)), False
    _instructions = "ssse3.pmadd.ub.sw.128", "sse2.pmadd.wd", "ssse3.psign.b.128"

    def streams(self, layout: BlockLayout) -> int:
        """As prompts: arithmetic takes longer than memory here, and two panels of K types take too many registers."""
        return self.shape(layout)[0]
