"""MistralForCausalLM: Llama's computation without biases.  Enters: an open checkpoint; leaves: its plan.

llama.cpp runs these files as architecture "llama", so that is what is written.
"""

from __future__ import annotations

from dataclasses import replace

from ..checkpoint import Checkpoint
from ..plan import Plan
from .llama import plan_llama, read_sizes, refuse_settings

ARCHITECTURE = "MistralForCausalLM"


def plan(checkpoint: Checkpoint) -> Plan:
    """Return the plan of a Mistral checkpoint.

    A sliding window shorter than the context becomes the context: up to there the model is exact without one.  The
    plan's notes say so.  Raises what Llama's plan does.
    """
    config = checkpoint.config
    refuse_settings(config, {"attention_bias": False})
    sizes = read_sizes(config)
    window = config.integer("sliding_window", 1, 1 << 31, default=None)
    if window is None or window >= sizes.context:
        return plan_llama(checkpoint, sizes)
    note = (
        f"the context is {window} tokens, not {sizes.context}: beyond them this model attends through a sliding "
        "window, which is not supported"
    )
    return replace(plan_llama(checkpoint, replace(sizes, context=window)), notes=(note,))
