"""Weights as the kernels read them.  Enters: rows of GGUF blocks as the file holds them; leaves: panels.

A panel is `lanes` rows interleaved so that one vector load feeds all lanes; decode and prefill read the same panels,
which take as many bytes as the file's rows.  With n lanes, a block of an integer type is

    header: each field of Layout.header, n times | codes of 32 columns | codes of the next 32 | ...

The codes of 32 columns are eight vectors of 4n bytes; vector j holds columns 4j..4j+3 of every lane, in lane i's four
bytes.  They are stored in planes, one after the other: a plane of w bits is w vectors of 4n bytes, and in each byte
of its vector i, bits f*w.. are those of vector j = f*w + i.  So 4-bit codes are four vectors, whose low nibbles are
vectors 0..3 and high nibbles 4..7; a fifth bit is one more, of whose bytes bit j belongs to vector j.
Float types are `columns x n` elements: column k of all lanes side by side.
Rows beyond the matrix are zero.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Iterator

from .emit import Emitter
from .jit import Kernel
from .layouts import BLOCK, BlockLayout, FloatLayout, Layout
from .layouts_32 import IQ4_NL, MXFP4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
from .layouts_k import IQ4_XS, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K
from .records import Record
from .values import F16, F32, I8, I16, I32, Value, Variable, vec

# count: matrices of n_panels panels and `rows` rows each, one after the other on both sides.
PACK = Record("source", "panels", "rows", "row_bytes", "steps", "n_panels", "count")

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        FloatLayout("f32", F32),
        FloatLayout("f16", F16),
        FloatLayout("bf16", I16),
        Q8_0(), Q4_0(), Q4_1(), Q5_0(), Q5_1(), IQ4_NL(), MXFP4(),
        Q2_K(), Q3_K(), Q4_K(), Q5_K(), Q6_K(), IQ4_XS(),
    )
}  # fmt: skip


def load_float(e: Emitter, layout: FloatLayout, address: Value, n: int) -> Value:
    """Read `n` consecutive elements of a float type as float32."""
    if layout.element == I16:
        return (e.load(address, vec(I16, n)).zext(I32) << 16).view(vec(F32, n))
    return e.load(address, vec(layout.element, n)).to(F32)


def _places(planes: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """For each plane: its width, the bit of the code where it starts, and a mask of its bits in four codes."""
    start = 0
    for width in planes:
        yield width, start, (((1 << width) - 1) << start) * 0x01010101 if width < 8 else -1
        start += width


def _shifted(word: Value, left: int) -> Value:
    return word << left if left >= 0 else word >> -left


def unpack(
    e: Emitter, layout: BlockLayout, codes: Variable, order: Iterable[int] = range(8), again: int = 8
) -> Iterator[Value]:
    """Read the codes of 32 columns of a panel: eight vectors <4n x i8>; of signed types plus target.weight_offset.

    Each is taken apart when it is asked for: all at once would need more registers than there are.  codes: the address
    of the part; order: of vectors; again: after how many of them what they share is loaded again, so that no register
    need hold it.
    """
    n, target = e.target.lanes, e.target
    offset = target.weight_offset if layout.signed else 0
    for done, j in enumerate(order):
        if done % again == 0:
            if done:
                codes.set(e.opaque(codes.value))
            load = functools.cache(lambda i, at=codes.value: e.load(at + 4 * n * i, vec(I32, n)))
        pieces, first = [], 0
        for width, start, mask in _places(layout.planes):
            pieces.append(_shifted(load(first + j % width), start - j // width * width) & mask)
            first += width
        vector = functools.reduce(operator.or_, pieces).view(vec(I8, 4 * n))
        if layout.codebook is not None:
            table = [(value + offset + 128) % 256 - 128 for value in layout.codebook]
            vector = target.lookup(e, table, vector)
        yield vector


def _stage_block(e: Emitter, layout: BlockLayout, source: Value, block: Value, lane: Value, words: Value) -> None:
    """Take one row's block from the file: its header to its lane of the panel, its codes, a byte each, to `words`.

    words: of each part, of each lane, eight int32; word j holds columns 4j..4j+3.
    """
    n = e.target.lanes
    for offset, ty in layout.header:
        size = ty.width // 8
        e.copy(source + offset, block + lane * size, ty)
        block = block + n * size
    for part in range(layout.parts):
        codes = layout.codes(e, source, part)
        if layout.signed and layout.codebook is None and e.target.weight_offset:
            codes = codes ^ -128  # adds 128
        e.store(codes, words + part * (BLOCK * n) + lane * BLOCK)


def _store_part(e: Emitter, layout: BlockLayout, words: Value, panel: Value) -> None:
    """Write the codes of 32 columns of all lanes: from eight words a lane to the planes of the panel."""
    n = e.target.lanes
    rows = [e.load(words + BLOCK * lane, vec(I32, 8)) for lane in range(n)]
    while len(rows) > 1:  # zip rows that are half of the lanes apart, until each word has its lanes side by side
        half, size = len(rows) // 2, rows[0].lanes
        together = [i // 2 + size * (i % 2) for i in range(2 * size)]
        rows = [a.pick(together, b) for a, b in zip(rows[:half], rows[half:], strict=True)]
    word = [rows[0].pick(list(range(j * n, (j + 1) * n))) for j in range(8)]
    for width, start, mask in _places(layout.planes):
        for i in range(width):
            stored = e.zero(vec(I32, n))
            for first in range(0, 8, width):
                stored = stored | _shifted(word[first + i] & mask, first - start)
            e.store(stored, panel)
            panel = panel + 4 * n


def _pack_blocks(
    e: Emitter, layout: BlockLayout, source: Value, row_bytes: Value, panel: Value, rows: Value, steps: Value
) -> None:
    """Fill a panel from `rows` rows of blocks.

    A block of all rows is staged and turned over in registers: writing each row's words to its lane took twice as long
    (two threads read 8 instead of 3.3 GB/s of Q8_0, 6 instead of 3 of Q6_K, 5 instead of 4.5 of Q4_0).
    """
    n = e.target.lanes
    staged = BLOCK * n * layout.parts
    words = e.scratch(staged)
    with e.when(rows < n), e.loop(0, staged, 8) as at:
        e.store(e.i64(0), words + at)
    with e.loop(0, steps) as i:
        block = panel + i * layout.step_bytes(n)
        with e.loop(0, rows) as lane:
            _stage_block(e, layout, source + lane * row_bytes + i * layout.file_step_bytes(), block, lane, words)
        codes = block + layout.header_bytes(n)
        with e.loop(0, layout.parts) as part:
            _store_part(e, layout, words + part * (BLOCK * n), codes + part * layout.part_bytes(n))


def pack(e: Emitter, name: str) -> None:
    """Program step: rows of the file -> panels; a task is one panel.  Record: PACK."""
    layout, n = LAYOUTS[name], e.target.lanes
    record, _, _, ticket = e.args
    a = PACK.read(e, record)
    with e.repeat_while() as go_on_if:
        task = e.atomic_add(ticket, e.i64(1))
        go_on_if(task < a.n_panels * a.count)
        matrix, p = task // a.n_panels, task % a.n_panels
        source = a.source + (matrix * a.rows + p * n) * a.row_bytes
        panel = a.panels + task * a.steps * layout.step_bytes(n)
        rows = e.min(a.rows - p * n, n)
        if isinstance(layout, BlockLayout):
            _pack_blocks(e, layout, source, a.row_bytes, panel, rows, a.steps)
        else:
            size = layout.file_step_bytes()
            with e.loop(0, rows) as lane, e.loop(0, a.steps) as i:
                e.copy(source + lane * a.row_bytes + i * size, panel + (i * n + lane) * size, layout.element)


def pack_kernel(name: str) -> Kernel:
    """The kernel that packs GGUF type `name`; panels must be zero before."""
    return Kernel(pack, (name,))


def block_values(e: Emitter, layout: BlockLayout, block: Value) -> Iterator[Value]:
    """Read a block of one row as the file holds it: <32 x f32> for each part."""
    scales, minimums = layout.scales(e, [e.load(block + offset, ty) for offset, ty in layout.header])

    def spread(groups: list[Value]) -> Value:
        first, last = groups[0].splat(BLOCK), groups[-1].splat(BLOCK)
        return first.pick([k if k < BLOCK // 2 else BLOCK + k for k in range(BLOCK)], last)

    for part in range(layout.parts):
        codes = layout.codes(e, block, part)
        if layout.codebook is not None:
            codes = e.target.lookup(e, list(layout.codebook), codes)
        here = slice(part * layout.groups, (part + 1) * layout.groups)
        values = (codes.to(I32) - layout.zero).to(F32) * spread(scales[here])
        yield values + spread(minimums[here]) if minimums else values


def n_panels(rows: int, lanes: int) -> int:
    """Panels that `rows` matrix rows need."""
    return -(-rows // lanes)
