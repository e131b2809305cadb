"""MXFP4 experts, as gpt-oss has them: blocks of 32 numbers of 4 bits with a power of two.  Enters: blocks and scales.

    X_blocks  uint8 [experts, rows, groups, 16]   columns 2j and 2j + 1 of a group in the low and high bits of byte j
                                                  (the last two dimensions may be one)
    X_scales  uint8 [experts, rows, groups]       exponent

X is then [experts, rows, 32 * groups], a row for each output (the unquantized parameter of that name lies transposed).
w = 2^(exponent - 127) * E2M1[code].  GGUF's MXFP4 holds the same, with columns j and j + 16 in a byte.
"""

from __future__ import annotations

import numpy as np

from ...quant.formats import FORMATS, BlockFormat
from ..jsonfile import Settings
from .base import Quantized, Reading, Store, checked, fail

METHODS = ("mxfp4",)
HARMLESS = "modules_to_not_convert|dequantize"
_FORMAT = FORMATS["mxfp4"]


def read(settings: Settings, store: Store) -> Reading:
    """Return a tensor for every one of blocks."""
    names = [name.removesuffix("_blocks") for name in store.tensors if name.endswith("_blocks")]
    return Reading({name: _Blocks(store, name) for name in names})


class _Blocks(Quantized):
    scheme = "mxfp4"

    def __init__(self, store: Store, name: str):
        blocks = checked(store, f"{name}_blocks", ("U8",)).shape
        groups = checked(store, f"{name}_scales", ("U8",)).shape
        if len(groups) < 2 or blocks not in ((*groups, 16), (*groups[:-1], 16 * groups[-1])):
            message = f"has the shape {list(blocks)}; [..., rows, groups, 16] is allowed, that of the scales being "
            fail(store, f"{name}_blocks", f"{message}{list(groups)}")
        super().__init__(store, (*groups[:-1], 32 * groups[-1]), (f"{name}_blocks", f"{name}_scales"))
        self._step = groups[-1] if len(blocks) > len(groups) else 1  # rows, as stored, that make one of the tensor

    def rows(self, begin: int, end: int) -> np.ndarray:
        """Return rows [begin, end) as float32 [end - begin, n_cols]."""
        return _FORMAT.dequantize(self.packed(_FORMAT, begin, end))

    def held_by(self, nearly: bool = False) -> tuple[BlockFormat, ...]:
        """Return MXFP4."""
        return (_FORMAT,)

    def packed(self, format: BlockFormat, begin: int, end: int) -> np.ndarray:
        """Return rows [begin, end) as blocks of MXFP4, uint8 [end - begin, row_bytes]."""
        pairs = self.store.raw(self.sources[0], begin * self._step, end * self._step).reshape(-1, 16)
        scales = self.store.raw(self.sources[1], begin, end).reshape(-1, 1)
        codes = np.stack([pairs & 15, pairs >> 4], axis=2).reshape(-1, 32)
        return np.hstack([scales, codes[:, :16] | codes[:, 16:] << 4]).reshape(end - begin, -1)
