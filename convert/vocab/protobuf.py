"""The wire format of protocol buffers, read with bounds.  Enters: bytes; leaves: (field number, value) pairs.

Source: protobuf.dev, "Encoding".  Unknown fields are handed on as they are; groups are not read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """The bytes are no protocol buffer; `offset` is where."""

    def __init__(self, message: str, offset: int):
        super().__init__(message)
        self.offset = offset


def fields(data: bytes, offset: int = 0) -> Iterator[tuple[int, int | float | bytes, int]]:
    """Yield (number, value, offset of the value) of each field of a message that begins at byte `offset` of its file.

    The value is an int for a varint or fixed64, a float for fixed32, bytes for the rest.
    """
    at = 0
    while at < len(data):
        start = at
        tag, at = _varint(data, at, offset)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise WireError("a field has the number 0", offset + start)
        if kind == VARINT:
            value, end = _varint(data, at, offset)
            yield number, value, offset + at
        elif kind == BYTES:
            length, at = _varint(data, at, offset)
            end = at + length
            if end > len(data):
                raise WireError(f"a field of {length} bytes has {len(data) - at} left", offset + at)
            yield number, data[at:end], offset + at
        elif kind in (FIXED32, FIXED64):
            end = at + (4 if kind == FIXED32 else 8)
            if end > len(data):
                raise WireError("a number is cut off", offset + at)
            yield number, struct.unpack("<f" if kind == FIXED32 else "<Q", data[at:end])[0], offset + at
        else:
            raise WireError(f"wire type {kind} is not allowed", offset + start)
        at = end


def _varint(data: bytes, at: int, offset: int) -> tuple[int, int]:
    value = 0
    for count in range(10):
        if at >= len(data):
            raise WireError("a varint is cut off", offset + at)
        byte = data[at]
        value |= (byte & 127) << (7 * count)
        at += 1
        if byte < 128:
            return value, at
    raise WireError("a varint has more than 10 bytes", offset + at)
