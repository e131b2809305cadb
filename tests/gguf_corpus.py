"""GGUF files by hand.  Enters: counts, entries and descriptions as they shall stand; leaves: the bytes, sound or not.

Nothing is checked and nothing of the package's own writer is used, so that wrong files can be made and a common
misunderstanding of reader and writer shows.
"""

from __future__ import annotations

import struct
from pathlib import Path

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
F32, F16, Q4_0, Q8_0, I8, BF16 = 0, 1, 2, 8, 24, 30


def u32(n: int) -> bytes:
    return struct.pack("<I", n)


def u64(n: int) -> bytes:
    return struct.pack("<Q", n)


def string(text: str | bytes, length: int | None = None) -> bytes:
    """A string as the file holds it; `length` overrides what it says about itself."""
    raw = text.encode() if isinstance(text, str) else text
    return u64(len(raw) if length is None else length) + raw


def entry(key: str | bytes, type: int, payload: bytes) -> bytes:
    """A key/value pair."""
    return string(key) + u32(type) + payload


def array(type: int, count: int, payload: bytes) -> bytes:
    """The value of an entry of type ARRAY."""
    return u32(type) + u64(count) + payload


def tensor(name: str | bytes, dims: tuple[int, ...], type: int, offset: int, n_dims: int | None = None) -> bytes:
    """A tensor's description; `dims` in the file's order, the row length first."""
    count = len(dims) if n_dims is None else n_dims
    return string(name) + u32(count) + b"".join(map(u64, dims)) + u32(type) + u64(offset)


def gguf(
    entries: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_entries: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file; the counts are those of what is there unless given."""
    counts = u64(len(tensors) if n_tensors is None else n_tensors) + u64(
        len(entries) if n_entries is None else n_entries
    )
    front = magic + u32(version) + counts + b"".join(entries) + b"".join(tensors)
    return front + bytes(-len(front) % alignment) + data


def sample(version: int = 3) -> bytes:
    """A small sound file: a value of every type, an array of every type, tensors of five types with padding between."""
    entries = (
        entry("general.architecture", STRING, string("llama")),
        entry("a.uint8", UINT8, struct.pack("<B", 255)),
        entry("a.int8", INT8, struct.pack("<b", -128)),
        entry("a.uint16", UINT16, struct.pack("<H", 65535)),
        entry("a.int16", INT16, struct.pack("<h", -32768)),
        entry("a.uint32", UINT32, u32(2**32 - 1)),
        entry("a.int32", INT32, struct.pack("<i", -(2**31))),
        entry("a.float32", FLOAT32, struct.pack("<f", 1.5)),
        entry("a.bool", BOOL, b"\1"),
        entry("a.uint64", UINT64, u64(2**64 - 1)),
        entry("a.int64", INT64, struct.pack("<q", -(2**63))),
        entry("a.float64", FLOAT64, struct.pack("<d", 0.1)),
        entry("b.string", ARRAY, array(STRING, 3, string("one") + string("") + string("zwölf\0"))),
        entry("b.float32", ARRAY, array(FLOAT32, 2, struct.pack("<2f", -1, 2))),
        entry("b.bool", ARRAY, array(BOOL, 3, b"\1\0\1")),
        entry("b.empty", ARRAY, array(INT32, 0, b"")),
    )
    tensors = (
        tensor("norm.weight", (3,), F32, 0),
        tensor("matrix.weight", (32, 2), Q8_0, 32),
        tensor("deep.weight", (1, 2, 3), F16, 128),
        tensor("quarter.weight", (64, 1), Q4_0, 160),
        tensor("wide.weight", (5, 1, 1, 1), BF16, 224),
    )
    data = bytes(range(12)) + bytes(20) + bytes(range(68)) + bytes(28) + bytes(range(12)) + bytes(20)
    data += bytes(range(36)) + bytes(28) + bytes(range(10)) + bytes(22)
    return gguf(entries, tensors, data, version=version)


def write(folder: Path, content: bytes) -> Path:
    """Write `content` to a file in `folder`."""
    path = folder / "m.gguf"
    path.write_bytes(content)
    return path
