"""What every group of operations of a program is made of.  Enters: kernels and their arguments, in order; leaves: a
`Program`: int64 [n_steps, 2] of (kernel address, record address) over buffers made once.

Buffers (buffers.py) hold `max_rows` rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..kernels import elementwise as ew
from ..kernels.jit import Kernel, Library
from ..kernels.layouts import BlockLayout
from ..kernels.matmul import MATMUL, MATRIX, matmul_kernel, tallest_tile
from ..kernels.opened import workspace
from .adapters import AdapterMatrices, AdapterScales
from .batch import N_ITEMS, N_OUTPUT_ITEMS, N_OUTPUTS, N_ROWS, StepInputs
from .buffers import Activations, Buffers, Rows, Tiles
from .kv_pages import PagePool
from .memory import Allocate, Memory
from .weights import Matrix

L2_BYTES = 768 << 10  # of activation rows that one pass over a chunk of panels keeps close
# The same where panels are taken apart a few blocks at a time: of those columns, and of sums that wait.  On Zen 5
# (1 MiB of second-level cache) 300 to 530 KiB do alike, 660 and more cost 3 to 10 %.
OPENED_L2_BYTES = 400 << 10
TASK_BYTES = 512 << 10  # of weights in one task, at most; 128 KiB cost decoding 2 to 3 % (Zen 5)


@dataclass
class Program:
    """`steps` int64 [n_steps, 2]; everything that the addresses in it point to is kept here."""

    steps: NDArray[np.int64]
    keep: list[object] = field(repr=False)


@dataclass(frozen=True)
class Blocks:
    """Which rows meet which experts: the list at `address` (kernels/experts.py), blocks of at most `rows`.

    used: experts that a row meets.
    """

    address: int
    rows: int
    used: int


class Steps:
    """Lays out a program for up to `max_rows` rows of which `max_outputs` give logits."""

    def __init__(
        self, library: Library, threads: int, inputs: StepInputs, pool: PagePool, max_outputs: int,
        allocate: Allocate = Memory, adapters: AdapterMatrices | None = None,
    ):  # fmt: skip
        self._library, self._threads, self._inputs, self._pool = library, threads, inputs, pool
        self._adapters = adapters or AdapterMatrices((), AdapterScales(0, 0), library)
        self._max_rows, self._max_outputs = inputs.max_rows, max_outputs
        self._lanes, self._tile = library.target.lanes, library.target.tile
        self._calls: list[tuple[Kernel, NDArray[np.int64]]] = []
        self._keep: list[object] = [inputs, pool, self._adapters]
        self._buffers = Buffers(library.target, allocate)
        self._zeros = np.zeros(64, np.float32)
        counts = (N_ROWS, N_OUTPUTS, N_ITEMS, N_OUTPUT_ITEMS)
        self._count = {i: int(inputs.counts.ctypes.data) + 8 * i for i in counts}
        self._counted, self._rows_now = N_ROWS, self._max_rows

    def _rows(self, use: str, columns: int) -> Rows:
        return self._buffers.rows(use, self._rows_now, columns)

    def _activations(self, use: str, columns: int, into: tuple[Matrix, ...]) -> Activations:
        rows = self._rows(use, columns) if self._adapters.change_any(into) else None
        return self._buffers.activations(use, self._rows_now, columns, into, rows)

    def _quantize(self, rows: Rows, tiles: Tiles) -> None:
        self._add(
            ew.quantize_kernel(tiles.sink),
            ew.QUANTIZE.make(
                n_rows=self._count[self._counted], x=rows.address, x_stride=rows.stride, columns=rows.columns, out=0,
                out_stride=0, **tiles.fields(),
            ),
        )  # fmt: skip

    def _other_tiles(self, x: Activations) -> Activations:
        """Make what the kernel before could not write along."""
        for tiles in x.tiles[1:]:
            assert x.rows is not None
            self._quantize(x.rows, tiles)
        return x

    def _add(self, kernel: Kernel, record: NDArray[np.int64]) -> None:
        self._calls.append((kernel, record))

    def _matmuls(
        self, x: Activations, pairs: Iterable[tuple[Matrix, Rows]], blocks: Blocks | None = None,
        count: int | None = None,
    ) -> None:  # fmt: skip
        """out = x @ w.T (+ bias) for each pair, one step for matrices of one type.  count: as _matmul has it."""
        by_type: dict[tuple[str, str], list[tuple[Matrix, Rows]]] = {}
        for w, out in pairs:
            by_type.setdefault((w.layout.name, w.activations), []).append((w, out))
        for alike in by_type.values():
            self._matmul(x, alike, add=False, blocks=blocks, count=count)

    def _matmul(
        self, x: Activations, pairs: list[tuple[Matrix, Rows]], add: bool, blocks: Blocks | None = None,
        count: int | None = None, function: str = "",
    ) -> None:  # fmt: skip
        """count: address of the number of rows, where it is not that of the step; function: as matmul has it."""
        layout, activations = pairs[0][0].layout, pairs[0][0].activations
        total = sum(w.n_panels for w, _ in pairs) * (blocks.used if blocks else 1)
        panel_bytes = pairs[0][0].panel_bytes
        chunk = min(TASK_BYTES // panel_bytes, total // (8 * self._threads))
        together = tallest_tile(self._library.target, layout, activations)[0]
        chunk = chunk // 2 if function else chunk  # a task has as many panels of either matrix
        chunk = max(1, chunk // together * together)  # a panel that is left alone meets lower tiles
        matrices = np.concatenate([
            MATRIX.make(
                panels=w.panels, panel_bytes=w.panel_bytes, n_panels=w.n_panels, n_chunks=-(-w.n_panels // chunk),
                y=y.address, y_stride=y.stride, bias=w.bias or int(self._zeros.ctypes.data),
                bias_step=4 * self._lanes if w.bias else 0,
            )
            for w, y in pairs
        ])  # fmt: skip
        self._keep.append(matrices)
        block_stride = correction_at = 0
        if activations == "f32":
            assert x.rows is not None
            source, stride, row_bytes = x.rows.address, x.rows.stride, 4 * x.columns
        else:
            assert isinstance(layout, BlockLayout)
            tiles, correction = x.tiles_for(layout), layout.correction(self._library.target)
            source, stride, row_bytes = tiles.memory.address, tiles.tile_stride, tiles.tile_stride // self._tile
            block_stride = tiles.block_stride
            correction_at = tiles.sink.correction_at(correction, self._tile) if correction is not None else 0
        steps, at_once, opened_stride, close = x.columns // layout.step_columns, 0, 0, L2_BYTES
        if activations == "int8" and isinstance(layout, BlockLayout):
            at_once, opened_stride = workspace(layout, self._library.target, steps)
        gated = 2  # panels whose gates wait
        if 0 < at_once < steps:
            gated, close = 2 * together, OPENED_L2_BYTES
            row_bytes = row_bytes * at_once // steps + (2 * gated if function else chunk) * 4 * self._lanes
        token_block = max(self._tile, close // row_bytes // self._tile * self._tile)
        opened = self._buffers.shared("opened panels", self._threads * opened_stride) if opened_stride else None
        most_rows = max(token_block, blocks.rows if blocks else 0)
        gates_stride = max(chunk, gated * token_block, together * most_rows) * 4 * self._lanes if function else 0
        gates = self._buffers.shared("gates", self._threads * gates_stride) if function else None
        self._add(
            matmul_kernel(layout.name, add, activations, experts=blocks is not None, function=function),
            MATMUL.make(
                n_rows=blocks.address if blocks else count or self._count[self._counted],
                steps=steps, x=source, x_stride=stride, block_stride=block_stride, correction=correction_at,
                token_block=token_block, chunk=chunk, n_matrices=1 if function else len(pairs),
                matrices=int(matrices.ctypes.data), opened=opened.address if opened else 0,
                opened_stride=opened_stride, opened_steps=at_once, gates=gates.address if gates else 0,
                gates_stride=gates_stride,
            ),
        )  # fmt: skip

    def kernels(self) -> list[Kernel]:
        """The kernels that the program needs, once each."""
        return list(dict.fromkeys(kernel for kernel, _ in self._calls))

    def finish(self) -> Program:
        """Return the program; its kernels are loaded then."""
        steps = np.array([[self._library.address(k), r.ctypes.data] for k, r in self._calls], np.int64)
        self._keep += [r for _, r in self._calls] + [self._buffers, self._zeros]
        return Program(steps, self._keep)
