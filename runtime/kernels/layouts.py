"""What a weight type is to the kernels.  Enters: what a type declares; leaves: sizes, and the sums its products need.

A `FloatLayout` is its elements.  A `BlockLayout` is made of blocks, each of `parts` times 32 columns: a header, from
which the scales are computed, and codes of a few bits.  A type (layouts_32.py, layouts_k.py) says where the file has
the fields of its header and its codes, and how scales come of the header; all else follows from its declarations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .emit import Emitter
from .values import F16, F32, I8, I16, Value, vec

if TYPE_CHECKING:
    from .target import Target

ACTIVATION_MAX = 127  # |activation code| <= 127; a weight code may be -128
BLOCK = 32  # columns that share an activation scale: one part of a weight block
LARGEST_SUM = BLOCK // 2 * ACTIVATION_MAX  # of 16 |codes| of activations

ANCHOR = 1.5 * 2.0**23
"""Where sums of whole numbers start that become floats for nothing (`Target.anchors`): next to it floats are 1 apart.

A sum of |s| < 2^22 that starts at the anchor's bits is the bits of the float ANCHOR + s, and one fma both converts and
scales it: (ANCHOR + s)*scale - ANCHOR*scale.  With the 11 bits of a weight's float16 scale, ANCHOR*scale is exact, so
the result is s*scale rounded once.
"""
ANCHOR_BITS = 0x4B400000


@dataclass(frozen=True, repr=False)
class Correction:
    """What a kernel needs of 32 activations beside their codes and scale, for each of `groups` groups of columns.

    factor    the int32 factor * sum(codes), where integer dots start, so that the code `-factor` counts as zero
    halves    of a factor: not an int32 but two int16, of the columns that are first and last two of four
    sums      the float32 sum(codes), which the group's minimum multiplies, and in blocks of 32 times the scale
    words     of each two groups the sums as int16, which their minimums multiply as whole numbers
    anchored  ANCHOR's bits are added to the int32
    paired    of two groups, the factor's are not two int32 but one of two int16, which wrap (products_paired.py)
    largest   a super-block's record has the int32 largest sum of 16 |codes|, behind the scales
    """

    factor: int = 0
    groups: int = 1
    halves: bool = False
    sums: bool = False
    words: bool = False
    anchored: bool = False
    paired: bool = False
    largest: bool = False

    @property
    def factors(self) -> int:
        """Of 4 bytes, for each row and 32 columns: what comes of the factor."""
        return 1 if self.paired else self.groups * bool(self.factor)

    def words_from(self, parts: int) -> int:
        """Of 4 bytes, for each row: those of all factors and sums, which come before the words."""
        return parts * (self.factors + self.groups * self.sums)

    def values(self, parts: int) -> int:
        """Of 4 bytes, for each row, in a record of so many parts: all factors, then all sums, then all words."""
        return self.words_from(parts) + parts * self.groups // 2 * self.words

    def __repr__(self) -> str:  # part of a kernel's name
        flags = "h" * self.halves + "sum" * self.sums + "words" * self.words + "anchor" * self.anchored
        flags += "pair" * self.paired + "largest" * self.largest
        return f"{self.factor or ''}{flags}x{self.groups}"


@dataclass(frozen=True)
class FloatLayout:
    """A type without blocks: `element` is what the file holds of a column (bf16: the int16 of its bits)."""

    name: str
    element: Any
    is_float: ClassVar[bool] = True
    step_columns: ClassVar[int] = 1

    def file_step_bytes(self) -> int:
        """Bytes of one column of one row in the file."""
        return 4 if self.element == F32 else 2

    def step_bytes(self, lanes: int) -> int:
        """Bytes of one column of a panel."""
        return self.file_step_bytes() * lanes

    def correction(self, target: Target) -> None:
        """Products with float32 rows need no correction."""


class BlockLayout:
    """A type of integer codes: w = scale * (code - zero), or scale * code + minimum.

    header    (offset in the file's block, element type) of the fields that make the scales
    planes    widths of the pieces that a code is stored in, its lowest bits first
    parts     parts of 32 columns in a block;  groups: scales (and minimums) in a part, each of 32/groups columns
    codebook  what each code stands for, when it is not itself
    signed    values are -128..127, not 0..255: x86 wants them stored with the target's weight_offset
    """

    name: ClassVar[str]
    header: ClassVar[tuple[tuple[int, Any], ...]]
    planes: ClassVar[tuple[int, ...]]
    parts: ClassVar[int] = 1
    groups: ClassVar[int] = 1
    zero: ClassVar[int] = 0
    minimum: ClassVar[bool] = False
    codebook: ClassVar[tuple[int, ...] | None] = None
    signed: ClassVar[bool] = False
    is_float: ClassVar[bool] = False

    def scales(self, e: Emitter, header: list[Value]) -> tuple[list[Value], list[Value]]:
        """Compute float32 scales and minimums, parts * groups of each (no minimums where the type has none).

        The fields of the header are scalars of one row or vectors of a panel's lanes; so are the results, and they
        are exact: 11 bits of a float16 times at most 8 of an integer.
        """
        raise NotImplementedError

    def integers(self, e: Emitter, header: list[Value]) -> list[tuple[Value, list[Value]]]:
        """What `scales` multiplies in super-blocks: d and whole numbers of the scales, then of any minimums.

        The factors are float32; the numbers, -128..127, are int32, or int8 where each has a byte of its own.
        """
        raise NotImplementedError

    def codes(self, e: Emitter, block: Value, part: int) -> Value:
        """Read the codes of 32 columns of the file's block at address `block`, as <32 x i8> in order of columns."""
        raise NotImplementedError

    @property
    def step_columns(self) -> int:
        """Columns of one block: one step of a kernel's outer loop."""
        return BLOCK * self.parts

    @property
    def scale_columns(self) -> int:
        """Columns of the activations that share a scale where they meet this type (activations.py)."""
        return BLOCK if self.parts == 1 else self.step_columns

    def header_bytes(self, lanes: int) -> int:
        return sum(ty.width // 8 for _, ty in self.header) * lanes

    def part_bytes(self, lanes: int) -> int:
        """Bytes of the codes of 32 columns."""
        return BLOCK // 8 * sum(self.planes) * lanes

    def step_bytes(self, lanes: int) -> int:
        """Bytes of one block of a panel."""
        return self.header_bytes(lanes) + self.parts * self.part_bytes(lanes)

    def file_step_bytes(self) -> int:
        """Bytes of one block of one row in the file: panels are not larger."""
        return self.step_bytes(1)

    def order(self, together: int) -> list[int]:
        """In which order products take a part's vectors of four columns: group by group, `together` neighbours at once.

        Those that share stored bits follow each other where they can, so that what was loaded is soon done with.
        """
        first = range(0, 8, together)
        turns = sorted(first, key=lambda j: (j * self.groups // 8, *(j % width for width in reversed(self.planes)), j))
        return [j + i for j in turns for i in range(together)]

    def bound(self) -> int:
        """The largest value of a code, as `Target.dots` wants it."""
        return 128 if self.signed else max(self.codebook or [(1 << sum(self.planes)) - 1])

    def centre(self, target: Target) -> int:
        """What products take from the codes of a type with minimums, so that sums in 16 bits hold those of a group."""
        return 0 if self.wide_sums(target) or self.paired(target) else self._centre(target)

    def wide_sums(self, target: Target) -> bool:
        """Whether a group's sum meets its scale in 32 bits, as it does not fit the 16 of `Target.add_scaled`."""
        return self._meets_words(target) and target.has_spare_units and self._centre(target) != 0

    def paired(self, target: Target, opened: bool = True) -> bool:
        """Whether the sums of two groups meet their scales at once, in 16 bits each (products_paired.py).

        They need not fit: activations of half the largest code on average have to (in Q5_K only of a quarter do).
        opened: of panels that are taken apart; others do so only where sums have a correction, which is of pairs then
        (a single row of Q4_K takes 2 to 4 % longer so).
        """
        usual = self.paired_limit() >= LARGEST_SUM // 2 and (opened or self.zero != 0)
        return self._meets_words(target) and target.has_spare_units and not self.signed and usual

    def paired_limit(self) -> int:
        """The largest sum of 16 |codes| of activations with which a group's sum of products is sure to fit 16 bits."""
        code = max(self.zero, self.bound() - self.zero)
        return ((1 << 15) - 1) // (code * 2 // self.groups)

    def _centre(self, target: Target) -> int:
        """As `centre`, were all sums of 16 bits."""
        if not self.minimum or not (target.word_sums or self._meets_words(target)):
            return 0
        columns, half = BLOCK // self.groups // (2 if target.word_sums else 1), (self.bound() + 1) // 2
        fits, half_fits = (largest * ACTIVATION_MAX * columns < 1 << 15 for largest in (self.bound(), half))
        return half if half_fits and not fits else 0

    def whole_scales(self, target: Target) -> bool:
        """Whether products stay whole numbers for a super-block: with any centre a group's sum fits 16 bits."""
        zero = self.zero or self._centre(target)
        largest = max(zero, self.bound() - zero) * ACTIVATION_MAX * BLOCK // self.groups
        return self.paired(target) or (self._meets_words(target) and not self.signed and largest < 1 << 15)

    def whole_minimums(self, target: Target) -> bool:
        """Whether its minimums are whole numbers, too.  Beside a centre it would be as much work as in float32."""
        return self.minimum and self.whole_scales(target) and not self.centre(target)

    def _meets_words(self, target: Target) -> bool:
        """Whether the target has scales of 16 bits for this: minimums wait for a loop of their own, in registers."""
        return self.parts > 1 and target.word_scales and not (self.minimum and target.registers < 32)

    def correction(self, target: Target) -> Correction | None:
        """What products with this type need of the activations."""
        zero = target.weight_offset if self.signed else self.zero or self.centre(target)
        halves = bool(zero) and target.word_sums and not self.signed
        largest = max(zero, self.bound() - zero) * ACTIVATION_MAX * BLOCK // (2 * self.groups)
        assert not halves or largest < 1 << 15, self.name
        anchored = self.anchored(target)
        assert not anchored or max(zero, self.bound()) * ACTIVATION_MAX * BLOCK < 1 << 22, self.name
        if not (zero or self.minimum):
            return None
        words = self.whole_minimums(target)
        sums, paired = self.minimum and not words, self.paired(target)
        assert not (paired and zero) or self.groups == 2, self.name
        largest = paired and self.paired_limit() < LARGEST_SUM
        return Correction(
            -zero, self.groups, halves, sums, words, anchored and bool(zero), paired and bool(zero), largest
        )

    def anchored(self, target: Target) -> bool:
        """Whether products with this type start at ANCHOR: their scales are float16, and each 32 columns have one."""
        return target.anchors and self.parts == 1 and self.header[0][1] == I16


Layout = FloatLayout | BlockLayout


def half(bits: Value) -> Value:
    """The float32 of a float16's bits."""
    return bits.view(vec(F16, bits.lanes)).to(F32)


def nibbles(e: Emitter, address: Value) -> Value:
    """Read 16 bytes: the codes of columns 0..15 are their low nibbles, those of columns 16..31 the high ones."""
    both = e.load(address, vec(I8, BLOCK // 2))
    return (both & 15).pick(list(range(BLOCK)), both >> 4)
