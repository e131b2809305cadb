"""AWQ: whole numbers of 4 bits, packed along the rows.  Enters: qweight, qzeros, scales.

Layout (AutoAWQ, version "gemm"; the matrix lies there transposed, inputs first):

    qweight  int32 [columns, rows / 8]   codes of 8 consecutive rows in a word, interleaved
    qzeros   int32 [groups, rows / 8]    zeros likewise
    scales   float [groups, rows]

From the lowest bits on, a word has the codes of rows 0, 2, 4, 6, 1, 3, 5, 7.  w = scale * (code - zero).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ...errors import UnsupportedError
from ..jsonfile import Settings
from .base import Quantized, Reading, Store, checked, fail, floats, unpack_words, whole
from .groups import Groups, Scales, even_groups

METHODS = ("awq",)
HARMLESS = "modules_to_not_convert|backend|do_fuse|fuse_max_seq_len|modules_to_fuse|exllama_config|dataset|.*_calib.*"
_PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7])
"""Where in a word each of its eight rows is."""


def read(settings: Settings, store: Store) -> Reading:
    """Return a matrix for every tensor called qweight."""
    bits = settings.get("bits", settings.get("w_bit", None))
    size = settings.get("group_size", settings.get("q_group_size", None))
    for key, found, allowed in (
        ("bits", bits, (4,)),
        ("version", settings.text("version", "gemm").lower(), ("gemm",)),
        ("zero_point", settings.boolean("zero_point", True), (True,)),
    ):
        if found not in allowed:
            raise UnsupportedError(
                f"config.json {settings.place}{key}", found, [str(a) for a in allowed], settings.path
            )
    if type(size) is not int or size < -1 or size == 0:
        settings.fail("group_size", f"is {size}; -1 or a positive integer is allowed")
    tensors: dict[str, Quantized] = {}
    for name in store.tensors:
        if name.endswith(".qweight"):
            base = name.removesuffix("qweight")
            tensors[f"{base}weight"] = _matrix(store, base, size)
    return Reading(tensors)


def _matrix(store: Store, base: str, size: int) -> Groups:
    packed = checked(store, f"{base}qweight", ("I32",))
    if len(packed.shape) != 2:
        fail(store, packed.name, f"has the shape {list(packed.shape)}; a matrix is allowed")
    columns, rows = packed.shape[0], packed.shape[1] * 8
    groups = 1 if size <= 0 else -(-columns // size)
    scales, zeros = f"{base}scales", f"{base}qzeros"
    checked(store, scales, ("F16", "BF16", "F32"), (groups, rows))
    checked(store, zeros, ("I32",), (groups, rows // 8))

    def read_scales() -> Scales:
        zero = _unpack(whole(store, zeros)).astype(np.int32)
        group = even_groups(columns, groups, size if size > 0 else columns)
        return Scales(floats(store, scales).T, zero.T, group, 0, 15)

    def unpack(words: np.ndarray, begin: int, end: int) -> np.ndarray:
        first = begin // 8
        codes = _unpack(words[:, first : -(-end // 8)])
        return np.ascontiguousarray(codes[:, begin - 8 * first : end - 8 * first].T)

    sources, read_packed = (packed.name, zeros, scales), partial(whole, store, packed.name)
    return Groups(store, "awq 4 bits", (rows, columns), sources, read_scales, read_packed, unpack)


def _unpack(words: np.ndarray) -> np.ndarray:
    """int32 [n, rows / 8] -> uint8 [n, rows]."""
    codes = unpack_words(words, 4).reshape(len(words), -1, 8)
    return codes[:, :, _PLACES].reshape(len(words), -1)
