"""What a scheme hands to the checkpoint.  Enters: stored tensors as bytes; leaves: `Quantized` tensors as float rows.

Values are those of the scheme's formula in float32, without the rounding to half precision that a GPU kernel may add.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol

import numpy as np

from ...errors import ModelFileError, printable
from ...quant.formats import BlockFormat
from ..safetensors_file import StoredTensor, to_float32

_NUMPY = {"I32": "<i4", "I64": "<i8", "I8": "<i1", "U8": "<u1", "F8_E4M3": "<u1"}
_FLOATS = ("F32", "F16", "BF16")


class Store(Protocol):
    """The stored tensors of a checkpoint."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]: ...
    def raw(self, name: str, begin: int, end: int) -> np.ndarray:
        """Rows [begin, end) of a tensor as stored, uint8 [end - begin, bytes of a row]; a vector is one row."""

    def file_of(self, name: str) -> Path: ...


class Quantized(ABC):
    """A tensor made of stored ones.

    shape    rows first, as it has unquantized
    sources  names of the stored tensors that it is made of
    scheme   how the checkpoint quantized it, in a word
    """

    scheme: str

    def __init__(self, store: Store, shape: Sequence[int], sources: Sequence[str]):
        self.store, self.shape, self.sources = store, tuple(shape), tuple(sources)

    @abstractmethod
    def rows(self, begin: int, end: int) -> np.ndarray:
        """Return rows [begin, end) as float32 [end - begin, n_cols]."""

    def held_by(self, nearly: bool = False) -> tuple[BlockFormat, ...]:
        """Return the block formats that hold every value exactly, the smallest first; reads the scales.

        nearly   those that hold the codes, beside scales rounded to float16
        """
        return ()

    def packed(self, format: BlockFormat, begin: int, end: int) -> np.ndarray:
        """Return rows [begin, end) in one of the formats of `held_by`, uint8 [end - begin, row_bytes]."""
        raise ValueError(f"{format.name} does not hold {self.sources[0]}")

    def release(self) -> None:  # noqa: B027  (most hold nothing)
        """Give back what reading kept in memory."""


@dataclass(frozen=True)
class Reading:
    """What a scheme found.

    tensors  by the names that they have unquantized
    dropped  names of stored tensors that say how activations are rounded, which no weight depends on
    """

    tensors: dict[str, Quantized]
    dropped: tuple[str, ...] = field(default=())


def fail(store: Store, name: str, message: str) -> NoReturn:
    """Raise ModelFileError about a stored tensor."""
    raise ModelFileError(store.file_of(name), message, place=f"tensor {printable(name)}")


def checked(store: Store, name: str, dtypes: Sequence[str], shape: Sequence[int] | None = None) -> StoredTensor:
    """Return a stored tensor; ModelFileError when it is missing, or of another type or shape."""
    found = store.tensors.get(name)
    if found is None:
        known = next(iter(store.tensors))
        message = "is missing; the tensors beside it are quantized with it"
        raise ModelFileError(store.file_of(known).parent, message, place=f"tensor {printable(name)}")
    if found.dtype not in dtypes:
        fail(store, name, f"has the type {found.dtype}; {' or '.join(dtypes)} is allowed")
    if 0 in found.shape:
        fail(store, name, f"has the shape {list(found.shape)}, and so no numbers")
    if shape is not None and found.shape != tuple(shape):
        fail(store, name, f"has the shape {list(found.shape)}; the tensors beside it ask for {list(shape)}")
    return found


def whole(store: Store, name: str) -> np.ndarray:
    """Return all of a checked tensor in its shape: floats as float32, bytes of F8_E4M3 as uint8."""
    tensor = store.tensors[name]
    rows = int(np.prod(tensor.shape[:-1])) if tensor.shape else 1
    data = store.raw(name, 0, rows).reshape(-1)
    if tensor.dtype in _FLOATS:
        return to_float32(data.tobytes(), tensor.dtype).reshape(tensor.shape)
    return data.view(_NUMPY[tensor.dtype]).reshape(tensor.shape)


def floats(store: Store, name: str, shape: Sequence[int] | None = None) -> np.ndarray:
    """Return a tensor of scales, float32 of `shape` (None: any); ModelFileError for one of another type."""
    checked(store, name, _FLOATS, shape)
    return whole(store, name)


def unpack_words(words: np.ndarray, bits: int) -> np.ndarray:
    """Codes of 1 to 8 bits in words, the lowest bits first, without gaps: int32 [..., n] -> uint8 [..., n * 32 / bits].

    What the last word has left over is dropped.
    """
    words = np.ascontiguousarray(words)
    if 32 % bits == 0:
        shifts = np.arange(0, 32, bits, dtype=np.uint32)
        codes = (words.view(np.uint32)[..., None] >> shifts) & np.uint32((1 << bits) - 1)
        return codes.astype(np.uint8).reshape(*words.shape[:-1], -1)
    single = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")
    count = single.shape[-1] // bits
    parts = single[..., : count * bits].reshape(*words.shape[:-1], count, bits)
    return np.packbits(parts, axis=-1, bitorder="little")[..., 0]
