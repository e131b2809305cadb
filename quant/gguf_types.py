"""Constants of the GGUF container that reader and writer share.  Source: docs/gguf.md of ggml, `gguf.h`.

A file is, in order: magic "GGUF", u32 version, u64 number of tensors, u64 number of keys, the key/value pairs, the
tensor descriptions, zero padding up to `general.alignment`, and the data of each tensor padded likewise.  A string is
u64 length and UTF-8 bytes; an array is u32 element type, u64 count and the elements; all little-endian.

The limits are llama.cpp's where it has them (dimensions, name lengths), else far beyond any real model.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property

MAGIC = b"GGUF"
VERSION = 3
QUANTIZATION_VERSION = 2  # of the block formats: GGML_QNT_VERSION
READABLE_VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
ALIGNMENT_KEY = "general.alignment"

MAX_METADATA_BYTES = 256 << 20
MAX_KEYS = 65536
MAX_TENSORS = 65536
MAX_KEY_BYTES = 65535
MAX_TENSOR_NAME_BYTES = 63
MAX_DIMS = 4
MAX_ALIGNMENT = 65536


@dataclass(frozen=True)
class ValueType:
    """Type of a metadata value: its id in the file and, for numbers, `code` as `struct` and NumPy spell it."""

    id: int
    name: str
    code: str = ""

    @cached_property
    def nbytes(self) -> int:
        """Bytes of one number."""
        return struct.calcsize("<" + self.code)


STRING = ValueType(8, "string")
ARRAY = ValueType(9, "array")
VALUE_TYPES: dict[int, ValueType] = {
    type.id: type
    for type in (
        ValueType(0, "uint8", "B"),
        ValueType(1, "int8", "b"),
        ValueType(2, "uint16", "H"),
        ValueType(3, "int16", "h"),
        ValueType(4, "uint32", "I"),
        ValueType(5, "int32", "i"),
        ValueType(6, "float32", "f"),
        ValueType(7, "bool", "?"),
        STRING,
        ARRAY,
        ValueType(10, "uint64", "Q"),
        ValueType(11, "int64", "q"),
        ValueType(12, "float64", "d"),
    )
}
VALUE_TYPE_NAMES: dict[str, ValueType] = {type.name: type for type in VALUE_TYPES.values()}
INTEGERS = frozenset({"uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"})
FLOATS = frozenset({"float32", "float64"})


def valid_alignment(alignment: int) -> bool:
    """Whether `general.alignment` may be `alignment`: a power of two up to MAX_ALIGNMENT."""
    return 1 <= alignment <= MAX_ALIGNMENT and not alignment & (alignment - 1)


def round_up(n: int, alignment: int) -> int:
    """Return the least multiple of `alignment` that is not below `n`."""
    return -(-n // alignment) * alignment
