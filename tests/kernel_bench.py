"""A bench for kernels: two threads, one target, and y = x @ w.T through pack, quantize and matmul."""

from __future__ import annotations

import numpy as np

from halfbyte.runtime.engine.threads import ThreadPool
from halfbyte.runtime.kernels import elementwise as ew
from halfbyte.runtime.kernels.activations import Sink
from halfbyte.runtime.kernels.jit import Kernel, Library
from halfbyte.runtime.kernels.matmul import MATMUL, MATRIX, matmul_kernel
from halfbyte.runtime.kernels.panels import LAYOUTS, PACK, n_panels, pack_kernel
from halfbyte.runtime.kernels.targets import make_target, runnable

RUNNABLE = runnable()


class Bench:
    """Two threads and the kernels of one target."""

    def __init__(self, target: str):
        self.library = Library(make_target(target))
        self.pool = ThreadPool(self.library, 2)
        self.lanes, self.tile = self.library.target.lanes, self.library.target.tile

    def run(self, kernel: Kernel, record: np.ndarray) -> None:
        self.pool.run(np.array([[self.library.address(kernel), record.ctypes.data]], np.int64))


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def tile_codes(tiles: np.ndarray, tile: int) -> np.ndarray:
    """The codes of tiles, uint8 [n_tiles, n_blocks, record bytes], as int8 [n_tiles, tile, n_blocks, 32]."""
    return _rows(tiles, tile)[..., :32].view(np.int8)


def tile_scales(tiles: np.ndarray, tile: int) -> np.ndarray:
    """The scales of tiles as float32 [n_tiles, tile, n_blocks]."""
    return np.ascontiguousarray(_rows(tiles, tile)[..., 32:]).view(np.float32)[..., 0]


def _rows(tiles: np.ndarray, tile: int) -> np.ndarray:
    """The rows' codes and scales, uint8 [n_tiles, tile, n_blocks, 36]."""
    return tiles[:, :, : 36 * tile].reshape(*tiles.shape[:2], tile, 36).swapaxes(1, 2)


class Product:
    """y = x @ w.T through pack, quantize and matmul."""

    def __init__(self, bench: Bench, name: str, raw: np.ndarray, columns: int, rows_max: int):
        """raw: uint8 [rows, row bytes] of GGUF type `name`, as a file holds it."""
        self.bench, self.layout, self.columns = bench, LAYOUTS[name], columns
        self.rows, self.name = len(raw), name
        raw.flags.writeable = False  # as a mapped file
        count, steps = n_panels(self.rows, bench.lanes), columns // self.layout.step_columns
        self.panel_bytes, self.count, self.steps = steps * self.layout.step_bytes(bench.lanes), count, steps
        self.panels = np.zeros(count * self.panel_bytes, np.uint8)
        bench.run(
            pack_kernel(name),
            PACK.make(
                source=address(raw), panels=address(self.panels), rows=self.rows, row_bytes=raw.shape[1], steps=steps,
                n_panels=count,
            ),
        )  # fmt: skip
        correction = self.layout.correction(bench.library.target)
        self.sink = Sink(False, True, () if correction is None else (correction,))
        self.correction = 0 if correction is None else self.sink.correction_at(correction, bench.tile)
        self.block_stride = self.sink.block_bytes(bench.tile)
        self.codes = np.zeros((-(-rows_max // bench.tile), max(columns // 32, 1), self.block_stride), np.uint8)

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """Fill codes, scales, corrections; return float64 what they stand for (x itself for float formats)."""
        if self.layout.is_float:
            return x.astype(np.float64)
        n, tile = np.array([len(x)], np.int64), self.bench.tile
        record = ew.QUANTIZE.make(
            n_rows=address(n), x=address(x), x_stride=x.strides[0], columns=self.columns, out=0, out_stride=0,
            codes=address(self.codes), tile_stride=self.codes.strides[0], block_stride=self.block_stride,
        )  # fmt: skip
        self.bench.run(ew.quantize_kernel(self.sink), record)
        values = tile_codes(self.codes, tile) * tile_scales(self.codes, tile).astype(np.float64)[..., None]
        return values.reshape(-1, self.columns)[: len(x)]

    def __call__(self, x: np.ndarray, y: np.ndarray, add: bool = False, bias: np.ndarray | None = None) -> np.ndarray:
        """Multiply all rows of `x`; `y` float32 [n, >= panels * lanes]."""
        n, zeros = np.array([len(x)], np.int64), np.zeros(64, np.float32)
        matrices = MATRIX.make(
            panels=address(self.panels), panel_bytes=self.panel_bytes, n_panels=self.count,
            n_chunks=-(-self.count // 3), y=address(y), y_stride=y.strides[0],
            bias=address(zeros if bias is None else bias), bias_step=0 if bias is None else 4 * self.bench.lanes,
        )  # fmt: skip
        source = x if self.layout.is_float else self.codes
        record = MATMUL.make(
            n_rows=address(n), steps=self.steps, x=address(source), x_stride=source.strides[0],
            block_stride=self.block_stride, correction=self.correction, token_block=self.bench.tile, chunk=3,
            n_matrices=1, matrices=address(matrices),
        )  # fmt: skip
        self.bench.run(matmul_kernel(self.name, add), record)
        return y[:, : self.rows]

    def output(self, n: int) -> np.ndarray:
        return np.zeros((n, self.count * self.bench.lanes), np.float32)
