"""Instruction sets of 64-bit ARM.  Enters: bytes of weights and activations; leaves: code of their products.

i8mm, dot-product and plain NEON.

Vectors of 128 bits and 32 registers for them.  Weight bytes count as signed, which all codes fit: 0..63 or -128..127.
Conversions between float16 and float32 belong to every such CPU; a bfloat16 is a shift.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import ClassVar

from .emit import Emitter
from .layouts import BlockLayout
from .target import Columns, Shapes, Steps, Target, WideningTarget
from .values import I8, I32, I64, Value, vec

_BYTES, _WORDS = vec(I8, 16), vec(I32, 4)


class _Arm(Target):
    """Vectors of 128 bits, and the look-up in a table of 16 bytes that every such CPU has."""

    lanes = 4

    def lookup(self, e: Emitter, table: list[int], indices: Value) -> Value:
        """tbl looks up 16 bytes."""
        entries = e.const(_BYTES, table)
        look = "llvm.aarch64.neon.tbl1.v16i8"
        return self._in_parts(indices, 16, lambda part: e.call(look, _BYTES, [entries, part]))


class Neon(_Arm, WideningTarget):
    """smull and sadalp: products are summed in 16 bits as long as they fit, then in pairs in 32."""

    name = "neon"
    requires: ClassVar[tuple[str, ...]] = ("neon",)
    withholds: ClassVar[tuple[str, ...]] = ("dotprod", "i8mm")
    tile = 4
    shapes: ClassVar[Shapes] = ((2, 8), (1, 4), (1, 4))

    def keeps_sums(self, layout: BlockLayout, vectors: int) -> bool:
        """Those of bytes do not: they need two sums of 32 bits for each row beside two of 16."""
        return vectors < 4 or not layout.signed

    def _pairs(self, e: Emitter, words: Value) -> Value:
        return e.call("llvm.aarch64.neon.saddlp.v4i32.v8i16", _WORDS, [words])

    def _joined(self, e: Emitter, low: Value, high: Value) -> Value:
        return e.call("llvm.aarch64.neon.addp.v4i32", _WORDS, [low, high])


class NeonDot(_Arm):
    """sdot: four s8*s8 products added to an i32 lane; the four activations are one of a register's four quads."""

    name = "neon_dotprod"
    requires: ClassVar[tuple[str, ...]] = ("neon", "dotprod")
    withholds: ClassVar[tuple[str, ...]] = ("i8mm",)
    tile, shapes, together = 6, ((2, 8), (1, 6), (1, 6)), 4

    def dots(
        self, e: Emitter, starts: list[Value], steps: Steps, bound: int, halves: bool = False
    ) -> list[list[Value]]:
        sums: list[list[Value]] = []
        for weights, columns in _grouped(steps):
            sums = sums or [list(starts) for _ in weights[0]]
            for r in range(len(starts)):
                self._add_row(e, weights, columns(r, 4 * len(weights)), [(of_panel, r) for of_panel in sums])
        return sums

    def _add_row(self, e: Emitter, weights: list[list[Value]], x: Value, sums: list[tuple[list[Value], int]]) -> None:
        """sums[p] += the products of weights[step][p] with the quads of `x`, <16 x i8>."""
        for step, of_panels in enumerate(weights):
            quad = x.view(_WORDS).pick([step] * 4).view(_BYTES)
            for w, (rows, r) in zip(of_panels, sums, strict=True):
                rows[r] = e.call("llvm.aarch64.neon.sdot.v4i32.v16i8", _WORDS, [rows[r], w, quad])


class NeonI8mm(NeonDot):
    """smmla: two rows of eight s8 with two others, four sums.  A row without a second one meets sdot."""

    name = "neon_i8mm"
    requires = ("neon", "dotprod", "i8mm")
    withholds = ()

    def loads_again(self, layout: BlockLayout, alone: bool) -> int:
        """As `Target`, and tiles load both of a part's halves where vectors are made of more than shifted nibbles."""
        costly = len(layout.planes) > 1 or layout.codebook is not None
        return 4 if costly and not alone else super().loads_again(layout, alone)

    def dots(
        self, e: Emitter, starts: list[Value], steps: Steps, bound: int, halves: bool = False
    ) -> list[list[Value]]:
        pairs = range(len(starts) // 2)
        sums: list[list[Value]] = []
        squares: list[list[list[Value]]] = []  # [panel][pair][half]: of its rows r and s (r0 r1 s0 s1) or (r2 r3 s2 s3)
        for weights, columns in _grouped(steps):
            sums = sums or [list(starts) for _ in weights[0]]
            squares = squares or [[[e.zero(_WORDS)] * 2 for _ in pairs] for _ in weights[0]]
            x = [columns(r, 4 * len(weights)) for r in range(len(starts))]
            for i in range(0, len(weights), 2):  # eight columns
                zipped = [_interleaved(a, b) for a, b in zip(weights[i], weights[i + 1], strict=True)]
                for pair in pairs:
                    both = _eight(x[2 * pair], x[2 * pair + 1], i // 2)
                    for p, both_halves in enumerate(zipped):
                        for h, w in enumerate(both_halves):
                            square = [squares[p][pair][h], both, w]
                            squares[p][pair][h] = e.call("llvm.aarch64.neon.smmla.v4i32.v16i8", _WORDS, square)
            if len(starts) % 2:
                self._add_row(e, weights, x[-1], [(of_panel, len(starts) - 1) for of_panel in sums])
        for of_panel, its_squares in zip(sums, squares, strict=True):
            for pair in pairs:
                low, high = its_squares[pair]
                for r, lanes in ((2 * pair, [0, 1, 4, 5]), (2 * pair + 1, [2, 3, 6, 7])):
                    of_panel[r] = of_panel[r] + low.pick(lanes, high)
        return sums


def _grouped(steps: Steps) -> Iterator[tuple[list[list[Value]], Columns]]:
    """Four steps at a time, or two, or one: [step][panel] weights and the activations from the first one's columns on.

    So one load gives the activations of 16 columns.
    """
    rest = iter(steps)
    while group := list(islice(rest, 4)):
        while group:
            size = 1 << len(group).bit_length() - 1
            yield [weights for weights, _ in group[:size]], group[0][1]
            group = group[size:]


def _interleaved(a: Value, b: Value) -> tuple[Value, Value]:
    """Columns 0..3 and 4..7 of four lanes, <16 x i8> each -> eight columns of lanes 0 and 1, and of lanes 2 and 3."""
    first, second = a.view(_WORDS), b.view(_WORDS)
    return first.pick([0, 4, 1, 5], second).view(_BYTES), first.pick([2, 6, 3, 7], second).view(_BYTES)


def _eight(a: Value, b: Value, i: int) -> Value:
    """Columns 8*i..8*i+7 of two rows, of which <16 x i8> are given."""
    pair = vec(I64, 2)
    return a.view(pair).pick([i, 2 + i], b.view(pair)).view(_BYTES)
