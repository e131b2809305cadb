"""compressed-tensors (vLLM): whole numbers packed in words or as bytes, or FP8.  Enters: weights and their scales.

Layout of a matrix M by its format, with M.weight_scale float [rows, groups] (or one number):

    pack-quantized   M.weight_packed int32 [rows, columns * bits / 32], lowest bits first, without gaps,
                     code = number + 2^(bits - 1)
                     M.weight_shape int [2]
                     M.weight_zero_point int32 [rows * bits / 32, groups], packed down the rows; not of symmetric ones
                     M.weight_g_idx int32 [columns], the group of each column, where they are not in order
    int-quantized    M.weight int8 [rows, columns];  M.weight_zero_point int8 [rows, groups], not of symmetric ones
    float-quantized  M.weight F8_E4M3, as in `fp8.py`

w = scale * (number - zero).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from ...errors import UnsupportedError
from ..jsonfile import Settings
from .base import Quantized, Reading, Store, checked, fail, floats, unpack_words, whole
from .fp8 import activation_scales, fp8_tensors
from .groups import Groups, Scales, even_groups, part

METHODS = ("compressed-tensors",)
HARMLESS = "ignore|quantization_status|global_compression_ratio|kv_cache_scheme|version|transform_config"
_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")


def read(settings: Settings, store: Store) -> Reading:
    """Return a matrix for every packed weight, every weight of int8 with a scale, and every one of F8_E4M3."""
    sizes, tile, bits = set(), None, set()
    formats = {settings.text("format")}
    groups = settings.section("config_groups")
    for name in groups.values:
        group = groups.section(name)
        formats.add(group.text("format", settings.text("format")))
        weights = group.section("weights")
        bits.add(weights.integer("num_bits", 1, 32))
        sizes.add(weights.integer("group_size", -1, 1 << 20, default=-1))
        tile = weights.get("block_structure", tile)
    for found in sorted(formats - {"mixed-precision"}):
        if found not in _FORMATS:
            raise UnsupportedError(f"config.json {settings.place}format", found, _FORMATS, settings.path)
    sparsity = settings.section("sparsity_config").get("format", "dense")
    if sparsity != "dense":
        key = f"config.json {settings.place}sparsity_config.format"
        raise UnsupportedError(key, sparsity, ("dense",), settings.path)
    transforms = settings.get("transform_config", None)
    if transforms:
        raise UnsupportedError(f"config.json {settings.place}transform_config", "given", ("none",), settings.path)
    tensors: dict[str, Quantized] = dict(fp8_tensors(store, tile))
    for name, tensor in store.tensors.items():
        if name.endswith(".weight_packed"):
            base = name.removesuffix("_packed")
            tensors[base] = _packed(store, base, sorted(bit for bit in bits if bit <= 8), sizes)
        elif tensor.dtype == "I8" and name.endswith(".weight"):
            tensors[name] = _bytes(store, name, sizes)
    return Reading(tensors, activation_scales(store))


def _packed(store: Store, base: str, bits: list[int], sizes: set[int]) -> Groups:
    name, shape_name = f"{base}_packed", f"{base}_shape"
    there = checked(store, name, ("I32",)).shape
    checked(store, shape_name, ("I32", "I64"), (2,))
    rows, columns = (int(n) for n in whole(store, shape_name))
    width = next((b for b in bits if there == (rows, -(-columns * b // 32))), None)
    if width is None or min(rows, columns) < 1:
        fail(store, name, f"has the shape {list(there)}; no num_bits of config.json make that of {[rows, columns]}")
    return _Matrix(store, base, (rows, columns), [name, shape_name], sizes, width).groups()


def _bytes(store: Store, name: str, sizes: set[int]) -> Groups:
    shape = checked(store, name, ("I8",)).shape
    if len(shape) != 2:
        fail(store, name, f"has the shape {list(shape)}; a matrix is allowed")
    return _Matrix(store, name, shape, [name], sizes, None).groups()


class _Matrix:
    """A matrix under its unquantized name `base`; codes of `bits` in words, or bytes where that is None."""

    def __init__(
        self, store: Store, base: str, shape: Sequence[int], sources: list[str], sizes: set[int], bits: int | None
    ):
        self._store, self._base, self._shape, self._bits = store, base, shape, bits
        scale = checked(store, f"{base}_scale", ("F32", "F16", "BF16"))
        rows, columns = shape
        self._scale_shape = scale.shape if math.prod(scale.shape) > 1 else (1, 1)
        down, groups = self._scale_shape if len(self._scale_shape) == 2 else (0, 0)
        fitting = {size for size in sizes if size > 0 and -(-columns // size) == groups}
        if groups == 1 and down in (1, rows):
            fitting = {columns}
        if len(fitting) != 1 or down not in (1, rows) or (down == 1 and groups > 1):
            asked = f"[], [{rows}, 1] or [{rows}, groups of config.json]"
            fail(store, scale.name, f"has the shape {list(scale.shape)}; {asked} is allowed beside {list(shape)}")
        self._size = fitting.pop()
        self._sources = [*sources, scale.name]
        self._has_zero, self._has_order = self._takes("_zero_point"), self._takes("_g_idx")

    def groups(self) -> Groups:
        """Return the matrix."""
        label = f"compressed-tensors {self._bits or 8} bits"
        read_packed = partial(whole, self._store, self._sources[0])
        unpack = part if self._bits is None else self._unpack
        return Groups(self._store, label, self._shape, self._sources, self._read_scales, read_packed, unpack)

    def _takes(self, suffix: str) -> bool:
        """Return whether there is a tensor of this suffix, which is then a source."""
        name = self._base + suffix
        if name in self._store.tensors:
            self._sources.append(name)
        return name in self._store.tensors

    def _unpack(self, words: np.ndarray, begin: int, end: int) -> np.ndarray:
        assert self._bits is not None
        return unpack_words(words[begin:end], self._bits)[:, : self._shape[1]]

    def _read_scales(self) -> Scales:
        rows, columns = self._shape
        _, groups = self._scale_shape
        scale = np.broadcast_to(floats(self._store, f"{self._base}_scale").reshape(self._scale_shape), (rows, groups))
        group = even_groups(columns, groups, self._size)
        if self._has_order:
            name = f"{self._base}_g_idx"
            checked(self._store, name, ("I32",), (columns,))
            group = whole(self._store, name).astype(np.int64)
            if group.min() < 0 or group.max() >= groups:
                fail(self._store, name, f"goes from {group.min()} to {group.max()}; 0 to {groups - 1} are allowed")
        lowest, highest = (0, (1 << self._bits) - 1) if self._bits else (-128, 127)
        return Scales(scale, self._read_zero(groups), group, lowest, highest)

    def _read_zero(self, groups: int) -> np.ndarray:
        """Return the code of zero, int32 [rows, groups]."""
        rows, name = self._shape[0], f"{self._base}_zero_point"
        if not self._has_zero:
            return np.full((rows, groups), 1 << (self._bits - 1) if self._bits else 0, np.int32)
        if self._bits:
            checked(self._store, name, ("I32",), (-(-rows * self._bits // 32), groups))
            return unpack_words(whole(self._store, name).T, self._bits)[:, :rows].T.astype(np.int32)
        checked(self._store, name, ("I8",), self._store.tensors[f"{self._base}_scale"].shape)
        stored = whole(self._store, name).astype(np.int32).reshape(self._scale_shape)
        return np.broadcast_to(stored, (rows, groups))
