"""Slow, obvious, float64: what the fast code is compared with.  Enters: a checkpoint; leaves: arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

Array = NDArray[np.float64]


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return config.json and every tensor (float64) of a Hugging Face folder."""
    import ml_dtypes  # noqa: F401  (teaches NumPy bfloat16)

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors: dict[str, Array] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "np") as opened:
            for name in opened.keys():  # noqa: SIM118  (not a dict)
                tensors[name] = opened.get_tensor(name).astype(np.float64)
    return config, tensors


def rope_frequencies(config: dict[str, Any], head_dim: int) -> Array:
    """Return float64 [head_dim/2]: radians per position, scaled as config.json says."""
    base = config.get("rope_theta", 10000.0)
    frequencies = base ** (-np.arange(0, head_dim, 2) / head_dim)
    scaling = config.get("rope_scaling")
    if not scaling:
        return frequencies
    if scaling["rope_type"] == "linear":
        return frequencies / scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    old = scaling["original_max_position_embeddings"]
    out = []
    for f in frequencies:  # transformers, modeling_rope_utils: long waves are slowed, short ones kept, between: blended
        wavelength = 2 * np.pi / f
        if wavelength < old / high:
            out.append(f)
        elif wavelength > old / low:
            out.append(f / scaling["factor"])
        else:
            smooth = (old / wavelength - low) / (high - low)
            out.append((1 - smooth) * f / scaling["factor"] + smooth * f)
    return np.array(out)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * weight


def rotate_halves(x: Array, frequencies: Array) -> Array:
    """x [positions, heads, head_dim] -> rotated, pairs (i, i + head_dim/2) as in Hugging Face checkpoints."""
    angles = np.arange(len(x))[:, None, None] * frequencies
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], axis=-1)


def as_int8(x: Array, size: int) -> Array:
    """x [..., columns] as codes of 8 bits stand for it, `size` of which (32 or 256) share a scale: Q8_0 and Q8_K."""
    blocks = x.reshape(*x.shape[:-1], -1, size)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    codes = np.rint(blocks * 127 / np.where(largest > 0, largest, 1))
    return (codes * (largest / 127).astype(np.float16 if size == 32 else np.float32)).reshape(x.shape)


def llama_logits(folder: Path, ids: list[int], int8: Mapping[str, int] = MappingProxyType({})) -> Array:
    """Return float64 [len(ids), vocab]: the logits of a LlamaForCausalLM or MistralForCausalLM checkpoint.

    int8: what enters a matrix of such a name ("q_proj", "lm_head") is rounded to 8 bits first, with a scale for so
    many columns, where those divide it.
    """
    config, t = load_checkpoint(folder)
    hidden, heads, kv_heads = (config[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    head_dim = config.get("head_dim") or hidden // heads
    epsilon, frequencies = config["rms_norm_eps"], rope_frequencies(config, head_dim)
    n = len(ids)
    mask = np.where(np.tril(np.ones((n, n))) > 0, 0.0, -np.inf)

    def product(x: Array, name: str) -> Array:
        size = int8.get(name.split(".")[-1])
        is_rounded = size is not None and x.shape[1] % size == 0
        return (as_int8(x, size) if is_rounded else x) @ t[f"{name}.weight"].T

    def linear(x: Array, name: str) -> Array:
        y = product(x, name)
        return y + t[f"{name}.bias"] if f"{name}.bias" in t else y

    x = t["model.embed_tokens.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        h = rms_norm(x, t[at + "input_layernorm.weight"], epsilon)
        q, k, v = (linear(h, f"{at}self_attn.{p}_proj").reshape(n, -1, head_dim) for p in "qkv")
        q, k = rotate_halves(q, frequencies), rotate_halves(k, frequencies)
        k, v = np.repeat(k, heads // kv_heads, axis=1), np.repeat(v, heads // kv_heads, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(head_dim) + mask
        attended = np.einsum("hqk,khd->qhd", softmax(scores), v).reshape(n, -1)
        x = x + linear(attended, at + "self_attn.o_proj")
        h = rms_norm(x, t[at + "post_attention_layernorm.weight"], epsilon)
        gate, up = linear(h, at + "mlp.gate_proj"), linear(h, at + "mlp.up_proj")
        x = x + linear(gate / (1 + np.exp(-gate)) * up, at + "mlp.down_proj")
    x = rms_norm(x, t["model.norm.weight"], epsilon)
    return product(x, "lm_head" if "lm_head.weight" in t else "model.embed_tokens")
