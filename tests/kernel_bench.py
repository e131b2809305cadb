"""A bench for kernels: threads, one target, and y = x @ w.T through pack, quantize and matmul.

Enters: random blocks of any type, as a file holds them; leaves: products, and what the blocks mean by the gguf package.
"""

from __future__ import annotations

import gguf
import numpy as np

from halfbyte.runtime.engine.threads import ThreadPool
from halfbyte.runtime.kernels import elementwise as ew
from halfbyte.runtime.kernels.activations import Sink, row_bytes
from halfbyte.runtime.kernels.jit import Kernel, Library
from halfbyte.runtime.kernels.layouts import Correction
from halfbyte.runtime.kernels.matmul import MATMUL, MATRIX, matmul_kernel
from halfbyte.runtime.kernels.opened import workspace
from halfbyte.runtime.kernels.panels import LAYOUTS, PACK, n_panels, pack_kernel
from halfbyte.runtime.kernels.records import Record
from halfbyte.runtime.kernels.target import Target
from halfbyte.runtime.kernels.targets import make_target, runnable

RUNNABLE = runnable()
INTEGER = [name for name, layout in LAYOUTS.items() if not layout.is_float]
# Where the float16 scales of a block are.
HALVES = {
    "q8_0": (0,), "q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "iq4_nl": (0,), "mxfp4": (),
    "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,), "q3_k": (108,), "q2_k": (80, 82), "iq4_xs": (0,),
}  # fmt: skip


def random_blocks(name: str, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Return uint8 [rows, row bytes] of GGUF type `name`: any codes, scales of both signs and of ordinary size."""
    layout = LAYOUTS[name]
    if layout.is_float:
        values = rng.standard_normal((rows, columns)).astype(np.float32)
        return as_blocks(name, values)
    raw = rng.integers(0, 256, (rows, columns // layout.step_columns, layout.file_step_bytes()), dtype=np.uint8)
    if name == "mxfp4":
        raw[..., 0] = rng.integers(118, 126, raw.shape[:2])
    return with_scales(name, raw, rng.uniform(0.5e-2, 2e-2, raw.shape[:2]) * rng.choice([-1, 1], raw.shape[:2]))


def with_scales(name: str, raw: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return blocks `raw`, uint8 [rows, blocks, block bytes], with `scales` [rows, blocks] as all float16 fields."""
    raw = raw.copy()
    for at in HALVES[name]:
        raw[..., at : at + 2] = scales.astype(np.float16)[..., None].view(np.uint8)
    return raw.reshape(len(raw), -1)


def as_blocks(name: str, values: np.ndarray) -> np.ndarray:
    """Return float32 `values` [rows, columns] as uint8 [rows, row bytes], by the gguf package."""
    blocks = np.ascontiguousarray(gguf.quants.quantize(values, gguf.GGMLQuantizationType[name.upper()]))
    return blocks.view(np.uint8).reshape(len(values), -1).copy()


def meaning(name: str, raw: np.ndarray) -> np.ndarray:
    """Return float64 [rows, columns]: what uint8 [rows, row bytes] stand for, by the gguf package."""
    kind = gguf.GGMLQuantizationType[name.upper()]
    if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
        return raw.view(np.float32 if name == "f32" else np.float16).astype(np.float64)
    return gguf.quants.dequantize(raw, kind).astype(np.float64)


class Bench:
    """Two threads and the kernels of one target, given as such or by its name."""

    def __init__(self, target: str | Target, threads: int = 2):
        self.library = Library(make_target(target) if isinstance(target, str) else target)
        self.pool = ThreadPool(self.library, threads)
        self.lanes, self.tile, self.threads = self.library.target.lanes, self.library.target.tile, threads

    def run(self, kernel: Kernel, record: np.ndarray) -> None:
        self.pool.run(np.array([[self.library.address(kernel), record.ctypes.data]], np.int64))


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


class Heap:
    """Where a test's arrays lie: here, wherever NumPy puts them (guarded.py has a stricter one)."""

    def place(self, array: np.ndarray) -> np.ndarray:
        """Return `array`, or a copy of it at a place of its own."""
        return array

    def freeze(self, array: np.ndarray) -> None:
        """Nobody may write to a placed array from now on."""
        array.flags.writeable = False


class Codes:
    """Tiles of int8 codes for up to `rows` rows, as a `sink` has them (runtime/kernels/activations.py)."""

    def __init__(self, sink: Sink, rows: int, columns: int, tile: int, heap: Heap | None = None):
        self.sink, self._rows, self._tile = sink, rows, tile
        shape = -(-rows // tile), columns // sink.columns, sink.block_bytes(tile)
        self._tiles = (heap or Heap()).place(np.zeros(shape, np.uint8))

    def written(self) -> dict[str, int]:
        """The fields of the record of a kernel that writes them."""
        _, blocks, size = self._tiles.shape
        return {"codes": address(self._tiles), "tile_stride": blocks * size, "block_stride": size}

    def read(self, correction: Correction | None) -> dict[str, int]:
        """The fields of the record of a product that reads them, and this correction."""
        fields = self.written()
        at = 0 if correction is None else self.sink.correction_at(correction, self._tile)
        return {
            "x": fields["codes"], "x_stride": fields["tile_stride"], "block_stride": fields["block_stride"],
            "correction": at,
        }  # fmt: skip

    def _by_row(self, start: int, count: int, row_bytes: int) -> np.ndarray:
        """uint8 [count, row, row_bytes] from byte `start` of each record, as [rows, records, count, row_bytes]."""
        n_tiles, records, _ = self._tiles.shape
        some = self._tiles[:, :, start : start + count * self._tile * row_bytes]
        some = some.reshape(n_tiles, records, count, self._tile, row_bytes).transpose(0, 3, 1, 2, 4)
        return some.reshape(n_tiles * self._tile, records, count, row_bytes)[: self._rows].copy()

    def _of_correction(self, correction: Correction, first: int, count: int, kind: type) -> np.ndarray:
        """Values number `first` to first + count - 1 of a correction: [rows, records, count, 4 bytes of `kind`]"""
        at = self.sink.correction_at(correction, self._tile) + 4 * self._tile * first
        return self._by_row(at, count, 4).view(kind)

    def codes(self) -> np.ndarray:
        """int8 [rows, blocks, 32]"""
        parts, size = self.sink.parts, row_bytes(self.sink.columns)
        return self._by_row(0, parts, size)[..., :32].reshape(self._rows, -1, 32).view(np.int8)

    def scales(self) -> np.ndarray:
        """float32 [rows, blocks], of super-blocks the same for each of their blocks"""
        parts = self.sink.parts
        if parts == 1:
            return self._by_row(0, 1, row_bytes(32))[:, :, 0, 32:].copy().view(np.float32)[..., 0]
        stored = self._by_row(self.sink.columns * self._tile, 1, 4).view(np.float32)[..., 0, 0]
        return np.repeat(stored, parts, axis=1)

    def largest(self) -> np.ndarray:
        """int32 [rows, super-blocks]: what a `Correction.largest` tells."""
        return self._by_row((self.sink.columns + 4) * self._tile, 1, 4).view(np.int32)[..., 0, 0]

    def products(self, correction: Correction) -> np.ndarray:
        """What comes of its factor: int32 [rows, blocks, groups, 1], or int16 [rows, blocks, groups, 2] of halves"""
        kind, groups = np.int16 if correction.halves else np.int32, correction.groups
        values = self._of_correction(correction, 0, self.sink.parts * groups, kind)
        return values.reshape(self._rows, -1, groups, values.shape[-1])

    def sums(self, correction: Correction) -> np.ndarray:
        """float32 [rows, blocks, groups]"""
        parts, groups = self.sink.parts, correction.groups
        values = self._of_correction(correction, parts * correction.factors, parts * groups, np.float32)
        return values.reshape(self._rows, -1, groups)

    def words(self, correction: Correction) -> np.ndarray:
        """int16 [rows, groups of all blocks]"""
        parts = self.sink.parts
        count = parts * correction.groups // 2
        return self._of_correction(correction, correction.words_from(parts), count, np.int16).reshape(self._rows, -1)

    def values(self) -> np.ndarray:
        """float64 [rows, columns]: what codes and scales stand for."""
        with np.errstate(invalid="ignore"):  # an infinite scale
            values = self.codes() * self.scales()[..., None].astype(np.float64)
        return values.reshape(self._rows, -1)


class Product:
    """y = x @ w.T through pack, quantize and matmul; activations: "int8" or "f32", as matmul_kernel takes them."""

    def __init__(
        self, bench: Bench, name: str, raw: np.ndarray, columns: int, rows_max: int, activations: str = "int8",
        heap: Heap | None = None,
    ):  # fmt: skip
        """raw: uint8 [rows, row bytes] of GGUF type `name`, as a file holds it; rows_max: of activations."""
        self.bench, self.layout, self.columns = bench, LAYOUTS[name], columns
        self.rows, self.name, self.heap = len(raw), name, heap or Heap()
        self.activations = "f32" if self.layout.is_float else activations
        source = self.heap.place(raw)
        self.heap.freeze(source)  # as a mapped file
        count, steps = n_panels(self.rows, bench.lanes), columns // self.layout.step_columns
        self.panel_bytes, self.count, self.steps = steps * self.layout.step_bytes(bench.lanes), count, steps
        self.panels = self._zeros((count * self.panel_bytes,), np.uint8)
        self._run(
            pack_kernel(name), PACK, source=address(source), panels=address(self.panels), rows=self.rows,
            row_bytes=raw.shape[1], steps=steps, n_panels=count, count=1,
        )  # fmt: skip
        self.heap.freeze(self.panels)
        self.correction = None if self.activations == "f32" else self.layout.correction(bench.library.target)
        corrections = () if self.correction is None else (self.correction,)
        self.sink = Sink(False, True, corrections, 32 if self.layout.is_float else self.layout.scale_columns)
        self.codes = Codes(self.sink, rows_max if self.activations == "int8" else 0, columns, bench.tile, self.heap)

    def _zeros(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        return self.heap.place(np.zeros(shape, dtype))

    def _run(self, kernel: Kernel, kind: Record, **fields: int) -> None:
        record = self.heap.place(kind.make(**fields))
        self.heap.freeze(record)
        self.bench.run(kernel, record)

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """Fill codes, scales, corrections; return float64 what they stand for (x itself for float32 activations)."""
        if self.activations == "f32":
            return x.astype(np.float64)
        n = self.heap.place(np.array([len(x)], np.int64))
        self._run(
            ew.quantize_kernel(self.sink), ew.QUANTIZE, n_rows=address(n), x=address(x), x_stride=x.strides[0],
            columns=self.columns, out=0, out_stride=0, **self.codes.written(),
        )  # fmt: skip
        return self.codes.values()[: len(x)]

    def __call__(self, x: np.ndarray, y: np.ndarray, add: bool = False, bias: np.ndarray | None = None) -> np.ndarray:
        """Multiply all rows of `x`; `y` float32 [n, >= panels * lanes], `bias` float32 [panels * lanes]."""
        self.bench.run(*self.prepared(x, y, add, bias))
        return y[:, : self.rows]

    def prepared(
        self, x: np.ndarray, y: np.ndarray, add: bool = False, bias: np.ndarray | None = None
    ) -> tuple[Kernel, np.ndarray]:
        """Return the kernel and the record of such a product; both stay good as long as this object."""
        n = self.heap.place(np.array([len(x)], np.int64))
        zeros = self._zeros((self.bench.lanes,), np.float32)
        matrices = self.heap.place(
            MATRIX.make(
                panels=address(self.panels), panel_bytes=self.panel_bytes, n_panels=self.count,
                n_chunks=-(-self.count // 3), y=address(y), y_stride=y.strides[0],
                bias=address(zeros if bias is None else bias), bias_step=0 if bias is None else 4 * self.bench.lanes,
            )
        )  # fmt: skip
        token_block, at_once, opened_stride = 6 * self.bench.tile, 0, 0
        if self.activations == "int8":
            at_once, opened_stride = workspace(self.layout, self.bench.library.target, self.steps)
        opened = self._zeros((self.bench.threads, opened_stride), np.uint8)
        source = self.codes.read(self.correction)
        if self.activations == "f32":
            source |= {"x": address(x), "x_stride": x.strides[0]}
        record = self.heap.place(
            MATMUL.make(
                n_rows=address(n), steps=self.steps, token_block=token_block, chunk=3, n_matrices=1,
                matrices=address(matrices), opened=address(opened), opened_stride=opened.strides[0],
                opened_steps=at_once, gates=0, gates_stride=0, **source,
            )
        )  # fmt: skip
        for array in (n, zeros, matrices, record):
            self.heap.freeze(array)
        self._kept = n, zeros, matrices, opened
        return matmul_kernel(self.name, add, self.activations), record

    def output(self, n: int) -> np.ndarray:
        return self._zeros((n, self.count * self.bench.lanes), np.float32)
