"""Instruction sets.  Enters: the host's CPU name and features; leaves: a `Target` that the emitter writes code for.

A target is its vector width in 32-bit lanes, how many weight panels meet how many activation rows in its registers,
its dot product of unsigned or signed weight bytes with signed activation bytes, and its look-up of bytes in a table of
16.  LLVM picks every other instruction.
`HALFBYTE_ISA` names another target than the host's best one.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import llvmlite.binding as llvm
from llvmlite import ir

from ...errors import UnsupportedError
from .emit import F16, F32, I8, I16, I32, Emitter, Value, vec

# The products of 32 columns, four at a time: the weights of each panel, and the activations of a row.
Steps = Iterable[tuple[list[Value], Callable[[int], Value]]]

ACTIVATION_MAX = 127  # |activation code| <= 127; a weight code may be -128


@dataclass(frozen=True)
class Target:
    """One instruction set and the LLVM name and features of the CPU that code is made for."""

    cpu: str
    features: str  # LLVM's "+a,-b" list

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()  # features the CPU must have
    withholds: ClassVar[tuple[str, ...]] = ()  # prefixes of features LLVM may not use here
    lanes: ClassVar[int]
    tile: ClassVar[int]  # activation rows that share a record (activations.py)
    # Panels by rows of a micro-kernel, for blocks of 32 columns and for super-blocks; rows divide `tile`.  Two panels
    # share each load of activations, but the scales of two super-blocks crowd out the first-level cache.
    shapes: ClassVar[tuple[tuple[int, int], tuple[int, int]]]
    weight_offset: ClassVar[int] = 0  # signed weights are stored as code + offset, so 128 makes them unsigned
    has_half: ClassVar[bool] = True  # the CPU converts between float16 and float32

    def dots(self, e: Emitter, starts: list[Value], steps: Steps, bound: int) -> list[list[Value]]:
        """sums[p][r][lane] = starts[r][lane] + sum over steps and c<4 of weights[p][4*lane+c] * quads(r)[4*lane+c].

        starts <lanes x i32>.  A step has the weights of each panel, <4*lanes x i8>, and a function of a row that gives
        its four activations in every lane, -127..127.  Weights hold 0..bound, or (bound 128) signed codes -128..127
        plus `weight_offset`.  Each step meets all rows before the next: their sums are chains of instructions that run
        side by side, and one load of activations serves all panels.
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

    def pause(self, e: Emitter) -> None:
        """Tell the CPU that this is a spinning loop."""
        if "x86" in llvm.get_process_triple():
            e.call("llvm.x86.sse2.pause", ir.VoidType(), [])
        elif "aarch64" in llvm.get_process_triple() or "arm64" in llvm.get_process_triple():
            e.call("llvm.aarch64.hint", ir.VoidType(), [e.const(I32, 1)])

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
        for weights, quads in steps:
            sums = sums or [list(starts) for _ in weights]
            for r in range(len(starts)):
                x = quads(r)
                for w, of_panel in zip(weights, sums, strict=True):
                    of_panel[r] = e.call(self._instruction, vec(I32, self.lanes), [of_panel[r], w, x])
        return sums


class Avx512Vnni(_Vnni):
    name = "avx512_vnni"
    requires = ("avx512f", "avx512bw", "avx512vl", "avx512vnni")
    withholds = ("amx",)
    lanes, tile, shapes = 16, 12, ((2, 6), (1, 12))
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
    lanes, tile, shapes = 8, 4, ((2, 4), (1, 4))
    _instruction = "llvm.x86.avx512.vpdpbusd.256"


class Avx2(_X86):
    """vpmaddubsw + vpmaddwd: pairs of products are summed in 16 bits, which must not saturate."""

    name = "avx2"
    requires = ("avx2", "fma", "f16c")
    withholds = ("avx512", "amx", "avx10", "avxvnni")
    lanes, tile, shapes = 8, 4, ((2, 4), (1, 4))

    def dots(self, e: Emitter, starts: list[Value], steps: Steps, bound: int) -> list[list[Value]]:
        bytes_, words = vec(I8, 4 * self.lanes), vec(I16, 2 * self.lanes)
        group = 32767 // (2 * ACTIVATION_MAX * bound)  # how many pair sums fit one 16-bit word: 8 of 4 bits, 4 of 5
        ones, numbered = e.const(words, 1), list(enumerate(steps))
        sums = [list(starts) for _ in numbered[0][1][0]]
        partial = [list(starts) for _ in sums]
        for i, (weights, quads) in numbered:
            unsigned = weights
            if bound == 128:  # signed weights: |w| * (x with w's sign); 128 * 127 * 2 = 32512 fits 16 bits
                unsigned = [e.call("llvm.abs.v32i8", bytes_, [w, e.const(ir.IntType(1), 0)]) for w in weights]
            for r in range(len(starts)):
                shared = quads(r)
                for p, (w, u) in enumerate(zip(weights, unsigned, strict=True)):
                    x = e.call("llvm.x86.avx2.psign.b", bytes_, [shared, w]) if bound == 128 else shared
                    pairs = e.call("llvm.x86.avx2.pmadd.ub.sw", words, [u, x])
                    partial[p][r] = partial[p][r] + pairs if i % group else pairs
                    if i % group == group - 1 or i == len(numbered) - 1:
                        four = e.call("llvm.x86.avx2.pmadd.wd", vec(I32, self.lanes), [partial[p][r], ones])
                        sums[p][r] = sums[p][r] + four
        return sums


class Portable(Target):
    """Plain widening arithmetic on 128-bit vectors: any CPU that LLVM knows."""

    name = "portable"
    withholds = ("avx", "amx", "f16c", "fma", "vaes", "vpclmulqdq", "sha512", "sm3", "sm4")  # all of AVX: some imply it
    lanes, tile, shapes = 4, 4, ((1, 4), (1, 4))
    has_half = False

    def dots(self, e: Emitter, starts: list[Value], steps: Steps, bound: int) -> list[list[Value]]:
        group = 32767 // (ACTIVATION_MAX * bound)  # how many products fit one 16-bit word: 2 of 8 bits, 4 of 6, 17 of 4
        numbered = list(enumerate(steps))
        sums = [list(starts) for _ in numbered[0][1][0]]
        partial = [list(starts) for _ in sums]
        for i, (weights, quads) in numbered:
            for r in range(len(starts)):
                x = quads(r).to(I16)
                for p, w in enumerate(weights):
                    products = w.to(I16) * x
                    partial[p][r] = partial[p][r] + products if i % group else products
                    if i % group == group - 1 or i == len(numbered) - 1:
                        for c in range(4):
                            quarter = partial[p][r].pick([4 * lane + c for lane in range(self.lanes)])
                            sums[p][r] = sums[p][r] + quarter.to(I32)
        return sums


TARGETS: dict[str, type[Target]] = {t.name: t for t in (Avx512Vnni, AvxVnni, Avx2, Portable)}


@functools.cache
def host_features() -> dict[str, bool]:
    """Return LLVM's feature names of this CPU and whether it has each."""
    return dict(llvm.get_host_cpu_features())


def runnable(have: Mapping[str, bool] | None = None) -> list[str]:
    """Return the names of the targets that a CPU with the features `have` (None: this CPU's) runs, the best first."""
    features = host_features() if have is None else have
    return [t.name for t in TARGETS.values() if all(features.get(f, False) for f in t.requires)]


def make_target(name: str, have: Mapping[str, bool] | None = None) -> Target:
    """Return the target called `name` for this CPU, or for one with the features `have`.

    Raises UnsupportedError, which lists those that run, when there is no such target or the CPU lacks one of its
    instructions.
    """
    features, names = host_features() if have is None else have, runnable(have)
    if name not in names:
        lacks = [f for f in TARGETS[name].requires if not features.get(f, False)] if name in TARGETS else []
        what = f"instruction set (this CPU lacks {', '.join(lacks)})" if lacks else "instruction set"
        raise UnsupportedError(what, name, names, where="HALFBYTE_ISA")
    kind = TARGETS[name]
    flags = (
        f"{'+' if on and not f.startswith(kind.withholds or ('?',)) else '-'}{f}" for f, on in sorted(features.items())
    )
    return kind(cpu=llvm.get_host_cpu_name(), features=",".join(flags))


@functools.cache
def host_target() -> Target:
    """Return the best target of this CPU, or the one that HALFBYTE_ISA names."""
    return make_target(os.environ.get("HALFBYTE_ISA") or runnable()[0])
