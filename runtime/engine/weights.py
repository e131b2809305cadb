"""Weights in memory.  Enters: tensors of a GGUF file; leaves: panels for matmul, float32 vectors, embedding tables.

Matrices are repacked once, at load, by all threads; the file's own pages are given back after each, so resident
memory stays near one copy.  Types without kernels are turned into others before (turned.py).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import HalfbyteWarning, ModelFileError
from ...quant.formats import FORMATS
from ...quant.gguf_reader import GgufFile, TensorView
from ..kernels.jit import Kernel, Library
from ..kernels.layouts import Layout
from ..kernels.panels import LAYOUTS, PACK, n_panels, pack_kernel
from .memory import Allocate, Memory
from .threads import ThreadPool
from .turned import HeadRows, SourceRows, describe_turned

_FIRST_BATCH, _LARGEST_BATCH = 64 << 20, 256 << 20  # bytes of the file that are packed at once, and lie in memory twice
_PERIOD = 0.25  # seconds after which Ctrl-C is heard and progress told


@dataclass(frozen=True)
class Matrix:
    """A packed weight matrix [rows, columns]: y = x @ matrix.T; or `count` of them, one after the other: experts.

    activations: what it is multiplied with, "int8" (blocks of 32 with a scale) or "f32".
    """

    name: str
    layout: Layout
    activations: str
    rows: int
    columns: int
    panels: int  # address
    panel_bytes: int
    n_panels: int  # of one matrix
    bias: int  # address of float32 [count, n_panels * lanes], 0 for none
    count: int = 1


@dataclass(frozen=True)
class Table:
    """An embedding table [rows, columns] in the file's layout of its type."""

    layout: Layout
    rows: int
    columns: int
    address: int
    row_bytes: int


@dataclass(frozen=True)
class Norm:
    """What follows normalisation: y * weight, and + bias of a layer norm.

    kind: "rms" or "layer" (kernels/norms.py); weight, bias: addresses of float32 [columns]; head_step: bytes from one
    head's weights to the next, 0 where they share them.
    """

    kind: str
    weight: int
    bias: int
    epsilon: float
    head_step: int = 0


class Weights:
    """The tensors of one model, each taken by name with the shape that the hyper-parameters promise.

    activations: what matrices of integer types are multiplied with; those of float types know "f32" only.
    """

    def __init__(self, file: GgufFile, library: Library, activations: str = "int8", allocate: Allocate = Memory):
        self._file, self._library, self._activations, self._allocate = file, library, activations, allocate
        self._memory: list[Memory] = []
        self._pending: list[tuple[SourceRows, Matrix]] = []
        self._pending_tables: list[tuple[SourceRows, Memory]] = []
        self._vectors: list[NDArray[np.float32]] = []
        # The reader of the hyper-parameters has these.
        self._taken = {"rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"}
        self.matrix_bytes = 0  # bytes of the panels that decoding one token reads
        self.activation_types: set[str] = set()  # what the matrices are multiplied with: "f32", "int8"

    def has(self, name: str) -> bool:
        return name in self._file.tensors

    def _tensor(self, name: str, shape: tuple[int, ...]) -> TensorView:
        self._taken.add(name)
        view = self._file.tensors.get(name)
        if view is None:
            raise ModelFileError(self._file.path, "is missing; the model's hyper-parameters ask for it", place=name)
        if view.shape != shape:
            raise ModelFileError(
                self._file.path, f"has shape {view.shape}; the model's hyper-parameters ask for {shape}", place=name
            )
        return view

    def _source(self, name: str, shape: tuple[int, ...]) -> SourceRows:
        """The rows of a tensor of `shape`, with the scale of each matrix where the file has a `.scale` beside it."""
        view = self._tensor(name, shape)
        scale = f"{name.removesuffix('.weight')}.scale"
        if view.layout.name in FORMATS or not self.has(scale):  # such a scale of other types is not known
            return SourceRows(view)
        return SourceRows(view, self._finite(scale, shape[:-2] or (1,)))

    def vector(self, name: str, n: int) -> int:
        """Return the address of a float32 copy of a one-dimensional tensor [n], padded with zeros to 64 elements."""
        return self._vector(name, (n,))

    def _vector(self, name: str, shape: tuple[int, ...]) -> int:
        n = math.prod(shape)
        values = np.zeros(-(-n // 64) * 64, np.float32)
        values[:n] = self._finite(name, shape).reshape(-1)
        self._vectors.append(values)
        return int(values.ctypes.data)

    def numbers(self, name: str, n: int) -> NDArray[np.float32]:
        """Return a one-dimensional tensor as float32 [n]."""
        return self._finite(name, (n,))

    def _finite(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A small tensor as float32 of `shape`."""
        values = self._tensor(name, shape).dequantize().reshape(shape)
        if not np.isfinite(values).all():
            raise ModelFileError(self._file.path, "holds a value that is not finite", place=name)
        return values

    def rms_norm(self, name: str, n: int, epsilon: float) -> Norm:
        """The RMS norm whose weight [n] is `name`.weight."""
        return Norm("rms", self.vector(f"{name}.weight", n), 0, epsilon)

    def layer_norm(self, name: str, n: int, epsilon: float) -> Norm:
        """The layer norm of `name`.weight [n], and `name`.bias where the file has it."""
        bias = self.vector(f"{name}.bias", n) if self.has(f"{name}.bias") else self._zeros(n)
        return Norm("layer", self.vector(f"{name}.weight", n), bias, epsilon)

    def head_norms(self, kind: str, name: str, heads: int, n: int, epsilon: float) -> Norm:
        """A norm for each head, whose weights are the rows of `name`.weight [heads, n], without bias."""
        return Norm(kind, self._vector(f"{name}.weight", (heads, n)), 0, epsilon, head_step=4 * n)

    def _zeros(self, n: int) -> int:
        """The address of float32 zeros, as `vector` gives values."""
        self._vectors.append(np.zeros(-(-n // 64) * 64, np.float32))
        return int(self._vectors[-1].ctypes.data)

    def table(self, name: str, rows: int, columns: int) -> Table:
        """Return an embedding table where it lies in the mapped file, or in memory that `pack` fills."""
        found = self._source(name, (rows, columns))
        address = found.view.address()
        if found.is_turned:
            memory = self._allocate(found.nbytes, f"tensor {name}")
            self._memory.append(memory)
            self._pending_tables.append((found, memory))
            address = memory.address
        return Table(LAYOUTS[found.layout.name], rows, columns, address, found.row_bytes)

    def matrix(self, name: str, rows: int, columns: int, bias: str | None = None, exact: bool = False) -> Matrix:
        """Return a tensor [rows, columns] as panels, with the float32 vector `bias` [rows] where the file has it.

        The panels are filled by `pack`.  exact: it is multiplied with float32 activations whatever its type.
        """
        found = self._source(name, (rows, columns))
        activations = self._activations_of(found, exact)
        if not exact:
            self.activation_types.add(activations)
        address = self.vector(bias, rows) if bias is not None and self.has(bias) else 0
        return self._packed(found, activations, (1, rows, columns), address)

    def row(self, name: str, columns: int) -> Matrix:
        """Return a vector [columns] as a matrix of one row, which float32 activations are multiplied with."""
        return self._packed(SourceRows(self._tensor(name, (columns,))), "f32", (1, 1, columns), 0)

    def experts(self, name: str, n_experts: int, used: int, rows: int, columns: int, bias: str | None = None) -> Matrix:
        """Return a tensor [n_experts, rows, columns] as panels of each, with a float32 `bias` [n_experts, rows].

        used: how many of them a token reads.
        """
        found = self._source(name, (n_experts, rows, columns))
        activations = self._activations_of(found)
        self.activation_types.add(activations)
        address = self._expert_bias(bias, n_experts, rows) if bias is not None and self.has(bias) else 0
        return self._packed(found, activations, (n_experts, rows, columns), address, used)

    def heads(self, name: str, n_heads: int, shape: tuple[int, int], first: int, n: int, transposed: bool) -> Matrix:
        """Return a part of each head of a tensor [n_heads * shape[0], shape[1]] as float32 matrices, one for each head.

        Rows first..first+n-1 of a head's; transposed: with a row for each column of the file's.
        """
        view = self._tensor(name, (n_heads * shape[0], shape[1]))
        found = HeadRows(view, shape[0], first, n, transposed)
        rows, columns = (shape[1], n) if transposed else (n, shape[1])
        return self._packed(found, "f32", (n_heads, rows, columns), 0, n_heads)

    def _activations_of(self, found: SourceRows, exact: bool = False) -> str:
        return "f32" if LAYOUTS[found.layout.name].is_float or exact else self._activations

    def _expert_bias(self, name: str, n_experts: int, rows: int) -> int:
        """The address of a tensor [n_experts, rows] as float32, each row padded with zeros to whole panels."""
        lanes = self._library.target.lanes
        values = np.zeros((n_experts, n_panels(rows, lanes) * lanes), np.float32)
        values[:, :rows] = self._finite(name, (n_experts, rows))
        self._vectors.append(values)
        return int(values.ctypes.data)

    def _packed(
        self, found: SourceRows, activations: str, shape: tuple[int, int, int], bias: int, used: int = 1
    ) -> Matrix:
        """Matrices of `shape`, count by rows by columns, of which a token reads `used`; `pack` fills them."""
        (count, rows, columns), lanes = shape, self._library.target.lanes
        layout, panels = LAYOUTS[found.layout.name], n_panels(rows, lanes)
        panel_bytes = columns // layout.step_columns * layout.step_bytes(lanes)
        memory = self._allocate(count * panels * panel_bytes, f"tensor {found.view.name}")
        self._memory.append(memory)
        self.matrix_bytes += used * panels * panel_bytes
        matrix = Matrix(
            found.view.name, layout, activations, rows, columns, memory.address, panel_bytes, panels, bias, count
        )  # fmt: skip
        self._pending.append((found, matrix))
        return matrix

    def check_complete(self) -> None:
        """Raise ModelFileError for a tensor that nobody took: without what it does, the answers would be wrong."""
        for name in self._file.tensors:
            if name not in self._taken:
                raise ModelFileError(self._file.path, "is no part of this architecture as it is known here", place=name)

    def kernels(self) -> list[Kernel]:
        """The kernels that `pack` needs."""
        return list(dict.fromkeys(pack_kernel(matrix.layout.name) for _, matrix in self._pending))

    def pack(self, threads: ThreadPool, progress: Callable[[int, int], None] | None = None) -> None:
        """Fill the panels of every matrix asked for; `progress` gets (bytes done, bytes in all).

        Says in a HalfbyteWarning which types were turned into others.  Raises ModelFileError for a block of such a
        type that is not finite.
        """
        everything = [rows for rows, _ in (*self._pending, *self._pending_tables)]
        turned = [rows for rows in everything if rows.layout.name != rows.view.layout.name]
        if turned:
            warnings.warn(describe_turned(self._file.path, turned), HalfbyteWarning, stacklevel=2)
        for rows, memory in self._pending_tables:
            for first, part in rows.turned(1, threads.threads):
                memory.array(np.uint8, part.shape, first * rows.row_bytes)[:] = part
            rows.view.release()
        done, total = 0, sum(rows.view.nbytes for rows, _ in self._pending)
        for batch in self._batches():
            self._pack_batch(batch, threads)
            for rows, _ in batch:
                rows.view.release()
                done += rows.view.nbytes
                if progress:
                    progress(done, total)
        self._pending, self._pending_tables = [], []

    def _batches(self) -> Iterator[list[tuple[SourceRows, Matrix]]]:
        """Yield what is pending, as many matrices at once as were packed in _PERIOD before; turned ones alone."""
        batch: list[tuple[SourceRows, Matrix]] = []
        nbytes, limit = 0, _FIRST_BATCH
        for rows, matrix in self._pending:
            if batch and (rows.is_turned or batch[0][0].is_turned or nbytes + rows.view.nbytes > limit):
                began = time.monotonic()
                yield batch
                speed = nbytes / max(time.monotonic() - began, 1e-3)
                batch, nbytes, limit = [], 0, min(int(speed * _PERIOD), _LARGEST_BATCH)
            batch.append((rows, matrix))
            nbytes += rows.view.nbytes
        if batch:
            yield batch

    def _pack_batch(self, batch: list[tuple[SourceRows, Matrix]], threads: ThreadPool) -> None:
        """Pack a batch in one call, in which nobody waits for the interpreter lock: the tokenizer's thread has it."""
        rows, matrix = batch[0]
        if rows.is_turned:
            self._pack_turned(rows, matrix, threads)
            return
        records = [
            self._record(rows, matrix, 0, matrix.count, matrix.rows, rows.view.address()) for rows, matrix in batch
        ]
        steps = [
            (self._library.address(pack_kernel(matrix.layout.name)), record.ctypes.data)
            for (_, matrix), record in zip(batch, records, strict=True)
        ]
        threads.run(np.array(steps, np.int64))

    def _pack_turned(self, rows: SourceRows, matrix: Matrix, threads: ThreadPool) -> None:
        lanes, kernel = self._library.target.lanes, self._library.address(pack_kernel(matrix.layout.name))
        whole = matrix.rows if matrix.count > 1 else lanes  # a piece has whole experts, or whole panels
        for first, part in rows.turned(whole, threads.threads):
            if matrix.count == 1:
                panel, count, each = first // lanes, 1, len(part)
            else:
                panel, count, each = first // whole * matrix.n_panels, len(part) // whole, whole
            record = self._record(rows, matrix, panel, count, each, int(part.ctypes.data))
            threads.run(np.array([[kernel, record.ctypes.data]], np.int64))

    def _record(
        self, rows: SourceRows, matrix: Matrix, panel: int, count: int, each: int, source: int
    ) -> NDArray[np.int64]:
        """Return the record that packs `count` matrices of `each` rows at `source` from panel number `panel` on."""
        return PACK.make(
            source=source, panels=matrix.panels + panel * matrix.panel_bytes, rows=each, row_bytes=rows.row_bytes,
            steps=matrix.columns // matrix.layout.step_columns, n_panels=n_panels(each, self._library.target.lanes),
            count=count,
        )  # fmt: skip
