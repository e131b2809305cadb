"""LoRA adapters in the program.  Enters: adapters that fit the model, and sequences that say how much of each they
want; leaves: their matrices as float32 panels, and the scale of each row of a step.

A step's rows can want different scales.  An adapter that no row wants costs nothing but its steps' places in the
table: they are told that there are no rows.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import UnsupportedError
from ...quant.adapter import EMBEDDING, Adapter
from ..kernels.jit import Kernel, Library
from ..kernels.panels import LAYOUTS, PACK, n_panels, pack_kernel
from .batch import N_OUTPUTS, N_ROWS, Part
from .memory import Allocate, Memory
from .threads import ThreadPool
from .weights import Matrix, Table

_FLOAT = LAYOUTS["f32"]


@dataclass(frozen=True)
class LowRank:
    """What adapter number `index` adds: y += scale * (x @ a.T) @ b.T; of an embedding, a's rows are looked up."""

    index: int
    a: Matrix | Table
    b: Matrix


class AdapterScales:
    """How much of each adapter the rows of a step want.

    counts  int64 [n_adapters, 2]: rows and output rows that its steps have, 0 when no row wants it
    scales  float32 [n_adapters, max_rows]: of each row
    """

    def __init__(self, n_adapters: int, max_rows: int):
        self.counts = np.zeros((n_adapters, 2), np.int64)
        self.scales = np.zeros((n_adapters, max_rows), np.float32)

    def addresses(self, index: int, counted: int) -> tuple[int, int]:
        """Return where the count and the scales of an adapter are, for N_ROWS or N_OUTPUTS."""
        which = {N_ROWS: 0, N_OUTPUTS: 1}[counted]
        return int(self.counts[index, which:].ctypes.data), int(self.scales[index].ctypes.data)

    def fill(self, parts: Items[Part]) -> None:
        """Take the scales from the parts' sequences."""
        for i in range(len(self.counts)):
            wanted = [part.sequence.adapters[i] if part.sequence.adapters else 0.0 for part in parts]
            outputs = [part.outputs for part in parts]
            others = [len(part.tokens) - part.outputs for part in parts]
            rows = sum(outputs) + sum(others)
            self.scales[i, :rows] = np.repeat(np.array(wanted * 2, np.float32), outputs + others)
            self.counts[i] = (rows, sum(outputs)) if any(wanted) else 0


class AdapterMatrices:
    """The matrices of all adapters, each found by the name of the one that it changes.

    `pack` fills their panels.
    """

    def __init__(self, adapters: Items[Adapter], scales: AdapterScales, library: Library, allocate: Allocate = Memory):
        self.scales = scales
        self._adapters, self._library, self._allocate = adapters, library, allocate
        self._pending: list[tuple[NDArray[np.float32], Matrix]] = []
        self._memory: list[Memory] = []
        self._tables: list[NDArray[np.float32]] = []
        self._taken: set[str] = set()

    def change_any(self, matrices: Items[Matrix]) -> bool:
        """Return whether an adapter changes one of the matrices."""
        return any(m.name in adapter.factors and m.name != EMBEDDING for adapter in self._adapters for m in matrices)

    def of_matrix(self, name: str) -> list[LowRank]:
        """Return what the adapters add to y = x @ NAME.T; not to logits made with the embedding table, as in PEFT."""
        return [] if name == EMBEDDING else self._of(name, is_table=False)

    def of_embedding(self) -> list[LowRank]:
        """Return what the adapters add to rows of the embedding table."""
        return self._of(EMBEDDING, is_table=True)

    def _of(self, name: str, is_table: bool) -> list[LowRank]:
        self._taken.add(name)
        found = []
        for index, adapter in enumerate(self._adapters):
            factors = adapter.factors.get(name)
            if factors is None:
                continue
            scaled = np.float32(factors.scaling)
            if is_table:
                a: Matrix | Table = self._table(factors.left)
                b = self._matrix(f"{name}.lora_b", factors.right.T * scaled)
            else:
                a = self._matrix(f"{name}.lora_a", factors.right)
                b = self._matrix(f"{name}.lora_b", factors.left * scaled)
            found.append(LowRank(index, a, b))
        return found

    def _table(self, values: NDArray[np.float32]) -> Table:
        held = np.ascontiguousarray(values)
        self._tables.append(held)
        return Table(_FLOAT, held.shape[0], held.shape[1], int(held.ctypes.data), 4 * held.shape[1])

    def _matrix(self, name: str, values: NDArray[np.float32]) -> Matrix:
        rows, columns = values.shape
        count = n_panels(rows, self._library.target.lanes)
        panel_bytes = columns * _FLOAT.step_bytes(self._library.target.lanes)
        memory = self._allocate(count * panel_bytes, f"adapter {name}")
        self._memory.append(memory)
        matrix = Matrix(name, _FLOAT, "f32", rows, columns, memory.address, panel_bytes, count, 0)
        self._pending.append((np.ascontiguousarray(values), matrix))
        return matrix

    def check_used(self) -> None:
        """Raise UnsupportedError for an adapter that changes what the model uses otherwise than as y = x @ w.T."""
        for adapter in self._adapters:
            for name in adapter.factors:
                if name not in self._taken:
                    raise UnsupportedError("adapter of tensor", name, sorted(self._taken), adapter.path)

    def kernels(self) -> list[Kernel]:
        """The kernels that `pack` needs."""
        return [pack_kernel(_FLOAT.name)] if self._pending else []

    def pack(self, threads: ThreadPool) -> None:
        """Fill the panels."""
        for values, matrix in self._pending:
            record = PACK.make(
                source=values.ctypes.data, panels=matrix.panels, rows=matrix.rows, row_bytes=4 * matrix.columns,
                steps=matrix.columns, n_panels=matrix.n_panels, count=1,
            )  # fmt: skip
            kernel = self._library.address(pack_kernel(_FLOAT.name))
            threads.run(np.array([[kernel, record.ctypes.data]], np.int64))
        self._pending = []
