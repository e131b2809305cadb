"""Rotary positions.  Enters: the rope keys of a GGUF file; leaves: how far each pair of columns turns per position.

Su et al. 2021; linear scaling: Chen et al. 2023; yarn and dynamic NTK: Peng et al. 2023; longrope: Ding et al. 2024.
Keys, defaults and what "yarn" does to magnitudes are llama.cpp's (llama-context.cpp, ggml_rope_yarn).  Dynamic NTK,
which it does not have, is transformers' (modeling_rope_utils).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelFileError, UnsupportedError
from ...quant.gguf_reader import GgufFile

KINDS = ("none", "linear", "yarn", "longrope")

Frequencies = NDArray[np.float64]


@dataclass(frozen=True)
class Rotation:
    """frequencies  float64 [n_rot/2]: radians per position of each pair
    halves       pairs are (i, i + n_rot/2), otherwise (2i, 2i + 1)
    magnitude    rotated columns are this times as long
    long         float64 [n_rot/2]: the frequencies of contexts longer than `switch` positions; None: the same
    dynamic      factor of dynamic NTK: beyond `switch` positions, the farther a position the slower it turns; 0: none
    """

    frequencies: Frequencies
    halves: bool
    magnitude: float = 1.0
    long: Frequencies | None = None
    switch: int = 0
    dynamic: float = 0.0

    @property
    def n_rot(self) -> int:
        return 2 * len(self.frequencies)

    def angles(self, positions: NDArray[np.int64], n_ctx: int) -> Frequencies:
        """How far each pair is turned at `positions` int64 [n], in a context of n_ctx: float64 [n, n_rot/2], radians.

        Of dynamic NTK as if tokens came one by one, so that it is a function of the position alone.
        """
        frequencies = self.frequencies if self.long is None or n_ctx <= self.switch else self.long
        angles: Frequencies = positions[:, None] * frequencies
        if self.dynamic:
            # base' = base * growth^(n_rot / (n_rot - 2)), so pair i is growth^(2i / (n_rot - 2)) times as slow.
            growth = np.maximum(1.0, self.dynamic * (positions + 1) / self.switch - (self.dynamic - 1))
            angles *= np.exp(np.log(growth)[:, None] * -np.linspace(0.0, 1.0, self.n_rot // 2))
        return angles


def read_rotation(
    file: GgufFile, arch: str, head_dim: int, *, halves: bool, base_key: str = "rope.freq_base",
    default_base: float = 10000.0, scaled: bool = True,
) -> Rotation:  # fmt: skip
    """Return the rotation that the file describes.  scaled: whether the file's scaling is for this base.

    Raises ModelFileError or UnsupportedError naming the key.
    """
    n_rot = file.get_int(f"{arch}.rope.dimension_count", head_dim, minimum=2, maximum=head_dim)
    if n_rot % 2:
        raise ModelFileError(file.path, f"is {n_rot}; it must be even", place=f"{arch}.rope.dimension_count")
    base = file.get_float(f"{arch}.{base_key}", default_base, minimum=1.0, maximum=1e12)
    frequencies = base ** (-np.arange(0, n_rot, 2, dtype=np.float64) / n_rot)
    if not scaled:
        return Rotation(frequencies, halves)
    if (dynamic := _dynamic(file, arch, n_rot)) is not None:
        factor, original = dynamic
        return Rotation(frequencies, halves, switch=original, dynamic=factor)
    kind = file.get_str(f"{arch}.rope.scaling.type", "linear")  # this default and the older key: as llama.cpp
    if kind not in KINDS:
        raise UnsupportedError(f"{arch}.rope.scaling.type", kind, [*KINDS, "llama3 (as rope_freqs.weight)"], file.path)
    factor = file.get_float(f"{arch}.rope.scale_linear", 1.0, minimum=1e-3, maximum=1e6)
    factor = file.get_float(f"{arch}.rope.scaling.factor", factor, minimum=1e-3, maximum=1e6)
    magnitude = file.get_float(f"{arch}.rope.scaling.attn_factor", 1.0, minimum=1e-3, maximum=1e3)
    if kind == "linear":
        frequencies = frequencies / factor
    elif kind == "yarn":
        frequencies, more = _yarn(file, arch, frequencies, base, factor)
        magnitude *= more
    if (factors := _factors(file, "rope_freqs.weight", n_rot)) is not None:
        frequencies = frequencies / factors
    short, long = (_factors(file, f"rope_factors_{name}.weight", n_rot) for name in ("short", "long"))
    if short is None and long is None:
        return Rotation(frequencies, halves, magnitude)
    if short is None or long is None:
        raise ModelFileError(file.path, "is there without the other of short and long", place="rope_factors_*.weight")
    switch = file.get_int(f"{arch}.rope.scaling.original_context_length", minimum=1, maximum=1 << 31)
    return Rotation(frequencies / short, halves, magnitude, frequencies / long, switch)


def _dynamic(file: GgufFile, arch: str, n_rot: int) -> tuple[float, int] | None:
    """The factor of dynamic NTK and the context that the model was trained on; None without this scaling.

    The key is halfbyte's own: to other programs such a file has no scaling, which is right up to that context.
    """
    key, at = f"{arch}.rope.scaling.dynamic_factor", f"{arch}.rope.scaling."
    factor = file.get_float(key, None, minimum=1.0, maximum=1e6)
    if factor is None:
        return None
    others = (at + "type", at + "factor", at + "attn_factor", f"{arch}.rope.scale_linear")
    tensors = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
    for other in (*(o for o in others if o in file.metadata), *(t for t in tensors if t in file.tensors)):
        raise ModelFileError(file.path, f"is there together with {other}; one kind of scaling is allowed", place=key)
    if n_rot < 4:
        raise ModelFileError(file.path, f"is there with {n_rot} rotated columns; at least 4 are allowed", place=key)
    return factor, file.get_int(at + "original_context_length", minimum=1, maximum=1 << 31)


def _yarn(file: GgufFile, arch: str, frequencies: Frequencies, base: float, factor: float) -> tuple[Frequencies, float]:
    """Slow waves are stretched by `factor`, quick ones stay, between them the one goes over into the other."""
    at = f"{arch}.rope.scaling."
    n_rot = 2 * len(frequencies)
    original = file.get_int(at + "original_context_length", None, minimum=1, maximum=1 << 31)
    original = original or file.get_int(f"{arch}.context_length", minimum=1, maximum=1 << 31)
    mix = file.get_float(at + "yarn_ext_factor", 1.0, minimum=0.0, maximum=1.0)
    turns = (
        file.get_float(at + "yarn_beta_fast", 32.0, minimum=1e-3, maximum=1e6),
        file.get_float(at + "yarn_beta_slow", 1.0, minimum=1e-3, maximum=1e6),
    )
    # The pair that turns `n` times in the original context: n_rot * log(original / (2 pi n)) / (2 log(base)).
    low, high = (n_rot * math.log(original / (2 * math.pi * n)) / (2 * math.log(base)) for n in turns)
    if file.get_bool(at + "yarn_truncate", True):  # a key of halfbyte's converter; llama.cpp always does
        low, high = float(math.floor(low)), float(math.ceil(high))
    low, high = max(0.0, low), min(n_rot - 1.0, high)
    quick = 1.0 - np.clip((np.arange(n_rot // 2) - low) / max(0.001, high - low), 0.0, 1.0)
    stretched = frequencies / factor * (1 - quick * mix) + frequencies * quick * mix
    if not mix or factor <= 1.0:
        return stretched, 1.0
    per_log = file.get_float(at + "yarn_log_multiplier", 0.0, minimum=-1e3, maximum=1e3)
    if per_log:  # DeepSeek: what is left after the part that its scores are scaled with
        return stretched, 1.0
    return stretched, 1.0 + 0.1 * math.log(factor)


def _factors(file: GgufFile, name: str, n_rot: int) -> Frequencies | None:
    """float64 [n_rot/2]: the positive numbers of a tensor that divides each frequency; None without it."""
    view = file.tensors.get(name)
    if view is None:
        return None
    if view.shape != (n_rot // 2,):
        raise ModelFileError(file.path, f"has shape {view.shape}, not ({n_rot // 2},)", place=name)
    values = view.dequantize().astype(np.float64)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ModelFileError(file.path, "holds a factor that is not a positive number", place=name)
    return values
