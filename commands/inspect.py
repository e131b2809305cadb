"""Show what is in a GGUF file: MODEL.

Metadata (arrays cut short), how many tensors of which type there are, and with --tensors every tensor.  Shapes have
rows first.  Nothing of the weights is read.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..bench.report import columns, count_text, json_text, size_text
from ..errors import ModelFileError, printable
from ..quant.gguf_reader import GgufFile, StringArray, TensorView, open_gguf
from . import _options

_SHOWN = 5  # elements of an array
_WIDTH = 70  # characters of a value


def main(argv: list[str]) -> int:
    """Run `halfbyte inspect`."""
    parser = _options.command_parser("inspect", __doc__, "MODEL")
    _options.add_model(parser)
    parser.add_argument("--tensors", action="store_true", help="also list every tensor")
    parser.add_argument("--json", action="store_true", help="print one JSON object, tensors included")
    arguments = parser.parse_intermixed_args(argv)
    model, _ = _options.model_and_word(arguments)
    with open_gguf(model) as gguf:
        tensors = list(gguf.tensors.values())
        if arguments.json:
            print(json_text(_record(gguf, tensors)))
            return 0
        print(f"{gguf.path}: GGUF version {gguf.version}, {size_text(gguf.file_size)}")
        print(f"\n{len(gguf.metadata)} metadata keys")
        print(columns([_metadata_row(gguf, key) for key in gguf.metadata], [False] * 3))
        print(f"\n{len(tensors)} tensors")
        if arguments.tensors and tensors:
            print(columns([_tensor_row(tensor) for tensor in tensors], [False, True, False, True]) + "\n")
        if tensors:
            print(columns(_total_rows(tensors), [False, True, True, True, True]))
    return 0


def _metadata_row(gguf: GgufFile, key: str) -> tuple[str, str, str]:
    value = _value(gguf, key)
    if isinstance(value, dict):
        shown = ", ".join(printable(element, 20) for element in value["first"])
        text = f"{value['length']}: {shown}{', ...' if value['length'] > _SHOWN else ''}"
    else:
        text = printable(value, _WIDTH)
        if isinstance(value, str) and len(value) > _WIDTH:
            text += f" ({len(value)} characters)"
    return printable(key), gguf.value_type(key), text


def _value(gguf: GgufFile, key: str) -> Any:
    """Return a metadata value as JSON can hold it; of an array its length and first elements."""
    try:
        value = gguf.metadata[key]
    except ModelFileError as error:  # a string that is not UTF-8: the rest of the file can still be shown
        return f"(unreadable: {error})"
    if isinstance(value, StringArray):
        first = [value.raw(i).decode("utf-8", "backslashreplace") for i in range(min(_SHOWN, len(value)))]
        return {"length": len(value), "first": first}
    if isinstance(value, np.ndarray):
        return {"length": len(value), "first": value[:_SHOWN].tolist()}
    return value


def _shape(tensor: TensorView) -> str:
    return " x ".join(map(str, tensor.shape))


def _tensor_row(tensor: TensorView) -> tuple[str, ...]:
    return printable(tensor.name), _shape(tensor), tensor.layout.name.upper(), size_text(tensor.nbytes)


def _totals(tensors: list[TensorView]) -> dict[str, dict[str, float]]:
    """Return tensors, parameters, bytes and bits per weight of each type, and of "total"."""
    totals: dict[str, dict[str, float]] = {}
    for tensor in tensors:
        for name in (tensor.layout.name.upper(), "total"):
            total = totals.setdefault(name, {"tensors": 0, "parameters": 0, "bytes": 0})
            total["tensors"] += 1
            total["parameters"] += math.prod(tensor.shape)
            total["bytes"] += tensor.nbytes
    for total in totals.values():
        total["bits_per_weight"] = 8 * total["bytes"] / total["parameters"]
    return dict(sorted(totals.items(), key=lambda item: item[0] == "total"))


def _total_rows(tensors: list[TensorView]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("type", "tensors", "parameters", "size", "bits/weight")]
    for name, total in _totals(tensors).items():
        figures = count_text(int(total["parameters"])), size_text(int(total["bytes"]))
        rows.append((name, str(total["tensors"]), *figures, f"{total['bits_per_weight']:.2f}"))
    return rows


def _record(gguf: GgufFile, tensors: list[TensorView]) -> dict[str, Any]:
    return {
        "path": str(gguf.path),
        "version": gguf.version,
        "alignment": gguf.alignment,
        "file_size": gguf.file_size,
        "metadata": {key: {"type": gguf.value_type(key), "value": _value(gguf, key)} for key in gguf.metadata},
        "tensors": [
            {"name": t.name, "shape": t.shape, "type": t.layout.name.upper(), "offset": t.offset, "nbytes": t.nbytes}
            for t in tensors
        ],
        "totals": _totals(tensors),
    }
