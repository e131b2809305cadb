"""MistralForCausalLM, and MistralModel, which embeds texts: Llama's computation without biases.  Enters: a
checkpoint's `ModelMap`; leaves: it, filled.

llama.cpp runs these files as architecture "llama", so that is what is written.
"""

from __future__ import annotations

from ..model_map import MAX_CONTEXT, ModelMap
from .llama import map_llama

CLASSES = {"MistralForCausalLM": "llama", "MistralModel": "llama"}


def plan(m: ModelMap) -> None:
    """Map a Mistral checkpoint."""
    m.only("attention_bias", False)
    add_window(m)
    map_llama(m, bias=False)


def add_window(m: ModelMap) -> None:
    """Add the key of a sliding window that is shorter than the context.

    llama.cpp does not read this key of architecture "llama": it attends to all positions.  The plan's notes say so.
    """
    context = m.config.integer("max_position_embeddings", 1, MAX_CONTEXT)
    window = m.config.integer("sliding_window", 1, MAX_CONTEXT, default=context)
    if window < context:
        m.add("attention.sliding_window", "uint32", window)
        m.notes.append(f"attends through a window of {window} tokens; llama.cpp ignores it and is exact up to there")
