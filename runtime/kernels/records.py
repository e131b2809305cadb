"""Argument records.  Enters: named integers (addresses, strides, counts); leaves: the int64 array that a kernel reads.

Every program step gets the address of one record.  Its fields are declared once, by name, for both sides: the Python
that fills it and the emitting function that reads it.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from .emit import Emitter
from .values import F32, I64, Value


class Record:
    """The field names of one kind of record, in order; each is 8 bytes."""

    def __init__(self, *fields: str):
        self.fields = fields
        self._offset = {name: 8 * i for i, name in enumerate(fields)}
        self.size = len(fields)

    def make(self, **values: int | float) -> NDArray[np.int64]:
        """Return the record as int64 [len(fields)]; a float is stored as the bits of a float32."""
        if set(values) != set(self.fields):
            raise TypeError(f"record fields differ: {sorted(set(values) ^ set(self.fields))}")
        bits = (
            struct.unpack("<I", struct.pack("<f", v))[0] if isinstance(v, float) else v
            for v in map(values.get, self.fields)
        )
        return np.array(list(bits), dtype=np.int64)

    def read(self, e: Emitter, address: Value) -> Fields:
        """Return the fields of the record at `address` as attributes, each loaded when it is first asked for."""
        return Fields(e, address, self._offset)


class Fields:
    """Emitter-side view of a record: `fields.x` is an int64 Value, `fields.float32("eps")` a float32."""

    def __init__(self, e: Emitter, address: Value, offsets: dict[str, int]):
        self._e, self._address, self._offsets = e, address, offsets
        self._loaded = {name: e.load(address + offset, I64) for name, offset in offsets.items()}

    def __getattr__(self, name: str) -> Value:
        try:
            return self._loaded[name]
        except KeyError:
            raise AttributeError(name) from None

    def but(self, **values: Value) -> Fields:
        """The same fields, except for these."""
        other = Fields(self._e, self._address, {})
        other._offsets, other._loaded = self._offsets, self._loaded | values
        return other

    def float32(self, name: str) -> Value:
        return self._e.load(self._address + self._offsets[name], F32)
