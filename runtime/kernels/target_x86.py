"""Instruction sets of x86.  Enters: bytes of weights and activations; leaves: code of their products."""

from __future__ import annotations

from typing import ClassVar

from llvmlite import ir

from .emit import I8, I16, I32, Emitter, Value, vec
from .target import ACTIVATION_MAX, Steps, Target


class _X86(Target):
    """vpshufb looks up 16 bytes at a time, within each 128 bits."""

    def lookup(self, e: Emitter, table: list[int], indices: Value) -> Value:
        name = {16: "ssse3.pshuf.b.128", 32: "avx2.pshuf.b", 64: "avx512.pshuf.b.512"}[indices.lanes]
        return e.call(f"llvm.x86.{name}", indices.type, [e.const(indices.type, table * (indices.lanes // 16)), indices])


class _Vnni(_X86):
    """vpdpbusd: four u8*s8 products added to an i32 lane, no saturation."""

    weight_offset = 128
    _instruction: ClassVar[str]

    def dots(self, e: Emitter, starts: list[Value], steps: Steps, bound: int) -> list[list[Value]]:
        sums: list[list[Value]] = []
        for weights, columns in steps:
            sums = sums or [list(starts) for _ in weights]
            for r in range(len(starts)):
                x = columns(r, 4)
                for w, of_panel in zip(weights, sums, strict=True):
                    of_panel[r] = e.call(self._instruction, vec(I32, self.lanes), [of_panel[r], w, x])
        return sums


class Avx512Vnni(_Vnni):
    name = "avx512_vnni"
    requires = ("avx512f", "avx512bw", "avx512vl", "avx512vnni")
    withholds = ("amx",)
    # Products take activations as broadcast operands, which cost no instruction.  One panel by twelve rows is so 160
    # instructions for 96 products, two by six 220 to 270: prompts are 10 to 28 % slower with those.  Rows of floats lie
    # apart, and their addresses cost more: there two by six are 10 to 20 % faster.  A model in Q4_K_M generates 11 %
    # faster with two panels at a time, matrices in Q8_0 take 10 % less time; four gain 1 to 4 % more, in long chunks.
    lanes, tile, shapes, streams = 16, 12, ((2, 6), (1, 12), (1, 12)), 2
    _instruction = "llvm.x86.avx512.vpdpbusd.512"

    def scaled(self, e: Emitter, x: Value, n: Value) -> Value:
        if x.lanes != self.lanes:
            return super().scaled(e, x, n)
        every, nearest = e.const(I16, -1), e.const(I32, 4)  # lanes, rounding mode
        return e.call("llvm.x86.avx512.mask.scalef.ps.512", x.type, [x, n, x, every, nearest])


class AvxVnni(_Vnni):
    name = "avx_vnni"
    requires = ("avx2", "fma", "f16c", "avxvnni")
    withholds = ("avx512", "amx", "avx10")
    lanes, tile, shapes, streams = 8, 12, ((2, 4), (2, 4), (1, 6)), 2
    _instruction = "llvm.x86.avx512.vpdpbusd.256"


class Avx2(_X86):
    """vpmaddubsw + vpmaddwd: pairs of products are summed in 16 bits, which must not saturate."""

    name = "avx2"
    requires = ("avx2", "fma", "f16c")
    withholds = ("avx512", "amx", "avx10", "avxvnni")
    lanes, tile, shapes, streams = 8, 12, ((2, 4), (2, 4), (1, 6)), 2

    def dots(self, e: Emitter, starts: list[Value], steps: Steps, bound: int) -> list[list[Value]]:
        bytes_, words = vec(I8, 4 * self.lanes), vec(I16, 2 * self.lanes)
        group = 32767 // (2 * ACTIVATION_MAX * bound)  # how many pair sums fit one 16-bit word: 8 of 4 bits, 4 of 5
        ones, numbered = e.const(words, 1), list(enumerate(steps))
        sums = [list(starts) for _ in numbered[0][1][0]]
        partial = [list(starts) for _ in sums]
        for i, (weights, columns) in numbered:
            unsigned = weights
            if bound == 128:  # signed weights: |w| * (x with w's sign); 128 * 127 * 2 = 32512 fits 16 bits
                unsigned = [e.call("llvm.abs.v32i8", bytes_, [w, e.const(ir.IntType(1), 0)]) for w in weights]
            for r in range(len(starts)):
                shared = columns(r, 4)
                for p, (w, u) in enumerate(zip(weights, unsigned, strict=True)):
                    x = e.call("llvm.x86.avx2.psign.b", bytes_, [shared, w]) if bound == 128 else shared
                    pairs = e.call("llvm.x86.avx2.pmadd.ub.sw", words, [u, x])
                    partial[p][r] = partial[p][r] + pairs if i % group else pairs
                    if i % group == group - 1 or i == len(numbered) - 1:
                        four = e.call("llvm.x86.avx2.pmadd.wd", vec(I32, self.lanes), [partial[p][r], ones])
                        sums[p][r] = sums[p][r] + four
            e.settle(sums if i % group == group - 1 else partial)
        return sums
