"""Which tensor gets which format.  Enters: a tensor's name and shape and the type asked for; leaves: its format.

The rules are those of llama.cpp's converter (`convert_hf_to_gguf.py --outtype`), continued to the 4- and 5-bit types:
all matrices get the type asked for, token embeddings and output included, as `llama-quantize --pure` does it.  Vectors
and norms stay F32; a matrix whose rows the block does not divide becomes F16.
"""

from __future__ import annotations

from collections.abc import Sequence

from .formats import FORMATS, BlockFormat, format_by_name

_FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "bf16": 32} | {
    "q2_k": 10,
    "q3_k": 11,
    "q4_k": 14,
    "q5_k": 16,
    "q6_k": 18,
    "iq4_nl": 25,
    "iq4_xs": 30,
    "mxfp4": 38,
}


def tensor_format(name: str, shape: Sequence[int], target_format_name: str) -> BlockFormat:
    """Return the format of tensor `name` of `shape` (rows first, GGUF name) in a file of type `target_format_name`.

    UnsupportedError, listing the types, when there is no such type.
    """
    target = format_by_name(target_format_name)
    if len(shape) <= 1 or name.endswith("_norm.weight"):
        return FORMATS["f32"]
    if shape[-1] % target.block_size:
        return FORMATS["f16"]
    return target


def file_type_id(target_format_name: str) -> int:
    """Return `general.file_type` (llama.cpp's `enum llama_ftype`) of a file of type `target_format_name`."""
    return _FILE_TYPES[format_by_name(target_format_name).name]
