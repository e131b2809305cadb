"""A forward pass as a table of kernel calls.  Enters: a model's description (models/<arch>.py calls the builder's
methods in order); leaves: int64 [n_steps, 2] of (kernel address, record address) over buffers made once.

Buffers hold `max_rows` rows.  The same buffer serves every layer: what a layer leaves behind is only the hidden state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..kernels import attention as attn
from ..kernels import elementwise as ew
from ..kernels import rope
from ..kernels.activations import Sink
from ..kernels.jit import Kernel, Library
from ..kernels.layouts import BLOCK, BlockLayout, Correction
from ..kernels.matmul import MATMUL, MATRIX, matmul_kernel
from .batch import N_ITEMS, N_OUTPUTS, N_ROWS, StepInputs
from .kv_pages import PagePool
from .memory import Allocate, Memory
from .weights import Matrix, Table

L2_BYTES = 1 << 20  # of activation rows that one pass over a chunk of panels keeps close
TASK_BYTES = 512 << 10  # of weights in one task, at most; 32 KiB cost decoding 11 %, as streams of reads break off


@dataclass(frozen=True)
class Rows:
    """float32 [max_rows, columns], `stride` bytes from row to row (a whole number of 64 bytes)."""

    memory: Memory
    columns: int
    stride: int

    @property
    def address(self) -> int:
        return self.memory.address


@dataclass(frozen=True)
class Tiles:
    """Tiles of int8 codes of `columns` columns, as `sink` says (kernels/activations.py)."""

    sink: Sink
    columns: int
    memory: Memory
    block_stride: int

    @property
    def tile_stride(self) -> int:
        """Bytes from one tile of rows to the next."""
        return self.columns // BLOCK * self.block_stride

    def fields(self) -> dict[str, int]:
        """The record fields of the kernel that writes this."""
        return {"codes": self.memory.address, "tile_stride": self.tile_stride, "block_stride": self.block_stride}


@dataclass(frozen=True)
class Activations:
    """What linear layers read: float32 rows, tiles (two kinds where 32 and 256 columns share scales), or both."""

    columns: int
    rows: Rows | None
    tiles: tuple[Tiles, ...]

    @property
    def sink(self) -> Sink:
        """What the kernel writes that makes this; other tiles are made of the rows."""
        if not self.tiles:
            return Sink(float32=True, codes=False)
        return replace(self.tiles[0].sink, float32=self.rows is not None)

    def fields(self) -> dict[str, int]:
        """The record fields of the kernel that makes this."""
        rows = {"out": self.rows.address, "out_stride": self.rows.stride} if self.rows else {"out": 0, "out_stride": 0}
        none = dict.fromkeys(("codes", "tile_stride", "block_stride"), 0)
        return rows | (self.tiles[0].fields() if self.tiles else none)

    def tiles_for(self, layout: BlockLayout) -> Tiles:
        return next(tiles for tiles in self.tiles if tiles.sink.columns == layout.scale_columns)


@dataclass
class Program:
    """`steps` int64 [n_steps, 2]; everything that the addresses in it point to is kept here."""

    steps: NDArray[np.int64]
    keep: list[object] = field(repr=False)


class Builder:
    """Lays out a program for up to `max_rows` rows of which `max_outputs` give logits."""

    def __init__(
        self, library: Library, threads: int, inputs: StepInputs, pool: PagePool, max_outputs: int,
        allocate: Allocate = Memory,
    ):  # fmt: skip
        self._library, self._threads, self._inputs, self._pool = library, threads, inputs, pool
        self._allocate = allocate
        self._max_rows, self._max_outputs = inputs.max_rows, max_outputs
        self._lanes, self._tile = library.target.lanes, library.target.tile
        self._calls: list[tuple[Kernel, NDArray[np.int64]]] = []
        self._keep: list[object] = [inputs, pool]
        self._buffers: dict[tuple[object, ...], object] = {}
        self._zeros = np.zeros(64, np.float32)
        self._count = {i: int(inputs.counts.ctypes.data) + 8 * i for i in (N_ROWS, N_OUTPUTS, N_ITEMS)}
        self._counted, self._rows_now = N_ROWS, self._max_rows

    # -- buffers --------------------------------------------------------------------------------------------------

    def _rows(self, use: str, columns: int) -> Rows:
        key = (use, columns, self._rows_now)
        if key not in self._buffers:
            stride = -(-columns * 4 // 64) * 64
            self._buffers[key] = Rows(self._allocate(self._rows_now * stride, use), columns, stride)
        rows = self._buffers[key]
        assert isinstance(rows, Rows)
        return rows

    def _activations(self, use: str, columns: int, into: tuple[Matrix, ...]) -> Activations:
        corrections: dict[int, dict[Correction, None]] = {}  # by columns that share a scale
        for m in into:
            if m.activations == "int8":
                assert isinstance(m.layout, BlockLayout)
                wanted = corrections.setdefault(m.layout.scale_columns, {})
                if (correction := m.layout.correction(self._library.target)) is not None:
                    wanted[correction] = None
        sinks = tuple(Sink(False, True, tuple(found), shared) for shared, found in corrections.items())
        with_rows = len(sinks) > 1 or any(m.activations == "f32" for m in into)
        key = (use, columns, self._rows_now, sinks, with_rows)
        if key not in self._buffers:
            rows = self._rows(use, columns) if with_rows else None
            self._buffers[key] = Activations(columns, rows, tuple(self._tiles(use, columns, sink) for sink in sinks))
        activations = self._buffers[key]
        assert isinstance(activations, Activations)
        return activations

    def _tiles(self, use: str, columns: int, sink: Sink) -> Tiles:
        block_stride, n_tiles = sink.block_bytes(self._tile), -(-self._rows_now // self._tile)
        return Tiles(sink, columns, self._allocate(n_tiles * (columns // BLOCK) * block_stride, use), block_stride)

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

    def _shared(self, use: str, nbytes: int) -> Memory:
        """Zeroed memory that all steps with this use and size share."""
        key = (use, nbytes)
        if key not in self._buffers:
            self._buffers[key] = self._allocate(nbytes, use)
        memory = self._buffers[key]
        assert isinstance(memory, Memory)
        return memory

    def _add(self, kernel: Kernel, record: NDArray[np.int64]) -> None:
        self._calls.append((kernel, record))

    # -- operations -----------------------------------------------------------------------------------------------

    def embed(self, table: Table) -> Rows:
        """The hidden state: one row of `table` for each token."""
        out = self._rows("hidden", table.columns)
        self._add(
            ew.embed_kernel(table.layout.name),
            ew.EMBED.make(
                n_rows=self._count[N_ROWS], tokens=self._inputs.tokens.ctypes.data, table=table.address,
                row_bytes=table.row_bytes, columns=table.columns, out=out.address, out_stride=out.stride,
            ),
        )  # fmt: skip
        return out

    def rms_norm(self, x: Rows, weight: int, epsilon: float, into: tuple[Matrix, ...]) -> Activations:
        """Normalised rows of x, times the float32 vector at `weight`, in the form that the matrices `into` read."""
        return self._norm(x, weight, epsilon, into, indexed=False)

    def output_norm(self, x: Rows, weight: int, epsilon: float, into: tuple[Matrix, ...]) -> Activations:
        """As rms_norm, of the rows that want logits; what follows works on those rows only."""
        self._counted, self._rows_now = N_OUTPUTS, self._max_outputs
        return self._norm(x, weight, epsilon, into, indexed=True)

    def _norm(self, x: Rows, weight: int, epsilon: float, into: tuple[Matrix, ...], indexed: bool) -> Activations:
        out = self._activations("normed", x.columns, into)
        self._add(
            ew.norm_kernel(out.sink, indexed),
            ew.NORM.make(
                n_rows=self._count[self._counted], row_index=self._inputs.output_rows.ctypes.data, x=x.address,
                x_stride=x.stride, columns=x.columns, weight=weight, epsilon=epsilon, **out.fields(),
            ),
        )  # fmt: skip
        return self._other_tiles(out)

    def linear(self, x: Activations, *weights: Matrix) -> tuple[Rows, ...]:
        """x @ w.T (+ bias) for each matrix; matrices of one type share a step."""
        outs = tuple(self._rows(f"linear{i}", w.rows) for i, w in enumerate(weights))
        by_type: dict[str, list[tuple[Matrix, Rows]]] = {}
        for w, out in zip(weights, outs, strict=True):
            by_type.setdefault(w.layout.name, []).append((w, out))
        for pairs in by_type.values():
            self._matmul(x, pairs, add=False)
        return outs

    def linear_add(self, hidden: Rows, x: Activations, weight: Matrix) -> None:
        """hidden += x @ weight.T (+ bias)."""
        self._matmul(x, [(weight, hidden)], add=True)

    def _matmul(self, x: Activations, pairs: list[tuple[Matrix, Rows]], add: bool) -> None:
        layout, activations = pairs[0][0].layout, pairs[0][0].activations
        total = sum(w.n_panels for w, _ in pairs)
        panel_bytes = pairs[0][0].panel_bytes
        chunk = max(1, min(TASK_BYTES // panel_bytes, total // (8 * self._threads)))
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
        self._add(
            matmul_kernel(layout.name, add, activations),
            MATMUL.make(
                n_rows=self._count[self._counted], steps=x.columns // layout.step_columns, x=source, x_stride=stride,
                block_stride=block_stride, correction=correction_at,
                token_block=max(self._tile, L2_BYTES // row_bytes // self._tile * self._tile),
                chunk=chunk, n_matrices=len(pairs), matrices=int(matrices.ctypes.data),
            ),
        )  # fmt: skip

    def rope_store(self, layer: int, query: Rows, key: Rows, value: Rows, head_dim: int, n_rot: int) -> None:
        """Rotate query and key rows; put keys and values into the layer's pages."""
        inputs, (keys, values) = self._inputs, self._pool.layers[layer]
        self._add(
            rope.rope_kernel(head_dim, n_rot, self._pool.kv),
            rope.ROPE.make(
                n_rows=self._count[N_ROWS], query=query.address, query_stride=query.stride, key=key.address,
                value=value.address, key_stride=key.stride, n_heads=query.columns // head_dim,
                n_kv_heads=key.columns // head_dim, cosine=inputs.cosine.ctypes.data, sine=inputs.sine.ctypes.data,
                pages=inputs.pages.ctypes.data, slots=inputs.slots.ctypes.data, keys=keys, values=values,
            ),
        )  # fmt: skip

    def attention(
        self, layer: int, query: Rows, n_kv_heads: int, head_dim: int, into: tuple[Matrix, ...], *,
        window: int = 0, slopes: NDArray[np.float32] | None = None,
    ) -> Activations:  # fmt: skip
        """softmax(q k^T / sqrt(head_dim)) v over the positions of each row's sequence up to its own.

        window: a row sees only the last `window` positions (0: all).  slopes: float32 [heads]; a score gets
        slope * (position - own position) more (ALiBi).
        """
        out, (keys, values) = self._rows("attended", query.columns), self._pool.layers[layer]
        shape = attn.Shape(
            head_dim, query.columns // head_dim // n_kv_heads, self._pool.kv, bool(window), slopes is not None
        )
        bent = self._zeros if slopes is None else (slopes * math.log2(math.e)).astype(np.float32)
        chunks = self._inputs.division.partials
        partials = self._shared("partials", chunks * n_kv_heads * shape.partial_bytes(self._lanes))
        counters = self._shared("counters", chunks * n_kv_heads * 8)
        workspace = self._shared("workspace", self._threads * shape.workspace_bytes(self._lanes))
        self._keep.append(bent)
        self._add(
            attn.attention_kernel(shape),
            attn.ATTENTION.make(
                n_items=self._count[N_ITEMS], items=self._inputs.items.ctypes.data, query=query.address,
                query_stride=query.stride, n_kv_heads=n_kv_heads, keys=keys, values=values, out=out.address,
                out_stride=out.stride, scale=attn.attention_scale(head_dim), window=window,
                slopes=bent.ctypes.data, workspace=workspace.address, partials=partials.address,
                counters=counters.address,
            ),
        )  # fmt: skip
        ready = self._activations("attended", query.columns, into)
        for tiles in ready.tiles:
            self._quantize(out, tiles)
        return ready

    def swiglu(self, gate: Rows, up: Rows, into: tuple[Matrix, ...]) -> Activations:
        """silu(gate) * up."""
        out = self._activations("gated", gate.columns, into)
        self._add(
            ew.swiglu_kernel(out.sink),
            ew.SWIGLU.make(
                n_rows=self._count[N_ROWS], gate=gate.address, up=up.address, x_stride=gate.stride,
                columns=gate.columns, **out.fields(),
            ),
        )  # fmt: skip
        return self._other_tiles(out)

    def kernels(self) -> list[Kernel]:
        """The kernels that the program needs, once each."""
        return list(dict.fromkeys(kernel for kernel, _ in self._calls))

    def finish(self) -> Program:
        """Return the program; its kernels are loaded then."""
        steps = np.array([[self._library.address(k), r.ctypes.data] for k, r in self._calls], np.int64)
        self._keep += [r for _, r in self._calls] + list(self._buffers.values()) + [self._zeros]
        return Program(steps, self._keep)
