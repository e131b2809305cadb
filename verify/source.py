"""A checkpoint's weights for the reference.  Enters: an open checkpoint; leaves: arrays by Hugging Face's names.

One matrix is in memory at a time, of a large one a piece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..convert.checkpoint import Checkpoint
from ..convert.jsonfile import Settings
from ..quant.formats import BlockFormat

Array = NDArray[np.floating[Any]]
Rounding = Mapping[str, Sequence[BlockFormat | None]]
"""Of matrices by name: what the file rounds each tensor that is made of one to, in its order; None: to nothing."""

PIECE = 1 << 26
"""Elements of a matrix that are in memory at once."""


class Source:
    """Weights and config.json of a checkpoint.

    dtype     of all that is computed with them
    rounding  what matrices are rounded to when they are read, along the inputs of a product
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: type[np.floating[Any]] = np.float32,
        rounding: Rounding = MappingProxyType({}),
    ):
        self._checkpoint, self.dtype, self._rounding = checkpoint, dtype, rounding

    @property
    def config(self) -> Settings:
        return self._checkpoint.config

    @property
    def class_name(self) -> str:
        """The class of models that config.json names."""
        names = self.config.items("architectures", [])
        return str(names[0]) if names else ""

    def has(self, name: str) -> bool:
        return name in self._checkpoint.tensors

    def vector(self, name: str) -> Array:
        """Return a tensor of one dimension [n]."""
        return self._checkpoint.rows(name, 0, 1)[0].astype(self.dtype)

    def rows(self, name: str, ids: Sequence[int]) -> Array:
        """Return the rows `ids` of a table, [len(ids), columns]; one that is a matrix too is first in the file."""
        return self.rounded(name, np.concatenate([self._checkpoint.rows(name, i, i + 1) for i in ids]), 0)

    def matrix(self, name: str, index: int = 0, *, transposed: bool = False) -> Array:
        """Return a matrix [rows, columns], of a stack number `index`; transposed: it is stored as [columns, rows]."""
        found = self.unrounded(name, index)
        return self.rounded(name, found.T if transposed else found)

    def unrounded(self, name: str, index: int = 0) -> NDArray[np.float32]:
        """Return a matrix as the checkpoint has it, float32 [rows, columns], of a stack number `index`."""
        stored = self._checkpoint.tensors[name].shape[-2]
        return self._checkpoint.rows(name, index * stored, (index + 1) * stored)

    def rounded(self, name: str, values: NDArray[np.float32], tensor: int = -1) -> Array:
        """Return `values` of matrix `name`, [..., n], rounded along the last axis as tensor number `tensor` is."""
        formats = self._rounding.get(name)
        if formats and (format := formats[tensor]) is not None:
            rows = np.ascontiguousarray(values).reshape(-1, values.shape[-1])
            values = format.dequantize(format.quantize(rows)).reshape(values.shape)
        return values.astype(self.dtype)

    def product(self, x: Array, name: str) -> Array:
        """Return x [n, columns] @ NAME.weight.T, [n, rows]."""
        weight = f"{name}.weight"
        n_rows, columns = self._checkpoint.tensors[weight].shape
        out = np.empty((len(x), n_rows), self.dtype)
        step = max(1, PIECE // columns)
        for begin in range(0, n_rows, step):
            end = min(begin + step, n_rows)
            out[:, begin:end] = x @ self.rounded(weight, self._checkpoint.rows(weight, begin, end)).T
        self._checkpoint.release(weight)
        return out

    def linear(self, x: Array, name: str) -> Array:
        """Return the product and NAME.bias, where there is one."""
        y = self.product(x, name)
        return y + self.vector(f"{name}.bias") if self.has(f"{name}.bias") else y
