"""Rotary positions as config.json describes them.  Enters: config.json; leaves: theta, the scaling, and its factors.

Reads both layouts: rope_theta with rope_scaling, and the newer rope_parameters that holds both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..errors import UnsupportedError
from .jsonfile import Settings

TYPES = ("default", "linear", "llama3")
_DEFAULT_THETA = 10000.0


@dataclass(frozen=True)
class Rope:
    """One description of rotary positions.

    theta     base of the frequencies
    type      one of TYPES
    factor    by which positions (linear) or long wavelengths (llama3) are stretched; the rest belongs to llama3
    """

    theta: float
    type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def frequency_factors(self, head_dim: int) -> np.ndarray | None:
        """Return what llama3 divides each frequency by, float32 [head_dim / 2]; None for the other types.

        Wavelengths up to original_context / high_freq_factor stay, those from original_context / low_freq_factor on
        grow by `factor`, and between them the frequency goes linearly from one to the other (transformers'
        modeling_rope_utils, llama3).
        """
        if self.type != "llama3":
            return None
        wavelengths = 2 * math.pi * self.theta ** (np.arange(0, head_dim, 2) / head_dim)
        low, high = self.low_freq_factor, self.high_freq_factor
        smooth = np.clip((self.original_context / wavelengths - low) / (high - low), 0, 1)
        return (1 / ((1 - smooth) / self.factor + smooth)).astype(np.float32)


def read_rope(config: Settings) -> Rope:
    """Return the rotary positions that config.json asks for.

    Raises UnsupportedError for another type than TYPES, ModelFileError for a number out of range.
    """
    if config.has("rope_parameters") and config.has("rope_scaling"):
        config.fail("rope_scaling", "and rope_parameters are both given; one of them is allowed")
    found = config.section("rope_parameters" if config.has("rope_parameters") else "rope_scaling")
    theta = (found if found.has("rope_theta") else config).number("rope_theta", 1.0, 1e12, default=_DEFAULT_THETA)
    if found.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedError("partial_rotary_factor", found.get("partial_rotary_factor"), ("1.0",), config.path)
    if not set(found.values) - {"rope_theta"}:
        return Rope(theta)
    kind = found.text("rope_type", default=None) or found.text("type")
    if kind not in TYPES:
        raise UnsupportedError("rope type", kind, TYPES, config.path)
    if kind == "default":
        return Rope(theta)
    factor = found.number("factor", 1.0, 1e6)
    if kind == "linear":
        return Rope(theta, kind, factor)
    low, high = found.number("low_freq_factor", 1e-6, 1e6), found.number("high_freq_factor", 1e-6, 1e6)
    if high <= low:
        found.fail("high_freq_factor", f"is {high:g}; more than low_freq_factor {low:g} is allowed")
    return Rope(theta, kind, factor, low, high, found.integer("original_max_position_embeddings", 1, 1 << 31))
