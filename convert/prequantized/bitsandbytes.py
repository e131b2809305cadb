"""bitsandbytes: 4 bits from a table of 16 values (NF4, FP4), or 8 bits with a scale a row (LLM.int8).

Enters: weights and what lies beside them.  Layout of W, a weight of 4 bits (elements counted through all rows):

    W                   uint8 [n / 2, 1]    two codes a byte, the earlier one in the upper bits
    W.quant_map         float32 [16]        the values of the codes
    W.absmax            float32 [blocks]    the scale of each block of elements; with double quantization uint8
    W.nested_quant_map  float32 [256]       with double quantization: the values of absmax,
    W.nested_absmax     float32 [...]       their scales, each of nested_blocksize blocks; nested_offset is added
    W.quant_state.bitsandbytes__nf4         uint8: JSON with blocksize, shape, and the nested numbers (or ...__fp4)

w = quant_map[code] * absmax.  Of 8 bits: M.weight int8 [rows, columns] and M.SCB float32 [rows], w = code * SCB / 127.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ...errors import UnsupportedError
from ..jsonfile import Settings, parse_json
from .base import Quantized, Reading, Store, checked, fail, floats, whole
from .groups import Groups, Scales, part

METHODS = ("bitsandbytes",)
HARMLESS = (
    "load_in_.*|_load_in_.*|bnb_4bit_(compute_dtype|quant_storage|quant_type|use_double_quant)|"
    "llm_int8_(enable_fp32_cpu_offload|has_fp16_weight|skip_modules|threshold)"
)
_STATES = {".quant_state.bitsandbytes__nf4": "nf4", ".quant_state.bitsandbytes__fp4": "fp4"}
_MOST_STATE = 1 << 16


def read(settings: Settings, store: Store) -> Reading:
    """Return a matrix for every weight with a quant_state or an SCB."""
    storage = settings.text("bnb_4bit_quant_storage", "uint8")
    if storage != "uint8":
        key = f"config.json {settings.place}bnb_4bit_quant_storage"
        raise UnsupportedError(key, storage, ("uint8",), settings.path)
    tensors: dict[str, Quantized] = {}
    for name in store.tensors:
        for suffix, kind in _STATES.items():
            if name.endswith(suffix):
                weight = name.removesuffix(suffix)
                tensors[weight] = _Table(store, weight, name, kind)
        if name.endswith(".SCB"):
            base = name.removesuffix("SCB")
            tensors[f"{base}weight"] = _int8(store, base)
    return Reading(tensors)


def _int8(store: Store, base: str) -> Groups:
    weight = checked(store, f"{base}weight", ("I8",))
    if len(weight.shape) != 2:
        fail(store, weight.name, f"has the shape {list(weight.shape)}; a matrix is allowed")
    rows, columns = weight.shape
    sources, order = [weight.name, f"{base}SCB"], f"{base}weight_format"
    if order in store.tensors:
        if whole(store, order).reshape(-1).tolist() != [0]:
            fail(store, order, "is not 0: the matrix is stored for a GPU's kernels; only rows are read")
        sources.append(order)
    checked(store, f"{base}SCB", ("F32",), (rows,))

    def read_scales() -> Scales:
        scale = (floats(store, f"{base}SCB") / np.float32(127)).reshape(rows, 1)
        return Scales(scale, np.zeros((rows, 1), np.int32), np.zeros(columns, np.int64), -128, 127)

    read_packed = partial(whole, store, weight.name)
    return Groups(store, "bitsandbytes int8", weight.shape, sources, read_scales, read_packed, part)


class _Table(Quantized):
    """Codes of 4 bits; rows are read as they are asked for."""

    def __init__(self, store: Store, name: str, state: str, kind: str):
        size = checked(store, state, ("U8",)).shape
        if len(size) != 1 or size[0] > _MOST_STATE:
            fail(store, state, f"has the shape {list(size)}; JSON of up to {_MOST_STATE} bytes is allowed")
        found = parse_json(store.file_of(state), whole(store, state).tobytes())
        if not isinstance(found, dict):
            fail(store, state, "holds no JSON object")
        self._settings = Settings(store.file_of(state), found, f"{name}.quant_state.")
        shape = self._settings.items("shape")
        if len(shape) != 2 or any(type(n) is not int or not 0 < n < 1 << 31 for n in shape):
            self._settings.fail("shape", f"is {shape}; two positive integers are allowed")
        elements = shape[0] * shape[1]
        self._block = self._settings.integer("blocksize", 1, 1 << 20)
        self._blocks = -(-elements // self._block)
        checked(store, name, ("U8",), (-(-elements // 2), 1))
        checked(store, f"{name}.quant_map", ("F32",), (16,))
        sources = [name, state, f"{name}.quant_map", f"{name}.absmax"]
        self._is_nested = checked(store, f"{name}.absmax", ("F32", "U8"), (self._blocks,)).dtype == "U8"
        if self._is_nested:
            self._nested_block = self._settings.integer("nested_blocksize", 1, 1 << 20)
            checked(store, f"{name}.nested_quant_map", ("F32",), (256,))
            checked(store, f"{name}.nested_absmax", ("F32",), (-(-self._blocks // self._nested_block),))
            sources += [f"{name}.nested_quant_map", f"{name}.nested_absmax"]
        super().__init__(store, shape, sources)
        self.scheme = f"bitsandbytes {kind}"

    def rows(self, begin: int, end: int) -> np.ndarray:
        """Return rows [begin, end) as float32 [end - begin, n_cols]."""
        name, columns = self.sources[0], self.shape[1]
        first, last = begin * columns, end * columns
        pairs = self.store.raw(name, first // 2, -(-last // 2)).reshape(-1)
        codes = np.stack([pairs >> 4, pairs & 15], axis=1).reshape(-1)[first % 2 :][: last - first]
        block = np.arange(first, last) // self._block
        scales = self._absmax(int(block[0]), int(block[-1]) + 1)
        values = floats(self.store, f"{name}.quant_map")[codes] * scales[block - block[0]]
        return values.reshape(end - begin, columns)

    def _absmax(self, begin: int, end: int) -> np.ndarray:
        """Return the scales of blocks [begin, end), float32 [end - begin]."""
        name = self.sources[0]
        stored = whole(self.store, f"{name}.absmax")[begin:end]
        if not self._is_nested:
            return stored
        values = floats(self.store, f"{name}.nested_quant_map")[stored]
        scales = floats(self.store, f"{name}.nested_absmax")[np.arange(begin, end) // self._nested_block]
        return values * scales + np.float32(self._settings.number("nested_offset", -1e30, 1e30))
