"""Weights as the kernels read them.  Enters: rows of GGUF blocks as the file holds them; leaves: panels.

A panel is `lanes` rows interleaved so that one vector load feeds all lanes; decode and prefill read the same panels.
With n lanes, a block of 32 columns of an integer format is

    n float16 scales | n float16 minimums (q4_1, q5_1) | codes | n x 4 bytes of fifth bits (q5_0, q5_1)

Codes are vectors of 4n bytes: lane i's four bytes are four consecutive columns.  8-bit formats have eight of them
(columns 4j..4j+3 in vector j); 4- and 5-bit formats have four, whose low nibbles are vector j and high nibbles vector
j+4.  In the fifth bits, bit j of byte 4i+c is that of column 4j+c of lane i.
Float formats are `columns x n` elements: column k of all lanes side by side.
Rows beyond the matrix are zero.
"""

from __future__ import annotations

from dataclasses import dataclass

from .emit import F16, F32, I8, I16, I32, Emitter, Value, vec
from .jit import Kernel
from .records import Record
from .targets import Target

BLOCK = 32  # columns that share one scale

PACK = Record("source", "panels", "rows", "row_bytes", "steps", "n_panels")


@dataclass(frozen=True)
class Layout:
    """How one GGUF type looks in the file and in panels.

    bits      4, 5 or 8 for integer codes; 16 or 32 for floats
    minimum   the block has a minimum beside its scale: w = d*q + m, otherwise w = d*(q - zero)
    """

    name: str
    bits: int
    minimum: bool = False
    element: object = None  # the LLVM type of a float format's elements in the file

    @property
    def is_float(self) -> bool:
        return self.element is not None

    @property
    def step_columns(self) -> int:
        """Columns that one step of a kernel's inner loop covers."""
        return 1 if self.is_float else BLOCK

    @property
    def zero(self) -> int:
        """The code that stands for 0 where there is no minimum."""
        return {4: 8, 5: 16, 8: 0}[self.bits]

    @property
    def scale_bytes(self) -> int:
        return 4 if self.minimum else 2

    def file_step_bytes(self) -> int:
        """Bytes of one row and step in the file."""
        return self.bits // 8 if self.is_float else self.scale_bytes + BLOCK * self.bits // 8

    def step_bytes(self, lanes: int) -> int:
        """Bytes of one panel and step."""
        return self.file_step_bytes() * lanes

    def bound(self) -> int:
        """The largest code, as `Target.dot_block` wants it."""
        return 128 if self.bits == 8 else (1 << self.bits) - 1

    def correction(self, target: Target) -> int | str | None:
        """What the kernel needs of an activation block beside its codes and scale.

        A number f: the int32 f * sum(codes), where integer dots start; "sum": the float32 scale * sum(codes), which
        the block's minimum multiplies; None: nothing.
        """
        if self.is_float:
            return None
        if self.minimum:
            return "sum"
        factor = -(self.zero if self.bits < 8 else target.weight_offset)
        return factor or None


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("f32", 32, element=F32),
        Layout("f16", 16, element=F16),
        Layout("bf16", 16, element=I16),
        Layout("q8_0", 8),
        Layout("q4_0", 4),
        Layout("q4_1", 4, minimum=True),
        Layout("q5_0", 5),
        Layout("q5_1", 5, minimum=True),
    )
}


def load_float(e: Emitter, layout: Layout, address: Value, n: int) -> Value:
    """Read `n` consecutive elements of a float format as float32."""
    if layout.name == "bf16":
        return (e.load(address, vec(I16, n)).zext(I32) << 16).view(vec(F32, n))
    return e.load(address, vec(layout.element, n)).to(F32)


def unpack(e: Emitter, layout: Layout, step: Value) -> tuple[Value, Value | None, list[Value]]:
    """Read one step of an integer panel.

    Returns the scales <n x f32>, the minimums <n x f32> or None, and eight code vectors <4n x i8>; vector j holds
    columns 4j..4j+3 of every lane, 8-bit codes plus the target's weight_offset.
    """
    n = e.target.lanes
    words, codes = vec(I32, n), step + layout.scale_bytes * n
    scales = e.load(step, vec(F16, n)).to(F32)
    minimums = e.load(step + 2 * n, vec(F16, n)).to(F32) if layout.minimum else None
    if layout.bits == 8:
        return scales, minimums, [e.load(codes + 4 * n * j, vec(I8, 4 * n)) for j in range(8)]
    packed = [e.load(codes + 4 * n * j, words) for j in range(4)]
    vectors = [p & 0x0F0F0F0F for p in packed] + [(p >> 4) & 0x0F0F0F0F for p in packed]
    if layout.bits == 5:
        fifth = e.load(codes + 16 * n, words)
        vectors = [v | ((fifth << (4 - j) if j <= 4 else fifth >> (j - 4)) & 0x10101010) for j, v in enumerate(vectors)]
    return scales, minimums, [v.view(vec(I8, 4 * n)) for v in vectors]


def _fifth_bits(e: Emitter, high: Value) -> Value:
    """Turn the file's 32 bits (bit i for column i) into the panel's order (byte c, bit j for column 4j+c)."""
    out = e.const(I32, 0)
    for column in range(BLOCK):
        j, c = divmod(column, 4)
        out = out | (((high >> column) & 1) << (8 * c + j))
    return out


def _pack_step(e: Emitter, layout: Layout, source: Value, panel: Value, lane: Value) -> None:
    """Copy one row's step from the file to its lane."""
    n = e.target.lanes
    if layout.is_float:
        size = layout.bits // 8
        e.copy(source, panel + lane * size, I32 if size == 4 else I16)
        return
    for i in range(layout.scale_bytes // 2):
        e.copy(source + 2 * i, panel + 2 * n * i + lane * 2, I16)
    codes, place = source + layout.scale_bytes, panel + layout.scale_bytes * n + lane * 4
    if layout.bits == 5:
        e.store(_fifth_bits(e, e.load(codes, I32)), place + 16 * n)
        codes = codes + 4
    shift = 0x01010101 * e.target.weight_offset if layout.bits == 8 else 0
    for j in range(8 if layout.bits == 8 else 4):
        e.store(e.load(codes + 4 * j, I32) ^ (shift - (1 << 32) if shift >> 31 else shift), place + 4 * n * j)


def pack(e: Emitter, name: str) -> None:
    """Program step: rows of the file -> panels; a task is one panel.  Record: PACK."""
    layout, n = LAYOUTS[name], e.target.lanes
    record, _, _, ticket = e.args
    a = PACK.read(e, record)
    step_bytes, file_bytes = layout.step_bytes(n), layout.file_step_bytes()
    with e.repeat_while() as go_on_if:
        p = e.atomic_add(ticket, e.i64(1))
        go_on_if(p < a.n_panels)
        panel = a.panels + p * a.steps * step_bytes
        with e.loop(0, n) as lane:
            row = p * n + lane
            with e.when(row < a.rows), e.loop(0, a.steps) as i:
                _pack_step(e, layout, a.source + row * a.row_bytes + i * file_bytes, panel + i * step_bytes, lane)


def pack_kernel(name: str) -> Kernel:
    """The kernel that packs GGUF type `name`; panels must be zero before."""
    return Kernel(pack, (name,))


def element_rows(e: Emitter, layout: Layout, address: Value, n: int = BLOCK) -> Value:
    """Read `n` (32 for block formats) consecutive columns of one row as the file holds them, as <n x f32>."""
    if layout.is_float:
        return load_float(e, layout, address, n)
    scale = e.load(address, F16).to(F32).splat(BLOCK)
    codes = address + layout.scale_bytes
    if layout.bits == 8:
        return e.load(codes, vec(I8, BLOCK)).to(I32).to(F32) * scale
    if layout.bits == 5:
        high, codes = e.load(codes, I32), codes + 4
    nibbles = e.load(codes, vec(I8, BLOCK // 2))
    both = (nibbles & 15).pick(list(range(BLOCK)), nibbles >> 4).zext(I32)
    if layout.bits == 5:
        both = both | (((high.splat(BLOCK) >> e.const(vec(I32, BLOCK), list(range(BLOCK)))) & 1) << 4)
    if layout.minimum:
        minimum = e.load(address + 2, F16).to(F32).splat(BLOCK)
        return e.fma(both.to(F32), scale, minimum)
    return (both - layout.zero).to(F32) * scale


def n_panels(rows: int, lanes: int) -> int:
    """Panels that `rows` matrix rows need."""
    return -(-rows // lanes)
