"""Tiny checkpoints that are quantized already.  Enters: a scheme and its settings; leaves: a folder, and the float32
values that its matrices stand for.

Each packer is written from the description of its scheme, one number at a time where that is the plainest.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tiny

Stored = dict[str, tuple[str, np.ndarray]]  # name -> safetensors type, values
BF16, E4M3 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn


@dataclass
class Scheme:
    """How matrices are stored: quantization_config, and base name and matrix -> stored tensors and values.

    pack   (name without ".weight", float32 [rows, columns], rng) -> (stored tensors, float32 [rows, columns])
    """

    config: dict[str, Any]
    pack: Callable[[str, np.ndarray, np.random.Generator], tuple[Stored, np.ndarray]]
    spec: dict[str, Any] = field(default_factory=dict)


def build(folder: Path, scheme: Scheme, **fields: Any) -> dict[str, np.ndarray]:
    """Write the checkpoint and return its tensors, float32, by the names that they have unquantized."""
    spec = tiny.Tiny(**{"hidden": 64, "ffn": 96, "layers": 1, **scheme.spec, **fields})
    tiny.build(folder, spec)
    config = tiny.config(spec) | {"quantization_config": scheme.config}
    tiny.write_json(folder / "config.json", config)
    rng, stored, values = np.random.default_rng(1), {}, {}
    for name, value in tiny.weights(spec).items():
        if "_proj" in name and value.ndim == 2:
            made, values[name] = scheme.pack(name.removesuffix(".weight"), value, rng)
            stored |= made
        else:
            stored[name], values[name] = ("F32", value), value
    write_stored(folder / "model.safetensors", stored)
    return values


def write_stored(file: Path, tensors: Stored) -> None:
    """Write arrays as one safetensors file; a type of its own for each."""
    header, blobs, end = {}, [], 0
    for name, (dtype, value) in tensors.items():
        blob = np.ascontiguousarray(value).tobytes()
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": [end, end + len(blob)]}
        blobs.append(blob)
        end += len(blob)
    described = json.dumps(header).encode()
    file.write_bytes(len(described).to_bytes(8, "little") + described + b"".join(blobs))


def words(codes: np.ndarray, bits: int, places: list[int] | None = None) -> np.ndarray:
    """Codes int [n, m] -> int32 [n, m * bits / 32]; of 8, place i of a word has number places[i] (None: i)."""
    n, m = codes.shape
    order = [j - j % 8 + places[j % 8] for j in range(m)] if places else range(m)
    count = -(-m * bits // 32)
    out = np.zeros((n, count), np.uint32)
    for row in range(n):
        number = 0
        for i, column in enumerate(order):
            number |= int(codes[row, column]) << bits * i
        out[row] = [number >> 32 * word & 0xFFFFFFFF for word in range(count)]
    return out.view(np.int32)


def _codes(
    value: np.ndarray, group: np.ndarray, bits: int, symmetric: bool, dtype: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Round float32 [rows, columns] -> codes int [rows, columns], scales [rows, groups] of `dtype`, zeros int."""
    rows, groups = value.shape[0], int(group.max()) + 1
    top, scale, zero = (1 << bits) - 1, np.zeros((rows, groups), np.float32), np.zeros((rows, groups), np.int64)
    for g in range(groups):
        part = value[:, group == g]
        low, high = np.minimum(part.min(axis=1), 0), np.maximum(part.max(axis=1), 0)
        if symmetric:
            scale[:, g], zero[:, g] = 2 * np.maximum(-low, high) / top, (top + 1) // 2
        else:
            scale[:, g] = (high - low) / top
            zero[:, g] = np.clip(np.rint(-low / scale[:, g]), 0, top)
    stored = scale.astype(dtype)
    codes = np.rint(value / stored.astype(np.float32)[:, group]) + zero[:, group]
    return np.clip(codes, 0, top).astype(np.int64), stored, zero


def _values(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, group: np.ndarray) -> np.ndarray:
    return scale.astype(np.float32)[:, group] * (codes - zero[:, group]).astype(np.float32)


def gptq(
    bits: int = 4, size: int = 32, symmetric: bool = True, act_order: bool = False, v2: bool = False, g_idx: bool = True
) -> Scheme:
    def pack(base: str, value: np.ndarray, rng: np.random.Generator) -> tuple[Stored, np.ndarray]:
        columns = value.shape[1]
        group = np.arange(columns) // (size if size > 0 else columns)
        if act_order:
            group = rng.permutation(group)
        codes, scale, zero = _codes(value, group, bits, symmetric, np.float16)
        kept = zero if v2 else (zero - 1) % (1 << bits)
        stored = {
            f"{base}.qweight": ("I32", words(codes, bits).T),
            f"{base}.qzeros": ("I32", words(kept.T, bits)),
            f"{base}.scales": ("F16", scale.T),
        }
        if g_idx:
            stored[f"{base}.g_idx"] = ("I32", group.astype(np.int32))
        return stored, _values(codes, scale, zero, group)

    config = {"quant_method": "gptq", "bits": bits, "group_size": size, "sym": symmetric, "desc_act": act_order}
    more = {"damp_percent": 0.01, "true_sequential": True, "dataset": "c4"}
    return Scheme(config | more | ({"checkpoint_format": "gptq_v2"} if v2 else {}), pack)


def awq(size: int = 32) -> Scheme:
    places = [0, 2, 4, 6, 1, 3, 5, 7]

    def pack(base: str, value: np.ndarray, rng: np.random.Generator) -> tuple[Stored, np.ndarray]:
        group = np.arange(value.shape[1]) // size
        codes, scale, zero = _codes(value, group, 4, False, np.float16)
        stored = {
            f"{base}.qweight": ("I32", words(codes.T, 4, places)),
            f"{base}.qzeros": ("I32", words(zero.T, 4, places)),
            f"{base}.scales": ("F16", scale.T),
        }
        return stored, _values(codes, scale, zero, group)

    config = {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True, "version": "gemm"}
    return Scheme(config | {"modules_to_not_convert": None}, pack)


# What QLoRA's paper (Dettmers et al. 2023, appendix E) gives for NormalFloat of 4 bits, to four digits.
_BELOW_0 = (-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911)
NF4 = np.float32([*_BELOW_0, 0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.723, 1])


def bnb4(block: int = 64, nested: bool = True) -> Scheme:
    def pack(base: str, value: np.ndarray, rng: np.random.Generator) -> tuple[Stored, np.ndarray]:
        name, flat = f"{base}.weight", value.reshape(-1)
        blocks = -(-flat.size // block)
        absmax = np.float32([np.abs(flat[i * block : (i + 1) * block]).max() for i in range(blocks)])
        state = {"quant_type": "nf4", "blocksize": block, "dtype": "bfloat16", "shape": list(value.shape)}
        stored: Stored = {f"{name}.quant_map": ("F32", NF4)}
        if nested:
            table = np.linspace(-1, 1, 256, dtype=np.float32)
            offset = float(absmax.mean())
            outer = np.float32([np.abs(absmax[i : i + 16] - offset).max() for i in range(0, blocks, 16)])
            scales = np.repeat(outer, 16)[:blocks]
            small = np.abs(((absmax - np.float32(offset)) / scales)[:, None] - table).argmin(axis=1).astype(np.uint8)
            absmax = table[small] * scales + np.float32(offset)
            state |= {"nested_blocksize": 16, "nested_dtype": "float32", "nested_offset": offset}
            stored |= {
                f"{name}.absmax": ("U8", small), f"{name}.nested_quant_map": ("F32", table),
                f"{name}.nested_absmax": ("F32", outer),
            }  # fmt: skip
        else:
            stored[f"{name}.absmax"] = ("F32", absmax)
        scale = np.repeat(absmax, block)[: flat.size]
        codes = np.abs((flat / scale)[:, None] - NF4).argmin(axis=1)
        pairs = [int(codes[i]) << 4 | int(codes[i + 1]) for i in range(0, flat.size, 2)]
        stored[name] = ("U8", np.uint8(pairs).reshape(-1, 1))
        raw = np.frombuffer(json.dumps(state).encode(), np.uint8)
        stored[f"{name}.quant_state.bitsandbytes__nf4"] = ("U8", raw)
        return stored, (NF4[codes] * scale).reshape(value.shape)

    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "_load_in_4bit": True}
    return Scheme(config | {"bnb_4bit_use_double_quant": nested, "bnb_4bit_quant_storage": "uint8"}, pack)


def bnb8() -> Scheme:
    def pack(base: str, value: np.ndarray, rng: np.random.Generator) -> tuple[Stored, np.ndarray]:
        scale = np.abs(value).max(axis=1)
        codes = np.rint(value / scale[:, None] * 127).astype(np.int8)
        stored = {
            f"{base}.weight": ("I8", codes), f"{base}.SCB": ("F32", scale),
            f"{base}.weight_format": ("U8", np.zeros((), np.uint8)),
        }  # fmt: skip
        return stored, codes * (scale / np.float32(127))[:, None]

    return Scheme({"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0}, pack)


def fp8(tile: tuple[int, int] | None = (32, 16), scales: str = "tile") -> Scheme:
    """scales: "tile", "tensor" or "row"."""

    def pack(base: str, value: np.ndarray, rng: np.random.Generator) -> tuple[Stored, np.ndarray]:
        rows, columns = value.shape
        down, across = {"tile": tile, "tensor": (rows, columns), "row": (1, columns)}[scales]
        scale = np.zeros((-(-rows // down), -(-columns // across)), np.float32)
        spread = np.zeros_like(value)
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                part = slice(i * down, (i + 1) * down), slice(j * across, (j + 1) * across)
                scale[i, j] = np.abs(value[part]).max() / 448
                spread[part] = scale[i, j]
        codes = (value / spread).astype(E4M3)
        suffix = "weight_scale_inv" if scales == "tile" else "weight_scale"
        shown = scale.reshape(()) if scales == "tensor" else scale
        stored = {f"{base}.weight": ("F8_E4M3", codes), f"{base}.{suffix}": ("F32", shown)}
        if scales == "tensor":
            stored[f"{base}.input_scale"] = ("F32", np.float32(1).reshape(()))
        return stored, codes.astype(np.float32) * spread

    config: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    return Scheme(config | ({"weight_block_size": list(tile)} if tile and scales == "tile" else {}), pack)


def _compressed(format: str, weights: dict[str, Any]) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    config = {"quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": group}}
    return config | {"ignore": ["lm_head"], "quantization_status": "compressed", "kv_cache_scheme": None}


def packed(bits: int = 4, size: int = 32, symmetric: bool = True, order: bool = False, dtype: Any = BF16) -> Scheme:
    """compressed-tensors, pack-quantized."""

    def pack(base: str, value: np.ndarray, rng: np.random.Generator) -> tuple[Stored, np.ndarray]:
        columns = value.shape[1]
        group = np.arange(columns) // (size if size > 0 else columns)
        if order:
            group = rng.permutation(group)
        codes, scale, zero = _codes(value, group, bits, symmetric, dtype)
        stored = {
            f"{base}.weight_packed": ("I32", words(codes, bits)),
            f"{base}.weight_scale": ("BF16" if dtype is BF16 else "F16", scale),
            f"{base}.weight_shape": ("I64", np.int64(value.shape)),
        }
        if not symmetric:
            stored[f"{base}.weight_zero_point"] = ("I32", words(zero.T, bits).T)
        if order:
            stored[f"{base}.weight_g_idx"] = ("I32", group.astype(np.int32))
        return stored, _values(codes, scale, zero, group)

    kind = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group" if size > 0 else "channel"}
    return Scheme(_compressed("pack-quantized", kind | {"group_size": size if size > 0 else None}), pack)


def int8(symmetric: bool = True) -> Scheme:
    """compressed-tensors, int-quantized."""

    def pack(base: str, value: np.ndarray, rng: np.random.Generator) -> tuple[Stored, np.ndarray]:
        group = np.zeros(value.shape[1], np.int64)
        codes, scale, zero = _codes(value, group, 8, symmetric, BF16)
        stored = {f"{base}.weight": ("I8", (codes - 128).astype(np.int8)), f"{base}.weight_scale": ("BF16", scale)}
        if not symmetric:
            stored[f"{base}.weight_zero_point"] = ("I8", (zero - 128).astype(np.int8))
        return stored, _values(codes, scale, zero, group)

    kind = {"num_bits": 8, "type": "int", "symmetric": symmetric, "strategy": "channel", "group_size": None}
    return Scheme(_compressed("int-quantized", kind), pack)


def float8() -> Scheme:
    """compressed-tensors, float-quantized, a scale for each row."""
    kind = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
    return Scheme(_compressed("float-quantized", kind), fp8(None, "row").pack)


E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def mxfp4_tensor(base: str, shape: tuple[int, int, int], rng: np.random.Generator) -> tuple[Stored, np.ndarray]:
    """Random blocks of [experts, rows, columns] as gpt-oss stores them, and their values."""
    experts, rows, columns = shape
    codes = rng.integers(0, 16, shape)
    exponents = rng.integers(110, 130, (experts, rows, columns // 32)).astype(np.uint8)
    sizes = np.float32(E2M1 + [-value for value in E2M1])
    values = sizes[codes] * np.repeat(2.0 ** (exponents.astype(np.float32) - 127), 32, axis=2)
    pairs = (codes[:, :, 0::2] | codes[:, :, 1::2] << 4).astype(np.uint8).reshape(experts, rows, columns // 32, 16)
    return {f"{base}_blocks": ("U8", pairs), f"{base}_scales": ("U8", exponents)}, values.astype(np.float32)


def positive(scheme: Scheme) -> Scheme:
    """The scheme on magnitudes, whose zeros are 0."""
    return Scheme(scheme.config, lambda base, value, rng: scheme.pack(base, np.abs(value), rng))


# Scheme, and the format that keeps its matrices (each one of two) where q4_0 is asked for and where q8_0 is, starred
# where scales are rounded to float16; None: they are requantized.
SCHEMES: dict[str, tuple[Scheme, str | None, str | None]] = {
    "GPTQ 4 bits": (gptq(), "q4_0", "q4_0"),
    "GPTQ 4 bits, no g_idx, one group": (gptq(size=-1, g_idx=False), "q4_0", "q4_0"),
    "GPTQ 4 bits, zeros": (gptq(symmetric=False), "q5_0", "q5_0"),
    "GPTQ 4 bits, zeros, v2": (gptq(symmetric=False, v2=True), "q5_0", "q5_0"),
    "GPTQ 4 bits, act-order": (gptq(act_order=True), None, None),
    "GPTQ 4 bits, act-order, zeros": (gptq(act_order=True, symmetric=False), None, None),
    "GPTQ 4 bits, groups of 16": (gptq(size=16), None, None),
    "GPTQ 8 bits": (gptq(bits=8), None, "q8_0"),
    "GPTQ 8 bits, zeros": (gptq(bits=8, symmetric=False), None, None),
    "GPTQ 2 bits": (gptq(bits=2, size=64), "q4_0", "q4_0"),
    "GPTQ 3 bits": (gptq(bits=3), "q4_0", "q4_0"),
    "AWQ": (awq(), "q5_0", "q5_0"),
    "NF4, double quantization": (bnb4(), None, None),
    "NF4, blocks across rows": (bnb4(block=48, nested=False), None, None),
    "int8 of bitsandbytes": (bnb8(), None, "q8_0*"),
    "FP8, tiles": (fp8(), None, None),
    "FP8, tiles that do not divide": (fp8((48, 40)), None, None),
    "FP8, one scale": (fp8(None, "tensor"), None, None),
    "compressed-tensors 4 bits": (packed(), "q4_0", "q4_0"),
    "compressed-tensors 4 bits, rows": (packed(size=-1, dtype=np.float16), "q4_0", "q4_0"),
    "compressed-tensors 4 bits, zeros": (packed(symmetric=False), "q4_1 q5_0", "q4_1 q5_0"),
    "compressed-tensors 4 bits, none negative": (positive(packed(symmetric=False)), "q4_1", "q4_1"),
    "compressed-tensors 4 bits, act-order": (packed(order=True), None, None),
    "compressed-tensors 5 bits": (packed(bits=5, size=64), "q5_0", "q5_0"),
    "compressed-tensors 8 bits, packed": (packed(bits=8), None, "q8_0"),
    "compressed-tensors int8": (int8(), None, "q8_0"),
    "compressed-tensors int8, zeros": (int8(symmetric=False), None, None),
    "compressed-tensors FP8": (float8(), None, None),
}
