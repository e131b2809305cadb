"""GPTQ: whole numbers of 2, 3, 4 or 8 bits, packed along the columns.  Enters: qweight, qzeros, scales, g_idx.

Layout (AutoGPTQ and GPTQModel; the matrix lies there transposed, inputs first):

    qweight  int32 [columns * bits / 32, rows]      codes of consecutive columns, lowest bits first, without gaps
    qzeros   int32 [groups, rows * bits / 32]       zeros of consecutive rows; checkpoint_format "gptq" stores zero - 1
    scales   float [groups, rows]
    g_idx    int32 [columns]                        the group of each column, where they are not in order (act-order)

w = scale * (code - zero).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ...errors import UnsupportedError
from ..jsonfile import Settings
from .base import Quantized, Reading, Store, checked, fail, floats, unpack_words, whole
from .groups import Groups, Scales, even_groups

METHODS = ("gptq",)
HARMLESS = (
    "sym|desc_act|damp_percent|damp_auto_increment|static_groups|true_sequential|dataset|tokenizer|model_seqlen|"
    "batch_size|cache_block_outputs|module_name_preceding_first_block|block_name_to_quantize|use_cuda_fp16|"
    "use_exllama|disable_exllama|exllama_config|max_input_length|model_name_or_path|model_file_base_name|"
    "modules_in_block_to_quantize|is_marlin_format|quantizer|lm_head|backend|meta|mse|iters|act_group_aware|hessian.*"
)
_BITS = (2, 3, 4, 8)


def read(settings: Settings, store: Store) -> Reading:
    """Return a matrix for every tensor called qweight."""
    bits = settings.integer("bits", 1, 32)
    if bits not in _BITS:
        raise UnsupportedError(f"config.json {settings.place}bits", bits, [str(b) for b in _BITS], settings.path)
    size = settings.integer("group_size", -1, 1 << 20)
    kind = settings.text("checkpoint_format", "gptq")
    if kind not in ("gptq", "gptq_v2"):
        key = f"config.json {settings.place}checkpoint_format"
        raise UnsupportedError(key, kind, ("gptq", "gptq_v2"), settings.path)
    for key, allowed in (("dynamic", None), ("pack_dtype", "int32"), ("is_marlin_format", False)):
        found = settings.get(key, allowed)
        if found and found != allowed:
            raise UnsupportedError(f"config.json {settings.place}{key}", found, (str(allowed),), settings.path)
    tensors: dict[str, Quantized] = {}
    for name in store.tensors:
        if name.endswith(".qweight"):
            base = name.removesuffix("qweight")
            tensors[f"{base}weight"] = _matrix(store, base, bits, size, plus=int(kind == "gptq"))
    return Reading(tensors)


def _matrix(store: Store, base: str, bits: int, size: int, plus: int) -> Groups:
    packed = checked(store, f"{base}qweight", ("I32",))
    if len(packed.shape) != 2:
        fail(store, packed.name, f"has the shape {list(packed.shape)}; a matrix is allowed")
    columns, rows = packed.shape[0] * 32 // bits, packed.shape[1]
    if rows * bits % 32 or columns * bits != packed.shape[0] * 32:
        fail(store, packed.name, f"has the shape {list(packed.shape)}, which {bits} bits a number do not make")
    groups = 1 if size <= 0 else -(-columns // size)
    scales, zeros, order = f"{base}scales", f"{base}qzeros", f"{base}g_idx"
    checked(store, scales, ("F16", "BF16", "F32"), (groups, rows))
    checked(store, zeros, ("I32",), (groups, rows * bits // 32))
    sources = [packed.name, zeros, scales]
    if order in store.tensors:
        checked(store, order, ("I32",), (columns,))
        sources.append(order)

    def read_scales() -> Scales:
        group = even_groups(columns, groups, size if size > 0 else columns)
        if order in store.tensors:
            group = whole(store, order).astype(np.int64)
            if group.min() < 0 or group.max() >= groups:
                fail(store, order, f"goes from {group.min()} to {group.max()}; 0 to {groups - 1} are allowed")
        zero = unpack_words(whole(store, zeros), bits).astype(np.int32) + plus & (1 << bits) - 1
        return Scales(floats(store, scales).T, zero.T, group, 0, (1 << bits) - 1)

    def unpack(words: np.ndarray, begin: int, end: int) -> np.ndarray:
        return unpack_words(words[:, begin:end].T, bits)

    scheme, read_packed = f"gptq {bits} bits", partial(whole, store, packed.name)
    return Groups(store, scheme, (rows, columns), sources, read_scales, read_packed, unpack)
