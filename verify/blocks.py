"""What the references are made of.  Enters: arrays of any float type; leaves: arrays of that type.

Written after transformers' models, for clearness alone: loops over layers, whole matrices of scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..convert.jsonfile import Settings
from ..errors import UnsupportedError
from .source import Array

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    """x [..., n] / root mean square, times weight [n] (Zhang and Sennrich 2019)."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + x.dtype.type(epsilon)) * weight


def layer_norm(x: Array, weight: Array, bias: Array | None, epsilon: float) -> Array:
    """x [..., n] less its mean, / root of its variance, times weight [n] plus bias [n] (Ba et al. 2016)."""
    x = x - x.mean(axis=-1, keepdims=True)
    y = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + x.dtype.type(epsilon)) * weight
    return y if bias is None else y + bias


def softmax(x: Array) -> Array:
    """Over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def gelu(x: Array) -> Array:
    """x times the normal distribution's function."""
    erf = np.vectorize(math.erf, otypes=[np.float64])
    return (0.5 * x * (1 + erf(x / math.sqrt(2)))).astype(x.dtype)


def gelu_tanh(x: Array) -> Array:
    """GELU's approximation by tanh (Hendrycks and Gimpel 2016)."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


class Rotation:
    """Rotary positions of heads of `head_dim` elements, by config.json (transformers: modeling_rope_utils).

    frequencies  float64 [head_dim / 2]: radians per position; of dynamic [positions, head_dim / 2]
    factor       what cosine and sine are multiplied with
    """

    def __init__(
        self,
        config: Settings,
        head_dim: int,
        positions: int,
        layer_type: str = "",
        key: str = "rope_theta",
        theta: float = 1e4,
    ):
        """Read the rotation of layers of `layer_type`, where rope_parameters has an entry for each.

        positions  how many there will be
        key    of the base outside of rope_parameters; rope_local_base_freq is of layers without rope_scaling
        theta  the base where config.json does not say
        Raises UnsupportedError for a type that is none of ROPE_TYPES.
        """
        found = config.section("rope_parameters" if config.has("rope_parameters") else "rope_scaling").values
        if isinstance(found.get(layer_type), dict):
            found = found[layer_type]
        elif key == "rope_local_base_freq":
            found = {}
        base = found.get("rope_theta") or config.number(key, 1, 1e12, theta)
        kind = str(found.get("rope_type") or found.get("type") or "default")
        if kind not in ROPE_TYPES:
            raise UnsupportedError("rope type of the reference", kind, ROPE_TYPES, config.path)
        self.factor = 1.0
        self.frequencies = float(base) ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        if kind == "linear":
            self.frequencies = self.frequencies / found["factor"]
        elif kind == "llama3":
            self._slow_down_long_waves(found)
        elif kind == "yarn":
            self._blend(found, float(base), head_dim, config)
        elif kind == "longrope":
            self._divide(found, positions, config)
        elif kind == "dynamic":
            self._slow_down_with_length(found["factor"], float(base), head_dim, positions, config)

    def _slow_down_with_length(
        self, factor: float, base: float, head_dim: int, positions: int, config: Settings
    ) -> None:
        """Dynamic NTK: a base for each length beyond the context (transformers, fed a token at a time)."""
        old = config.integer("max_position_embeddings", 1, 1 << 31)
        rows = []
        for position in range(positions):
            length = max(old, position + 1)
            larger = base * (factor * length / old - (factor - 1)) ** (head_dim / (head_dim - 2))
            rows.append(larger ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim))
        self.frequencies = np.array(rows)

    def _divide(self, found: Mapping[str, Any], positions: int, config: Settings) -> None:
        """LongRoPE (Ding et al. 2024): a factor for each frequency, others beyond the old context."""
        whole = config.integer("max_position_embeddings", 1, 1 << 31)
        old = found.get("original_max_position_embeddings") or config.integer(
            "original_max_position_embeddings", 1, 1 << 31, whole
        )
        factor, stated = found.get("factor") or whole / old, found.get("attention_factor")
        self.frequencies = self.frequencies / np.array(found["long_factor" if positions > old else "short_factor"])
        if stated is not None:
            self.factor = float(stated)
        elif factor > 1:
            self.factor = math.sqrt(1 + math.log(factor) / math.log(old))

    def _slow_down_long_waves(self, found: Mapping[str, Any]) -> None:
        """Llama 3.1: short waves stay, long ones are stretched, between them it goes linearly."""
        waves = found["original_max_position_embeddings"] * self.frequencies / (2 * math.pi)  # in the old context
        low, high = found["low_freq_factor"], found["high_freq_factor"]
        kept = np.clip((waves - low) / (high - low), 0, 1)
        self.frequencies = self.frequencies * (kept + (1 - kept) / found["factor"])

    def _blend(self, found: Mapping[str, Any], base: float, head_dim: int, config: Settings) -> None:
        """YaRN (Peng et al. 2023): as llama3, by the number of turns that a pair makes in the old context."""
        factor = float(found["factor"])
        old = found.get("original_max_position_embeddings") or config.integer("max_position_embeddings", 1, 1 << 31)

        def pair_of(turns: float) -> float:
            return head_dim * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(base))

        low, high = pair_of(found.get("beta_fast") or 32), pair_of(found.get("beta_slow") or 1)
        if found.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        ramp = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 1e-3), 0, 1)
        self.frequencies = self.frequencies * ((1 - ramp) + ramp / factor)

        def growth(scale: float) -> float:
            return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

        stated, one, all_ = (found.get(key) for key in ("attention_factor", "mscale", "mscale_all_dim"))
        if stated is not None:
            self.factor = float(stated)
        else:
            self.factor = growth(one) / growth(all_) if one and all_ else growth(1.0)

    def apply(self, x: Array) -> Array:
        """x [positions, heads, head_dim], rotated in pairs (j, j + half), as Hugging Face's checkpoints are; elements
        of a head beyond the frequencies' stay."""
        rotated, rest = np.split(x, [2 * self.frequencies.shape[-1]], axis=-1)
        angles = (np.arange(len(x))[:, None] * self.frequencies)[:, None]
        cosine, sine = ((f(angles) * self.factor).astype(x.dtype) for f in (np.cos, np.sin))
        a, b = np.split(rotated, 2, axis=-1)
        return np.concatenate([a * cosine - b * sine, b * cosine + a * sine, rest], axis=-1)


def alibi_slopes(heads: int) -> Array:
    """Return float64 [heads]: 2^(-8 i / n) for i = 1 .. n, n the power of two not below `heads`; where that is more
    than them, every second one from the second on, then those from the first on (Press et al. 2022)."""
    n = 1 << (heads - 1).bit_length()
    slopes = 2.0 ** (-8 * np.arange(1, n + 1) / n)
    return slopes if n == heads else np.concatenate([slopes[1::2], slopes[::2]])[:heads]


def largest(x: Array, count: int) -> NDArray[np.bool_]:
    """Return which elements of x [n, m] are among the `count` largest of their row, [n, m]."""
    found = np.zeros(x.shape, np.bool_)
    np.put_along_axis(found, np.argsort(-x, axis=-1, kind="stable")[:, :count], True, axis=-1)
    return found


def attend(
    q: Array,
    k: Array,
    v: Array,
    scale: float,
    window: int | None = None,
    cap: float | None = None,
    slopes: Array | None = None,
    sinks: Array | None = None,
    both_sides: bool = False,
) -> Array:
    """Attention, causal or not: q [n, heads, d], k [n, kv_heads, d], v [n, kv_heads, e] -> [n, heads * e].

    window  a row sees that many positions, its own counted
    cap     scores become cap * tanh(score / cap)
    slopes  [heads]: how much a score falls with each position between
    sinks   [heads]: of each head the score of one more position, without a value
    both_sides: a row sees those behind it too
    """
    n, shared = len(q), q.shape[1] // k.shape[1]
    k, v = np.repeat(k, shared, axis=1), np.repeat(v, shared, axis=1)
    scores = np.einsum("qhd,khd->hqk", q, k) * q.dtype.type(scale)
    if cap is not None:
        scores = cap * np.tanh(scores / cap)
    distance = np.arange(n)[:, None] - np.arange(n)
    if slopes is not None:
        scores = scores - slopes[:, None, None] * distance
    if both_sides:
        distance = np.abs(distance)
    seen = (distance >= 0) & (distance < (window or n))
    scores = np.where(seen, scores, -np.inf).astype(q.dtype)
    if sinks is not None:
        scores = np.concatenate([scores, np.broadcast_to(sinks[:, None, None], (len(sinks), n, 1))], axis=-1)
    weights = softmax(scores)[..., :n]
    return np.einsum("hqk,khd->qhd", weights, v).reshape(n, -1)
