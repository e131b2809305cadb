"""The front of a GGUF file: counts, metadata and tensor descriptions.  Enters: an open file; leaves: a checked Header.

Nothing is believed: every count is held against the bytes left before anything is allocated for it, sizes are Python
ints, and the tensors must lie one behind the other as llama.cpp demands.  The front is read, not mapped, so what was
checked stays as it was even when someone changes the file afterwards.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

import numpy as np

from ..errors import ModelFileError, printable
from .formats import LAYOUTS, Layout, format_by_id
from .formats.layout import REMOVED
from .gguf_strings import index_strings
from .gguf_types import (
    ALIGNMENT_KEY,
    ARRAY,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_ALIGNMENT,
    MAX_DIMS,
    MAX_KEY_BYTES,
    MAX_KEYS,
    MAX_METADATA_BYTES,
    MAX_TENSOR_NAME_BYTES,
    MAX_TENSORS,
    READABLE_VERSIONS,
    STRING,
    VALUE_TYPES,
    ValueType,
    round_up,
    valid_alignment,
)

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_FIRST_READ = 1 << 16
_LEAST_KEY_BYTES = 8 + 1 + 4 + 1
_LEAST_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8


class Entry(NamedTuple):
    """Where a metadata value lies: header bytes `start` to `end`; `ends` is from `index_strings`."""

    type: ValueType
    element: ValueType | None
    start: int
    end: int
    ends: np.ndarray | None


class TensorInfo(NamedTuple):
    """A tensor's description: shape rows first, `offset` of its data in the file, `place` of the description in it."""

    name: str
    shape: tuple[int, ...]
    layout: Layout
    offset: int
    nbytes: int
    place: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself, checked; `data` are the bytes that the entries point into."""

    version: int
    alignment: int
    data: bytearray
    entries: dict[str, Entry]
    tensors: dict[str, TensorInfo]
    data_end: int


def read_header(file: BinaryIO, path: Path, file_size: int) -> Header:
    """Read and check everything in front of the tensor data.

    file       the file, unbuffered, at its start
    file_size  its bytes, from fstat

    Raises ModelFileError naming file, place, byte offset, what was found and what is allowed; UnsupportedError for
    tensor types that GGUF has given up.
    """
    front = _Front(file, path, file_size)
    version = _read_version(front)
    n_tensors = front.u64("tensor count")
    n_keys = front.u64("key count")
    _check_count(front, n_tensors, MAX_TENSORS, _LEAST_TENSOR_BYTES, "tensor count", 8)
    _check_count(front, n_keys, MAX_KEYS, _LEAST_KEY_BYTES, "key count", 16)
    entries: dict[str, Entry] = {}
    for i in range(n_keys):
        _read_entry(front, entries, i)
    alignment = _read_alignment(front, entries)
    infos = _read_tensors(front, n_tensors, alignment)
    del front.data[front.pos :]
    data_start = round_up(front.pos, alignment)
    tensors = {info.name: info._replace(offset=data_start + info.offset) for info in infos}
    data_end = _check_data(front, list(tensors.values()), file_size)
    return Header(version, alignment, front.data, entries, tensors, data_end)


class _Front:
    """The bytes of the file read so far, and the place reached in them."""

    def __init__(self, file: BinaryIO, path: Path, file_size: int):
        self.data = bytearray()
        self.pos = 0
        self.limit = min(file_size, MAX_METADATA_BYTES)
        self.path = path
        self._file, self._file_size = file, file_size

    def fail(self, place: str, offset: int, message: str) -> NoReturn:
        """Raise ModelFileError for what stands at byte `offset`."""
        raise ModelFileError(self.path, message, place=place, offset=offset)

    def load(self, end: int, place: str) -> None:
        """Make data[:end] available; ModelFileError when the file, or the metadata limit, ends before."""
        if end <= len(self.data):
            return
        if end > self._file_size:
            self.fail(
                place,
                self.pos,
                f"needs {end - self.pos} bytes; {self._file_size - self.pos} are left of a file of {self._file_size} "
                "bytes (truncated or damaged)",
            )
        if end > self.limit:
            self.fail(place, self.pos, f"metadata reaches byte {end}; allowed are {self.limit} bytes")
        target = min(max(end, 2 * len(self.data), _FIRST_READ), self.limit)
        while len(self.data) < target:
            chunk = self._file.read(target - len(self.data))
            if not chunk:
                self.fail(place, len(self.data), f"the file shrank while it was read; it had {self._file_size} bytes")
            self.data += chunk

    def u32(self, place: str) -> int:
        """Read a number of 32 bits."""
        end = self.pos + 4
        if end > len(self.data):
            self.load(end, place)
        value: int = _U32.unpack_from(self.data, self.pos)[0]
        self.pos = end
        return value

    def u64(self, place: str) -> int:
        """Read a number of 64 bits."""
        end = self.pos + 8
        if end > len(self.data):
            self.load(end, place)
        value: int = _U64.unpack_from(self.data, self.pos)[0]
        self.pos = end
        return value

    def skip(self, count: int, place: str) -> None:
        """Pass over `count` bytes."""
        end = self.pos + count
        if end > len(self.data):
            self.load(end, place)
        self.pos = end

    def name(self, place: str, most: int) -> str:
        """Read a string of 1 to `most` bytes of UTF-8."""
        start = self.pos
        length = self.u64(place)
        if not 1 <= length <= most:
            self.fail(place, start, f"its name has {length} bytes; allowed are 1 to {most}")
        self.skip(length, place)
        try:
            return self.data[start + 8 : self.pos].decode()
        except UnicodeDecodeError:
            raw = bytes(self.data[start + 8 : self.pos])
            self.fail(place, start + 8, f"its name {printable(raw)} is not UTF-8")


def _read_version(front: _Front) -> int:
    """Check magic and version."""
    if front.limit == 0:
        front.fail("magic", 0, "the file is empty; a GGUF file starts with 'GGUF'")
    front.load(min(512, front.limit), "magic")
    magic = bytes(front.data[:4])
    if magic != MAGIC:
        looks = _looks_like(bytes(front.data[:512]))
        guess = f"; it looks like {looks}" if looks else ""
        front.fail("magic", 0, f"found {magic!r}, a GGUF file starts with {MAGIC!r}{guess}")
    front.skip(4, "magic")
    version = front.u32("version")
    if version in READABLE_VERSIONS:
        return version
    allowed = " and ".join(map(str, READABLE_VERSIONS))
    if version and not version & 0xFFFF:
        message = f"reads {version:#x}: the byte order is big-endian, only little-endian files are read"
    else:
        message = f"GGUF version {version} is not supported; supported are {allowed}: convert the model again"
    return front.fail("version", 4, message)


def _looks_like(front: bytes) -> str | None:
    """Name the kind of a file that is not GGUF from its first bytes."""
    text = front.lstrip()[:64].lower()
    if front[:4] in (b"lmgg", b"fmgg", b"tjgg"):
        return "a GGML file from before GGUF"
    if front[:2] == b"PK":
        return "a zip archive (PyTorch checkpoint?)"
    if front[:1] == b"\x80":
        return "a Python pickle"
    if front[8:9] == b"{":
        return "a safetensors file"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page"
    if text.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer: the file itself was not downloaded"
    if text.startswith((b"{", b"[")):
        return "JSON"
    return None


def _check_count(front: _Front, count: int, most: int, least_bytes: int, place: str, offset: int) -> None:
    left = front.limit - front.pos
    if count * least_bytes > left:
        front.fail(place, offset, f"{count} cannot be: they take {least_bytes} bytes each at least, {left} are left")
    if count > most:
        front.fail(place, offset, f"found {count}; allowed are {most}")


def _read_entry(front: _Front, entries: dict[str, Entry], i: int) -> None:
    """Read key/value pair number `i`."""
    start = front.pos
    key = front.name(f"key number {i}", MAX_KEY_BYTES)
    place = f"key {key!r}"
    if key in entries:
        front.fail(place, start, f"is there twice; its first value is at byte {entries[key].start}")
    type = _read_type(front, place)
    if type is STRING:
        length = front.u64(place)
        begin = front.pos
        front.skip(length, place)
        entries[key] = Entry(type, None, begin, front.pos, None)
    elif type is ARRAY:
        entries[key] = _read_array(front, place)
    else:
        begin = front.pos
        front.skip(type.nbytes, place)
        entries[key] = Entry(type, None, begin, front.pos, None)
        if type.name == "bool":
            _check_bools(front, place, begin)


def _read_type(front: _Front, place: str) -> ValueType:
    start = front.pos
    id = front.u32(place)
    if id not in VALUE_TYPES:
        front.fail(place, start, f"value type {id} is unknown; allowed are 0 to {max(VALUE_TYPES)}")
    return VALUE_TYPES[id]


def _read_array(front: _Front, place: str) -> Entry:
    start = front.pos
    element = _read_type(front, place)
    if element is ARRAY:
        front.fail(place, start, "is an array of arrays; allowed are arrays of numbers, bools and strings")
    count_at = front.pos
    count = front.u64(place)
    width = 8 if element is STRING else element.nbytes
    left = front.limit - front.pos
    if count * width > left:
        front.fail(
            place, count_at, f"{count} elements of {element.name} take {count * width} bytes or more; {left} are left"
        )
    begin = front.pos
    if element is STRING:
        ends = index_strings(front, count, place)
        return Entry(ARRAY, element, begin, front.pos, ends)
    front.skip(count * width, place)
    if element.name == "bool":
        _check_bools(front, place, begin)
    return Entry(ARRAY, element, begin, front.pos, None)


def _check_bools(front: _Front, place: str, start: int) -> None:
    values = np.frombuffer(bytes(front.data[start : front.pos]), np.uint8)
    bad = np.flatnonzero(values > 1)
    if bad.size:
        front.fail(place, start + int(bad[0]), f"a bool is {values[bad[0]]}; allowed are 0 and 1")


def _read_alignment(front: _Front, entries: dict[str, Entry]) -> int:
    entry = entries.get(ALIGNMENT_KEY)
    if entry is None:
        return DEFAULT_ALIGNMENT
    place = f"key {ALIGNMENT_KEY!r}"
    if entry.type.name != "uint32":
        front.fail(place, entry.start, f"has type {entry.type.name}; allowed is uint32")
    alignment: int = _U32.unpack_from(front.data, entry.start)[0]
    if not valid_alignment(alignment):
        front.fail(place, entry.start, f"is {alignment}; allowed are powers of two up to {MAX_ALIGNMENT}")
    return alignment


def _read_tensors(front: _Front, count: int, alignment: int) -> list[TensorInfo]:
    """Read the tensor descriptions; their offsets count from the start of the data, not yet from that of the file."""
    infos: list[TensorInfo] = []
    seen: dict[str, int] = {}
    expected = 0
    for i in range(count):
        info = _read_tensor(front, i)
        place = f"tensor {info.name!r}"
        if info.name in seen:
            front.fail(place, info.place, f"is there twice; it is described first at byte {seen[info.name]}")
        if info.offset != expected:
            rule = "the first starts at 0" if i == 0 else f"the one before, {infos[-1].name!r}, ends there"
            front.fail(place, front.pos - 8, f"its data offset is {info.offset}; allowed is {expected}: {rule}")
        seen[info.name] = info.place
        infos.append(info)
        expected = round_up(info.offset + info.nbytes, alignment)
    return infos


def _read_tensor(front: _Front, i: int) -> TensorInfo:
    start = front.pos
    name = front.name(f"tensor number {i}", MAX_TENSOR_NAME_BYTES)
    place = f"tensor {name!r}"
    dims_at = front.pos
    n_dims = front.u32(place)
    if not 1 <= n_dims <= MAX_DIMS:
        front.fail(place, dims_at, f"has {n_dims} dimensions; allowed are 1 to {MAX_DIMS}")
    shape = tuple(front.u64(place) for _ in range(n_dims))[::-1]
    if 0 in shape:
        front.fail(place, dims_at + 4, f"has shape {list(shape)}; every dimension must be 1 or more")
    type_at = front.pos
    id = front.u32(place)
    layout = LAYOUTS.get(id)
    if layout is None:
        if id in REMOVED:
            format_by_id(id, f"{front.path}: {place} at byte {type_at} ({type_at:#x})")
        front.fail(place, type_at, f"tensor type {id} is unknown; known are {', '.join(map(str, sorted(LAYOUTS)))}")
    if shape[-1] % layout.block_size:
        allowed = f"{layout.name} needs a multiple of {layout.block_size}"
        front.fail(place, dims_at + 4, f"its rows have {shape[-1]} elements; {allowed}")
    return TensorInfo(name, shape, layout, front.u64(place), layout.nbytes(shape), start)


def _check_data(front: _Front, infos: list[TensorInfo], file_size: int) -> int:
    """Return where the last tensor's data ends, having checked that the file holds it all."""
    end = infos[-1].offset + infos[-1].nbytes if infos else front.pos
    for info in infos:
        info_end = info.offset + info.nbytes
        if info_end > file_size:
            front.fail(
                f"tensor {info.name!r}",
                info.place,
                f"its data, {info.layout.name} {list(info.shape)}, is bytes {info.offset} to {info_end} "
                f"of a file that has {file_size}; {end} are needed in all (incomplete download?)",
            )
    return end
