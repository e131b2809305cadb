"""Qwen3ForCausalLM, and Qwen3Model, which embeds texts.  Enters: a checkpoint's `ModelMap`; leaves: it, filled.

Llama with a norm over each head of the queries and keys.  Rotary pairs lie half a head apart, as in the checkpoint, so
rows keep their order.
"""

from __future__ import annotations

from ..decoder import LayerMap
from ..model_map import ModelMap
from .llama import gated_ffn
from .qwen2 import map_qwen

CLASSES = {"Qwen3ForCausalLM": "qwen3", "Qwen3Model": "qwen3"}


def plan(m: ModelMap) -> None:
    """Map a Qwen3 checkpoint."""
    map_qwen3(m, lambda i, layer, d: gated_ffn(layer, d), windows=True)


def map_qwen3(m: ModelMap, ffn: LayerMap, *, windows: bool = False) -> None:
    """Map a Qwen3 checkpoint whose feed-forwards `ffn` maps."""
    bias = m.flag("attention_bias", False)
    map_qwen(m, ffn, windows=windows, bias=bias, out_bias=bias, head_norms=True)
