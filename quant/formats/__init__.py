"""Block formats by name and by GGUF type id.  Enters: a name or an id; leaves: the format, or an error that lists them.

FORMATS["q4_0"].quantize(rows)  # float32 [n_rows, n_cols] -> uint8 [n_rows, row_bytes]

A format's module is imported when the format is first asked for: a model runs without what packs and unpacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Generic, TypeVar

from ...errors import UnsupportedError
from .base import BlockFormat, TensorFormat, first_nonfinite
from .layout import ACTIVATIONS, REMOVED, Layout

__all__ = [
    "FORMATS",
    "LAYOUTS",
    "READ_ONLY",
    "BlockFormat",
    "Layout",
    "TensorFormat",
    "first_nonfinite",
    "format_by_id",
    "format_by_name",
]

Format = TypeVar("Format", bound=TensorFormat)


class _Formats(Mapping[str, Format], Generic[Format]):
    """Formats by name, each made when it is first asked for.  homes: layout -> module and class of the format."""

    def __init__(self, homes: Mapping[Layout, str]):
        self._homes = {layout.name: (layout, home) for layout, home in homes.items()}
        self._made: dict[str, Format] = {}

    def __getitem__(self, name: str) -> Format:
        if name not in self._made:
            layout, home = self._homes[name]
            module, _, kind = home.partition(".")
            self._made[name] = getattr(import_module(f".{module}", __name__), kind)(**vars(layout))
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._homes

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)

    def layouts(self) -> list[Layout]:
        """Return the size of each."""
        return [layout for layout, _ in self._homes.values()]


FORMATS: _Formats[BlockFormat] = _Formats(
    {
        Layout("f32", 0, 1, 4): "plain.F32",
        Layout("f16", 1, 1, 2): "plain.F16",
        Layout("bf16", 30, 1, 2): "plain.BF16",
        Layout("q8_0", 8, 32, 34): "block32.Q8_0",
        Layout("q4_0", 2, 32, 18): "block32.Q4_0",
        Layout("q4_1", 3, 32, 20): "block32.Q4_1",
        Layout("q5_0", 6, 32, 22): "block32.Q5_0",
        Layout("q5_1", 7, 32, 24): "block32.Q5_1",
        Layout("q2_k", 10, 256, 84): "block256.Q2_K",
        Layout("q3_k", 11, 256, 110): "block256.Q3_K",
        Layout("q4_k", 12, 256, 144): "block256.Q4_K",
        Layout("q5_k", 13, 256, 176): "block256.Q5_K",
        Layout("q6_k", 14, 256, 210): "block256.Q6_K",
        Layout("iq4_nl", 20, 32, 18): "nonlinear.IQ4_NL",
        Layout("iq4_xs", 23, 256, 136): "nonlinear.IQ4_XS",
        Layout("mxfp4", 39, 32, 17): "nonlinear.MXFP4",
    }
)
"""The formats that halfbyte packs and unpacks and has kernels for, by name."""

READ_ONLY: _Formats[TensorFormat] = _Formats(
    {
        Layout("iq2_xxs", 16, 256, 66): "gridded.IQ2_XXS",
        Layout("iq2_xs", 17, 256, 74): "gridded.IQ2_XS",
        Layout("iq3_xxs", 18, 256, 98): "gridded.IQ3_XXS",
        Layout("iq1_s", 19, 256, 50): "gridded.IQ1_S",
        Layout("iq3_s", 21, 256, 110): "gridded.IQ3_S",
        Layout("iq2_s", 22, 256, 82): "gridded.IQ2_S",
        Layout("iq1_m", 29, 256, 56): "gridded.IQ1_M",
        Layout("tq1_0", 34, 256, 54): "integers.TQ1_0",
        Layout("tq2_0", 35, 256, 66): "integers.TQ2_0",
        Layout("nvfp4", 40, 64, 36): "integers.NVFP4",
        Layout("q1_0", 41, 128, 18): "integers.Q1_0",
        Layout("q2_0", 42, 64, 18): "integers.Q2_0",
        Layout("i8", 24, 1, 1): "plain.Number",
        Layout("i16", 25, 1, 2): "plain.Number",
        Layout("i32", 26, 1, 4): "plain.Number",
        Layout("i64", 27, 1, 8): "plain.Number",
        Layout("f64", 28, 1, 8): "plain.Number",
    }
)
"""The formats that halfbyte unpacks only, by name; `repack.py` turns their matrices into others."""

LAYOUTS: dict[int, Layout] = {
    layout.gguf_id: layout for layout in (*FORMATS.layouts(), *READ_ONLY.layouts(), *ACTIVATIONS)
}
"""The size of every tensor type that GGUF files hold today, by type id."""


def format_by_name(name: str, where: object = None) -> BlockFormat:
    """Return the format called `name` ("q4_0"); UnsupportedError, led by `where`, when there is none."""
    try:
        return FORMATS[name]
    except KeyError:
        raise UnsupportedError("tensor type", name, list(FORMATS), where) from None


def format_by_id(gguf_id: int, where: object = None) -> TensorFormat:
    """Return the format of GGUF type `gguf_id`; UnsupportedError, led by `where`, when its numbers are not read."""
    layout = LAYOUTS.get(gguf_id)
    if layout is not None:
        for formats in (FORMATS, READ_ONLY):
            if layout.name in formats:
                return formats[layout.name]
        found = f"{layout.name} (id {gguf_id})"
    elif gguf_id in REMOVED:
        found = f"{REMOVED[gguf_id]} (id {gguf_id}, removed from GGUF)"
    else:
        found = f"id {gguf_id}"
    raise UnsupportedError("tensor type", found, [*FORMATS, *READ_ONLY], where)
