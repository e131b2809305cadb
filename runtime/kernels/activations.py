"""Activations as integer products read them.  Enters: a kernel's float32 results, 32 columns at a time; leaves: float32
rows, or tiles of int8 codes with their scales, or both (`Sink`).

A tile is `Target.tile` rows.  For each 32 or 256 columns, as many as share a scale, one record holds what a
micro-kernel reads of all its rows:

    of 32 columns:   for each row: 32 int8 codes, float32 scale
                     for each correction: of its factor [group, row], its sums [group, row]
    of 256 columns:  int8 codes [part, row, 32], float32 scale [row], int32 largest [row] where the sink tells it
                     for each correction: of its factor [part, group, row], its sums [part, group, row], its words
                     [two groups, row]

so that every address in the micro-kernel is one of two pointers plus a constant (of scales for 256 columns, of a third
one).  Rows apart cost a pointer each, spills of those, and collisions in the cache where strides are powers of two: a
third of the speed of prompts.

Types with blocks of 32 columns meet a scale for each 32, absmax / 127 rounded to float16 as in llama.cpp's Q8_0; types
with super-blocks meet one for 256, in float32 as in its Q8_K, so that a product is scaled once in 256 columns.  Both
then pick llama.cpp's tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .emit import CACHE_LINE, Emitter
from .layouts import ACTIVATION_MAX, ANCHOR_BITS, BLOCK, Correction
from .records import Fields
from .values import F16, F32, I8, I16, I32, Value, vec

# float32 rows `out` of out_stride bytes; tiles `codes` of tile_stride bytes, with records of block_stride bytes.
SINK_FIELDS = ("out", "out_stride", "codes", "tile_stride", "block_stride")


@dataclass(frozen=True)
class Sink:
    """Which outputs a kernel writes: float32 rows, and tiles of int8 codes with these corrections.

    columns: how many share a scale, 32 or 256.
    """

    float32: bool
    codes: bool
    corrections: tuple[Correction, ...] = ()
    columns: int = BLOCK

    def params(self) -> tuple[bool, bool, tuple[Correction, ...], int]:
        return self.float32, self.codes, self.corrections, self.columns

    @property
    def parts(self) -> int:
        """Parts of 32 columns in a record."""
        return self.columns // BLOCK

    @property
    def tells_largest(self) -> bool:
        """Whether records have the largest sum of 16 |codes| (`Correction.largest`)."""
        return any(correction.largest for correction in self.corrections)

    def correction_at(self, correction: Correction, tile: int) -> int:
        """Where the values of `correction` start in a record, in bytes."""
        before = self.corrections[: self.corrections.index(correction)]
        return tile * (self.columns + 4 + 4 * self.tells_largest + 4 * sum(c.values(self.parts) for c in before))

    def block_bytes(self, tile: int) -> int:
        """Bytes of a record; those of 256 columns start at a cache line if the first does."""
        values = sum(c.values(self.parts) for c in self.corrections)
        size = tile * (self.columns + 4 + 4 * self.tells_largest + 4 * values)
        return size if self.parts == 1 else -(-size // CACHE_LINE) * CACHE_LINE


def row_bytes(columns: int) -> int:
    """From a row's 32 codes in a record to the next row's; their scale is between them where 32 columns share one."""
    return BLOCK + 4 if columns == BLOCK else BLOCK


def int8_block(e: Emitter, x: Value) -> tuple[Value, Value]:
    """<32 x f32> -> (int32 codes -127..127, float32 scale that float16 holds)."""
    largest = e.largest_magnitude(x)  # NaN or infinity: so is the scale, and all that comes of the block is NaN
    positive = largest > 0.0
    inverse = e.select(positive, float(ACTIVATION_MAX) / e.select(positive, largest, 1.0), 0.0)
    codes = e.round(x * inverse.splat(BLOCK)).to(I32)
    return codes, (largest * (1.0 / ACTIVATION_MAX)).to(F16).to(F32)


def put(e: Emitter, sink: Sink, a: Fields, row: Value, first: Value, element: Callable[[Value], Value]) -> None:
    """Write sink.columns columns of a row, from block `first` on; element(block) computes <32 x f32>."""
    tile = e.target.tile
    record, in_tile = a.codes + row // tile * a.tile_stride + first // sink.parts * a.block_stride, row % tile
    if sink.columns == BLOCK:
        x = element(first)
        _put_float32(e, sink, a, row, first, x)
        if sink.codes:
            codes, scale = int8_block(e, x)
            e.store(scale, record + in_tile * row_bytes(BLOCK) + BLOCK)
            _put_codes(e, sink, record, in_tile, e.i64(0), codes, scale)
        return
    held, largest = e.scratch(4 * sink.columns), e.var(e.const(I32, 0))
    with e.loop(0, sink.parts) as part:
        x = element(first + part)
        _put_float32(e, sink, a, row, first + part, x)
        e.store(x, held + part * (4 * BLOCK))
        largest.set(e.max(largest.value, e.largest_magnitude(x).view(I32)))  # NaN has the largest bits
    absmax = largest.value.view(F32)
    positive = absmax > 0.0
    inverse = e.select(positive, float(ACTIVATION_MAX) / e.select(positive, absmax, 1.0), 0.0)
    scale = e.select(inverse > 0.0, 1.0 / inverse, absmax * 0.0)  # 0, or NaN where infinity or NaN is in the block
    scale_at = record + tile * sink.columns + in_tile * 4
    e.store(scale, scale_at)
    most = e.var(e.zero(vec(I32, 2)))
    with e.loop(0, sink.parts) as part:
        codes = e.round(e.load(held + part * (4 * BLOCK), vec(F32, BLOCK)) * inverse.splat(BLOCK)).to(I32)
        most.set(e.max(most.value, _put_codes(e, sink, record, in_tile, part, codes, scale)))
    if sink.tells_largest:
        e.store(e.largest(most.value), scale_at + 4 * tile)


def put_tail(e: Emitter, sink: Sink, a: Fields, row: Value, first: Value, element: Callable[[Value], Value]) -> None:
    """Columns that fill no block, from `first` on: float32 only (a format with blocks never has them)."""
    if not sink.float32:
        return
    with e.loop(first, a.columns) as k:
        e.store(element(k), a.out + row * a.out_stride + k * 4)


def _put_float32(e: Emitter, sink: Sink, a: Fields, row: Value, block: Value, x: Value) -> None:
    if sink.float32:
        e.store(x, a.out + row * a.out_stride + block * (4 * BLOCK))


def _put_codes(e: Emitter, sink: Sink, record: Value, in_tile: Value, part: Value, codes: Value, scale: Value) -> Value:
    """Write 32 codes <32 x i32> of a row, and what comes of them, to their places in the record.

    Returns the sums of |codes| of both halves <2 x i32> where the sink tells the largest, otherwise zeros.
    """
    tile, magnitudes = e.target.tile, e.zero(vec(I32, 2))
    e.store(codes.to(I8), record + part * (tile * BLOCK) + in_tile * row_bytes(sink.columns))
    if sink.corrections:
        halves = _sums_of_halves(codes)
        if sink.tells_largest:  # both sums at once
            both = _sums_of_halves(codes + (e.max(codes, 0 - codes) << 16))
            halves = both.to(I16).to(I32)
            magnitudes = (both - halves) >> 16
        low, high = halves[0], halves[1]
    for correction in sink.corrections:
        place = record + in_tile * 4 + sink.correction_at(correction, tile)
        totals, values = [low, high] if correction.groups == 2 else [low + high], []
        if correction.halves:
            values = [_halves(e, codes, g, correction) for g in range(correction.groups)]
        elif correction.paired:
            values = [(low * correction.factor << 16) | ((high * correction.factor) & 0xFFFF)]
        elif correction.factor:
            values = [total * correction.factor + correction.anchored * ANCHOR_BITS for total in totals]
        for i, value in enumerate(values):
            e.store(value, place + (part * correction.factors + i) * (4 * tile))
        if correction.sums:
            place_of_sums = place + 4 * tile * sink.parts * correction.factors
            for i, total in enumerate(totals):
                of_group = total.to(F32) if sink.columns > BLOCK else total.to(F32) * scale
                e.store(of_group, place_of_sums + (part * correction.groups + i) * (4 * tile))
        if correction.words:
            words = place + 4 * tile * correction.words_from(sink.parts)
            for i, total in enumerate(totals):
                group = part * correction.groups + i
                e.store(total.to(I16), words + group // 2 * (4 * tile) + group % 2 * 2)
    return magnitudes


def _sums_of_halves(x: Value) -> Value:
    """Sums of the first and of the last half of a vector, side by side."""
    while x.lanes > 2:
        size, half = x.lanes // 4, x.lanes // 2
        first = [*range(size), *range(half, half + size)]
        x = x.pick(first) + x.pick([i + size for i in first])
    return x


def _halves(e: Emitter, codes: Value, group: int, correction: Correction) -> Value:
    """The factor times the sums of a group's columns: as low int16 of those first two of four, as high of others."""
    size = BLOCK // correction.groups
    columns = range(group * size, (group + 1) * size)
    first, last = (e.sum(codes.pick([k for k in columns if k // 2 % 2 == half])) for half in (0, 1))
    return ((first * correction.factor) & 0xFFFF) | ((last * correction.factor) << 16)
