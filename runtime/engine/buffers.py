"""The buffers of a program.  Enters: uses and sizes; leaves: float32 rows and tiles of int8 codes, each made once and
shared by every layer that has the same use: what a layer leaves behind is only the hidden state."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..kernels.activations import Sink
from ..kernels.layouts import BlockLayout, Correction
from ..kernels.target import Target
from .memory import Allocate, Memory
from .weights import Matrix


@dataclass(frozen=True)
class Rows:
    """float32 [rows, columns] from byte `first` of `memory` on, `stride` bytes from row to row."""

    memory: Memory
    columns: int
    stride: int
    first: int = 0

    @property
    def address(self) -> int:
        return self.memory.address + self.first

    def part(self, first: int, columns: int) -> Rows:
        """Columns first..first+columns-1 of each row, where they lie."""
        assert 0 <= first <= self.columns - columns
        return Rows(self.memory, columns, self.stride, self.first + 4 * first)


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
        return self.columns // self.sink.columns * self.block_stride

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


class Buffers:
    """Makes each buffer when it is first asked for."""

    def __init__(self, target: Target, allocate: Allocate):
        self._target, self._allocate = target, allocate
        self._memory: dict[tuple[object, ...], Memory] = {}
        self._activations: dict[tuple[object, ...], Activations] = {}

    def shared(self, use: str, nbytes: int) -> Memory:
        """Zeroed memory that all steps with this use and size share."""
        return self._take((use, nbytes), nbytes, use)

    def _take(self, key: tuple[object, ...], nbytes: int, use: str) -> Memory:
        if key not in self._memory:
            self._memory[key] = self._allocate(nbytes, use)
        return self._memory[key]

    def rows(self, use: str, n_rows: int, columns: int) -> Rows:
        """float32 [n_rows, columns], each row an odd number of 64 bytes.

        With a power of two, a column of all rows falls into a few sets of a cache, and products that write it take 3 to
        6 % longer.
        """
        stride = (-(-columns * 4 // 64) | 1) * 64
        return Rows(self._take((use, n_rows, columns), n_rows * stride, use), columns, stride)

    def activations(
        self, use: str, n_rows: int, columns: int, into: tuple[Matrix, ...], rows: Rows | None = None
    ) -> Activations:
        """Activations of n_rows rows in the forms that the matrices `into` read.

        rows: where they are in float32 in any case.
        """
        corrections: dict[int, dict[Correction, None]] = {}  # by columns that share a scale
        for m in into:
            if m.activations == "int8":
                assert isinstance(m.layout, BlockLayout)
                wanted = corrections.setdefault(m.layout.scale_columns, {})
                if (correction := m.layout.correction(self._target)) is not None:
                    wanted[correction] = None
        sinks = tuple(Sink(False, True, tuple(found), shared) for shared, found in corrections.items())
        with_rows = len(sinks) > 1 or any(m.activations == "f32" for m in into)
        key = (use, n_rows, columns, sinks, with_rows, rows)
        if key not in self._activations:
            if rows is None and with_rows:
                rows = self.rows(use, n_rows, columns)
            tiles = tuple(self._tiles(use, n_rows, columns, sink) for sink in sinks)
            self._activations[key] = Activations(columns, rows, tiles)
        return self._activations[key]

    def _tiles(self, use: str, n_rows: int, columns: int, sink: Sink) -> Tiles:
        tile = self._target.tile
        block_stride, n_tiles = sink.block_bytes(tile), -(-n_rows // tile)
        nbytes = n_tiles * (columns // sink.columns) * block_stride
        return Tiles(sink, columns, self._take((use, n_rows, columns, sink), nbytes, use), block_stride)
