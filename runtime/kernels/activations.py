"""Activations as integer products read them.  Enters: a kernel's float32 results, 32 columns at a time; leaves: float32
rows, or tiles of int8 codes with their scales, or both (`Sink`).

A tile is `Target.tile` rows.  For each 32 columns, one record holds what a micro-kernel reads of all its rows:

    for each row: 32 int8 codes, float32 scale | for each correction: int32 or float32 [group, row]

so that every address in the micro-kernel is one of two pointers plus a constant.  Rows apart cost a pointer each,
spills of those, and collisions in the cache where strides are powers of two: a third of the speed of prompts.
The scale is absmax / 127 rounded to float16, as llama.cpp's Q8_0, so that both pick the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from .emit import F16, F32, I8, I32, Emitter, Value
from .layouts import BLOCK, Correction
from .records import Fields
from .targets import ACTIVATION_MAX

# float32 rows `out` of out_stride bytes; tiles `codes` of tile_stride bytes, with records of block_stride bytes.
ROW_BYTES = BLOCK + 4  # of a row in a record: codes and scale
SINK_FIELDS = ("out", "out_stride", "codes", "tile_stride", "block_stride")


@dataclass(frozen=True)
class Sink:
    """Which outputs a kernel writes: float32 rows, and tiles of int8 codes with these corrections."""

    float32: bool
    codes: bool
    corrections: tuple[Correction, ...] = ()

    def params(self) -> tuple[bool, bool, tuple[Correction, ...]]:
        return self.float32, self.codes, self.corrections

    def correction_at(self, correction: Correction, tile: int) -> int:
        """Where the values of `correction` start in a record, in bytes."""
        before = self.corrections[: self.corrections.index(correction)]
        return tile * (ROW_BYTES + 4 * sum(c.groups for c in before))

    def block_bytes(self, tile: int) -> int:
        """Bytes of a record."""
        return tile * (ROW_BYTES + 4 * sum(c.groups for c in self.corrections))


def int8_block(e: Emitter, x: Value) -> tuple[Value, Value]:
    """<32 x f32> -> (int32 codes -127..127, float32 scale that float16 holds)."""
    largest = e.largest_magnitude(x)  # NaN or infinity: so is the scale, and all that comes of the block is NaN
    positive = largest > 0.0
    inverse = e.select(positive, float(ACTIVATION_MAX) / e.select(positive, largest, 1.0), 0.0)
    codes = e.round(x * inverse.splat(BLOCK)).to(I32)
    return codes, (largest * (1.0 / ACTIVATION_MAX)).to(F16).to(F32)


def put(e: Emitter, sink: Sink, a: Fields, row: Value, block: Value, x: Value) -> None:
    """Write one block <32 x f32> of a row to the sink."""
    if sink.float32:
        e.store(x, a.out + row * a.out_stride + block * (4 * BLOCK))
    if not sink.codes:
        return
    codes, scale = int8_block(e, x)
    tile = e.target.tile
    record, in_tile = a.codes + row // tile * a.tile_stride + block * a.block_stride, row % tile
    e.store(codes.to(I8), record + in_tile * ROW_BYTES)
    e.store(scale, record + in_tile * ROW_BYTES + BLOCK)
    if sink.corrections:
        low, high = (e.sum(codes.pick(list(range(k, k + BLOCK // 2)))) for k in (0, BLOCK // 2))
    for correction in sink.corrections:
        place = record + in_tile * 4 + sink.correction_at(correction, tile)
        for g, total in enumerate([low, high] if correction.groups == 2 else [low + high]):
            value = total.to(F32) * scale if correction.factor is None else total * correction.factor
            e.store(value, place + 4 * tile * g)
