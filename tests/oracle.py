"""Slow, obvious, float64: what the fast code is compared with.  Enters: a checkpoint; leaves: arrays.

The forward pass is the reference of `halfbyte verify`, which knows nothing of the converter's maps and of the engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from halfbyte.convert.checkpoint import Checkpoint
from halfbyte.verify.decoder import Decoder
from halfbyte.verify.source import Source

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
    with Checkpoint(folder) as checkpoint:
        return Decoder(_Rounding(checkpoint, int8), ids).logits()


class _Rounding(Source):
    """A checkpoint in float64, whose matrices of the names in `int8` meet rounded activations."""

    def __init__(self, checkpoint: Checkpoint, int8: Mapping[str, int]):
        super().__init__(checkpoint, np.float64)
        self._int8 = int8

    def product(self, x: Array, name: str) -> Array:
        size = self._int8.get(name.split(".")[-1])
        is_rounded = size is not None and x.shape[1] % size == 0
        return super().product(as_int8(x, size) if is_rounded else x, name)
