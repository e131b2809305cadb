"""Block formats by name and by GGUF type id.  Enters: a name or an id; leaves: the format, or an error that lists them.

FORMATS["q4_0"].quantize(rows)  # float32 [n_rows, n_cols] -> uint8 [n_rows, row_bytes]
"""

from __future__ import annotations

from ...errors import UnsupportedError
from .base import BlockFormat, first_nonfinite
from .block32 import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
from .block256 import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K
from .layout import REMOVED, UNSUPPORTED, Layout
from .nonlinear import IQ4_NL, IQ4_XS, MXFP4
from .plain import BF16, F16, F32

__all__ = ["FORMATS", "LAYOUTS", "BlockFormat", "Layout", "first_nonfinite", "format_by_id", "format_by_name"]

FORMATS: dict[str, BlockFormat] = {
    format.name: format
    for format in (
        F32("f32", 0, 1, 4),
        F16("f16", 1, 1, 2),
        BF16("bf16", 30, 1, 2),
        Q8_0("q8_0", 8, 32, 34),
        Q4_0("q4_0", 2, 32, 18),
        Q4_1("q4_1", 3, 32, 20),
        Q5_0("q5_0", 6, 32, 22),
        Q5_1("q5_1", 7, 32, 24),
        Q2_K("q2_k", 10, 256, 84),
        Q3_K("q3_k", 11, 256, 110),
        Q4_K("q4_k", 12, 256, 144),
        Q5_K("q5_k", 13, 256, 176),
        Q6_K("q6_k", 14, 256, 210),
        IQ4_NL("iq4_nl", 20, 32, 18),
        IQ4_XS("iq4_xs", 23, 256, 136),
        MXFP4("mxfp4", 39, 32, 17),
    )
}
"""The formats that halfbyte packs and unpacks, by name."""

LAYOUTS: dict[int, Layout] = {layout.gguf_id: layout for layout in (*FORMATS.values(), *UNSUPPORTED)}
"""The size of every tensor type that GGUF files hold today, by type id."""


def format_by_name(name: str, where: object = None) -> BlockFormat:
    """Return the format called `name` ("q4_0"); UnsupportedError, led by `where`, when there is none."""
    try:
        return FORMATS[name]
    except KeyError:
        raise UnsupportedError("tensor type", name, list(FORMATS), where) from None


def format_by_id(gguf_id: int, where: object = None) -> BlockFormat:
    """Return the format of GGUF type `gguf_id`; UnsupportedError, led by `where`, when it is not one of ours."""
    layout = LAYOUTS.get(gguf_id)
    if isinstance(layout, BlockFormat):
        return layout
    if layout is not None:
        found = f"{layout.name} (id {gguf_id})"
    elif gguf_id in REMOVED:
        found = f"{REMOVED[gguf_id]} (id {gguf_id}, removed from GGUF)"
    else:
        found = f"id {gguf_id}"
    raise UnsupportedError("tensor type", found, list(FORMATS), where)
