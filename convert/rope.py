"""Rotary positions as config.json describes them.  Enters: config.json; leaves: what GGUF says of them: keys, factors.

Reads both layouts: rope_theta with rope_scaling, and the newer rope_parameters that holds both, once or for each type
of layer.  Formulas: transformers' modeling_rope_utils; keys and tensors: llama.cpp's converter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UnsupportedError
from .jsonfile import Settings

KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
_SAME = {"su": "longrope"}
DEFAULT_THETA = 10000.0
MAX_CONTEXT = 1 << 31


@dataclass(frozen=True)
class Rope:
    """One description of rotary positions; what does not belong to its kind has the default.

    theta             base of the frequencies
    dims              elements of a head that are rotated, two by two
    kind              one of KINDS
    factor            by which positions (linear) or long wavelengths (llama3, yarn) are stretched; of dynamic NTK
    original_context  positions that the model was trained on before
    attention_factor  by which longrope and yarn scale the rotated elements
    truncate          yarn: the range of mixed frequencies ends at whole dimensions
    long, short       longrope: what divides each frequency, float32 [dims / 2]
    """

    theta: float
    dims: int
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    long: np.ndarray | None = None
    short: np.ndarray | None = None

    def entries(self) -> list[tuple[str, str, Any]]:
        """Return keys below the architecture's name, their types and values."""
        found: list[tuple[str, str, Any]] = [
            ("rope.dimension_count", "uint32", self.dims),
            ("rope.freq_base", "float32", self.theta),
        ]
        if self.kind in ("linear", "yarn", "longrope"):
            found.append(("rope.scaling.type", "string", self.kind))
        if self.kind in ("linear", "yarn"):
            found.append(("rope.scaling.factor", "float32", self.factor))
        if self.kind in ("dynamic", "yarn", "longrope"):
            found.append(("rope.scaling.original_context_length", "uint32", self.original_context))
        if self.kind == "dynamic":  # a key of halfbyte's own: llama.cpp, which knows no such kind, rotates plainly
            found.append(("rope.scaling.dynamic_factor", "float32", self.factor))
        if self.kind == "longrope":
            found.append(("rope.scaling.attn_factor", "float32", self.attention_factor))
        if self.kind == "yarn":
            usual = 1 + 0.1 * math.log(self.factor) if self.factor > 1 else 1.0  # readers multiply by this themselves
            if not math.isclose(self.attention_factor, usual, rel_tol=1e-6):
                found.append(("rope.scaling.attn_factor", "float32", self.attention_factor / usual))
            found.append(("rope.scaling.yarn_beta_fast", "float32", self.beta_fast))
            found.append(("rope.scaling.yarn_beta_slow", "float32", self.beta_slow))
            if not self.truncate:  # a key of halfbyte's own; llama.cpp always truncates
                found.append(("rope.scaling.yarn_truncate", "bool", False))
        return found

    def tensors(self) -> dict[str, np.ndarray]:
        """Return what divides each frequency, float32 [dims / 2], by the name of its tensor."""
        if self.kind == "llama3":
            return {"rope_freqs.weight": self._llama3_factors()}
        if self.long is not None and self.short is not None:
            return {"rope_factors_long.weight": self.long, "rope_factors_short.weight": self.short}
        return {}

    def _llama3_factors(self) -> np.ndarray:
        """Return the factors of llama3.

        Wavelengths up to original_context / high_freq_factor stay, those from original_context / low_freq_factor on
        grow by `factor`, and between them the frequency goes linearly from one to the other.
        """
        wavelengths = 2 * math.pi * self.theta ** (np.arange(0, self.dims, 2) / self.dims)
        low, high = self.low_freq_factor, self.high_freq_factor
        smooth = np.clip((self.original_context / wavelengths - low) / (high - low), 0, 1)
        return (1 / ((1 - smooth) / self.factor + smooth)).astype(np.float32)


def read_rope(
    config: Settings,
    head_dim: int,
    *,
    theta: float = DEFAULT_THETA,
    partial: float | None = None,
    layer_type: str | None = None,
    context: str = "max_position_embeddings",
    theta_key: str = "rope_theta",
    partial_key: str = "partial_rotary_factor",
) -> Rope:
    """Return the rotary positions that config.json asks for, of heads of `head_dim` elements.

    theta        of a file that does not say
    partial      part of a head that is rotated where the file does not say; None: always all of it
    layer_type   reads the entry of this type where rope_parameters has one for each
    context, theta_key, partial_key   the names of these keys in the architecture's config.json

    Raises UnsupportedError for another kind than KINDS and for a key that none of them has, ModelFileError for a
    number out of range.
    """
    if config.has("rope_parameters") and config.has("rope_scaling"):
        config.fail("rope_scaling", "and rope_parameters are both given; one of them is allowed")
    found = config.section("rope_parameters" if config.has("rope_parameters") else "rope_scaling")
    if layer_type is not None and found.has(layer_type):
        found = found.section(layer_type)
    base = (found if found.has("rope_theta") else config).number(
        "rope_theta" if found.has("rope_theta") else theta_key, 1.0, 1e12, default=theta
    )
    dims = _rotated(config, found, head_dim, partial, partial_key)
    config.get(theta_key, None)  # the newer layout may repeat them outside
    rope = _read_kind(config, found, base, dims, context)
    for key in found.unread():
        raise UnsupportedError(f"rope key {found.place}{key}", found.get(key), ("absent", "null"), config.path)
    return rope


def _rotated(config: Settings, found: Settings, head_dim: int, partial: float | None, key: str) -> int:
    """Return how many elements of a head are rotated."""
    inside = found.has("partial_rotary_factor")
    outside = config.get(key, 1.0 if partial is None else partial)
    if partial is None:
        for value in (outside, found.get("partial_rotary_factor", 1.0)):
            if value != 1.0:
                raise UnsupportedError("partial_rotary_factor", value, ("1.0",), config.path)
        return head_dim
    where, name = (found, "partial_rotary_factor") if inside else (config, key)
    dims = int(head_dim * where.number(name, 0.0, 1.0, default=partial))
    if dims < 2 or dims % 2:
        where.fail(name, f"leaves {dims} of {head_dim} elements of a head; an even number from 2 on is allowed")
    return dims


def _read_kind(config: Settings, found: Settings, theta: float, dims: int, context: str) -> Rope:
    if not set(found.values) - {"rope_theta", "partial_rotary_factor"}:
        return Rope(theta, dims)
    named = found.text("rope_type", default=None) or found.text("type")
    found.get("type", None)
    kind = _SAME.get(named, named)
    if kind not in KINDS:
        raise UnsupportedError("rope type", named, KINDS, config.path)
    if kind == "default":
        return Rope(theta, dims)
    if kind == "longrope":
        return _read_longrope(config, found, theta, dims, context)
    factor = found.number("factor", 1.0, 1e6)
    if kind == "llama3":
        low, high = found.number("low_freq_factor", 1e-6, 1e6), found.number("high_freq_factor", 1e-6, 1e6)
        if high <= low:
            found.fail("high_freq_factor", f"is {high:g}; more than low_freq_factor {low:g} is allowed")
        original = found.integer("original_max_position_embeddings", 1, MAX_CONTEXT)
        return Rope(theta, dims, kind, factor, low, high, original)
    if kind == "dynamic":
        return Rope(theta, dims, kind, factor, original_context=_dynamic_context(config, found, dims, context))
    original = _original_context(config, found, context)
    if kind == "linear":
        return Rope(theta, dims, kind, factor)
    finetuned = found.get("finetuned", True)
    if finetuned is not True:
        raise UnsupportedError(f"rope key {found.place}finetuned", finetuned, ("true",), config.path)
    return Rope(
        theta, dims, kind, factor, original_context=original,
        attention_factor=_yarn_attention(found, factor),
        beta_fast=found.number("beta_fast", 1e-6, 1e6, default=32.0),
        beta_slow=found.number("beta_slow", 1e-6, 1e6, default=1.0),
        truncate=found.boolean("truncate", default=True),
    )  # fmt: skip


def _yarn_attention(found: Settings, factor: float) -> float:
    """Return what scales rotated elements: as given, or 0.1 ln(factor) + 1 with the weights mscale/mscale_all_dim."""
    mscale = found.number("mscale", 0.0, 1e3, default=0.0)
    mscale_all = found.number("mscale_all_dim", 0.0, 1e3, default=0.0)
    logarithm = 0.1 * math.log(factor)
    usual = (1 + mscale * logarithm) / (1 + mscale_all * logarithm) if mscale and mscale_all else 1 + logarithm
    return found.number("attention_factor", 1e-6, 1e6, default=usual)


def _original_context(config: Settings, found: Settings, context: str) -> int:
    """Return original_max_position_embeddings: of the file's top, or of the rope, or else the context."""
    key = "original_max_position_embeddings"
    length = found.integer(key, 1, MAX_CONTEXT, default=None)
    outside = config.integer(key, 1, MAX_CONTEXT, default=None)
    return outside or length or config.integer(context, 1, MAX_CONTEXT)


def _dynamic_context(config: Settings, found: Settings, dims: int, context: str) -> int:
    """Return the positions from which on dynamic NTK slows rotations: the model's context, as in transformers."""
    length = config.integer(context, 1, MAX_CONTEXT)
    original = _original_context(config, found, context)
    if original != length:
        found.fail("original_max_position_embeddings", f"is {original}; {context} {length} is allowed with dynamic")
    if dims < 4:
        raise UnsupportedError("rotated elements of a head with dynamic rope", dims, ("4 or more",), config.path)
    return length


def _read_longrope(config: Settings, found: Settings, theta: float, dims: int, context: str) -> Rope:
    original = _original_context(config, found, context)
    stretched = config.integer(context, 1, MAX_CONTEXT) / original
    factor = found.number("factor", 1e-6, 1e6, default=stretched)
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    return Rope(
        theta, dims, "longrope", factor, original_context=original,
        attention_factor=found.number("attention_factor", 1e-6, 1e6, default=usual),
        long=_factors(found, "long_factor", dims), short=_factors(found, "short_factor", dims),
    )  # fmt: skip


def _factors(found: Settings, key: str, dims: int) -> np.ndarray:
    """Return a list of dims / 2 positive numbers as float32 [dims / 2]."""
    values = found.items(key)
    if len(values) != dims // 2 or any(type(v) not in (int, float) or not 0 < v < 1e6 for v in values):
        found.fail(key, f"holds {len(values)} values; {dims // 2} positive numbers are allowed")
    return np.array(values, np.float32)
