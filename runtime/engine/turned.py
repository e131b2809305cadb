"""Matrices of types without kernels.  Enters: a tensor of a GGUF file; leaves: its rows in a type that has some.

Which type that is depends on the type and, for a few, on the scales in the file (quant/formats/repack.py).  Such a
tensor may have a scale beside it (llama.cpp's `<name>.scale`, of NVFP4), which is multiplied in here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelFileError
from ...quant.formats import FORMATS, Layout
from ...quant.gguf_reader import TensorView

_PIECE = 1 << 20  # elements turned at once: what lies beside the panels is a few megabytes


class SourceRows:
    """The rows of a matrix of any type, [rows, columns].

    layout      of the type, with kernels, that they come in
    row_bytes   of a row in it
    is_turned   whether the file has them in another; exact: whether nothing is lost then

    scales: float32 [matrices of the tensor], what their values are multiplied by; None: by nothing
    """

    def __init__(self, view: TensorView, scales: NDArray[np.float32] | None = None):
        self.view = view
        self._scales = scales
        self.layout: Layout
        self.is_turned = view.layout.name not in FORMATS
        if not self.is_turned:
            self.layout, self.exact = view.layout, True
        elif scales is not None:
            self.layout, self.exact = FORMATS["q8_0"], False
        else:
            from ...quant.formats.repack import turned_into  # most files need nothing of it

            self.layout, self.exact = turned_into(view.format, self._data(), FORMATS)
        self.row_bytes = self.layout.row_bytes(view.shape[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of all rows in `layout`."""
        return self.layout.nbytes(self.view.shape)

    @property
    def file_bytes(self) -> int:
        """Bytes of them in the file."""
        return self.view.nbytes

    def turned(self, multiple: int, threads: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield (first row, rows uint8 [n, row_bytes]) in order; the first row is a multiple of `multiple`.

        Raises ModelFileError for a block that is not finite.
        """
        from concurrent.futures import ThreadPoolExecutor

        from ...quant.formats.repack import turn

        data, has, into = self._data(), self.view.format, FORMATS[self.layout.name]
        step = max(1, _PIECE // self.view.shape[-1] // multiple) * multiple

        def piece(begin: int) -> NDArray[np.uint8]:
            part = data[begin : begin + step]
            where = has.first_nonfinite(part)
            if where is not None:
                message = f"has a {has.name} block that is not finite: number {where} from row {begin} on"
                raise ModelFileError(self.view.path, message, place=f"tensor {self.view.name}")
            if self._scales is None:
                return turn(has, part, into)
            which = np.arange(begin, begin + len(part)) * len(self._scales) // len(data)
            return into.quantize(has.dequantize(part) * self._scales[which, None])

        begins = range(0, len(data), step)
        with ThreadPoolExecutor(threads) as pool:
            for i in range(0, len(begins), 2 * threads):
                some = begins[i : i + 2 * threads]
                yield from zip(some, pool.map(piece, some), strict=True)

    def _data(self) -> NDArray[np.uint8]:
        return self.view.data.reshape(-1, self.view.layout.row_bytes(self.view.shape[-1]))


class HeadRows(SourceRows):
    """Of a matrix with `each` rows for every head, rows first..first+n-1 of each head, as float32.

    transposed: each head's part is.  As a tensor they are [heads, n, columns], or [heads, columns, n].
    """

    def __init__(self, view: TensorView, each: int, first: int, n: int, transposed: bool):
        super().__init__(view)
        self._each, self._part, self._transposed = each, slice(first, first + n), transposed
        self._heads, columns = view.shape[0] // each, view.shape[1]
        self.layout, self.is_turned, self.exact = FORMATS["f32"], True, True
        self._elements = n * columns
        self.row_bytes = 4 * (n if transposed else columns)

    @property
    def nbytes(self) -> int:
        return 4 * self._heads * self._elements

    @property
    def file_bytes(self) -> int:
        return self.view.nbytes * (self._part.stop - self._part.start) // self._each

    def turned(self, multiple: int, threads: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield (first row, rows uint8 [n, row_bytes]) of each head in order; `multiple`: the rows of a head."""
        data = self._data()
        for head in range(self._heads):
            rows = data[head * self._each : (head + 1) * self._each][self._part]
            values = self.view.format.dequantize(rows)
            values = np.ascontiguousarray(values.T if self._transposed else values)
            yield head * len(values), values.view(np.uint8)


def describe_turned(path: Path, matrices: list[SourceRows]) -> str:
    """Return the line that says which types the file's matrices were turned into, and what memory that takes."""
    kinds = Counter((rows.view.layout.name, rows.layout.name, rows.exact) for rows in matrices)
    parts = [
        f"{count} of type {has} run as {gets} ({'nothing is lost' if exact else 'rounded'})"
        for (has, gets, exact), count in kinds.items()
    ]
    more = sum(rows.nbytes - rows.file_bytes for rows in matrices)
    return f"{path}: matrices {', '.join(parts)}; they take {more / 2**20:.1f} MiB more than in the file"
