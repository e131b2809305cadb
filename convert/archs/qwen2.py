"""Qwen2ForCausalLM: Qwen 1.5, 2 and 2.5; Qwen2Model, which embeds texts.  Enters: a checkpoint's `ModelMap`; leaves:
it, filled.

Llama with biases at queries, keys and values.  Rotary pairs lie half a head apart, as in the checkpoint, so rows keep
their order.
"""

from __future__ import annotations

from ..decoder import Decoder, LayerMap, only_full_attention, read_decoder, rms_epsilon
from ..model_map import MAX_CONTEXT, MAX_LAYERS, ModelMap
from ..rope import read_rope
from .llama import attention, gated_ffn

CLASSES = {"Qwen2ForCausalLM": "qwen2", "Qwen2Model": "qwen2"}


def plan(m: ModelMap) -> None:
    """Map a Qwen2 checkpoint."""
    map_qwen2(m, lambda i, layer, d: gated_ffn(layer, d), windows=True)


def map_qwen2(m: ModelMap, ffn: LayerMap, *, windows: bool = False) -> None:
    """Map a Qwen2 checkpoint whose feed-forwards `ffn` maps."""
    map_qwen(m, ffn, windows=windows, bias=m.flag("qkv_bias", True))


def map_qwen(
    m: ModelMap, ffn: LayerMap, *, windows: bool, bias: bool, out_bias: bool = False, head_norms: bool = False
) -> None:
    """Map a checkpoint of any Qwen.

    windows     layers may have a sliding window; otherwise it is refused where config.json switches it on
    bias        queries, keys and values have one; out_bias: what attention gives has one
    head_norms  each head of the queries and keys is normalised
    """
    m.only("hidden_act", "silu")
    d = read_decoder(m)
    if windows and m.config.boolean("use_sliding_window", default=False):
        _windows(m, d)
    else:
        m.only("use_sliding_window", False)
        m.unused("sliding_window", "max_window_layers")
        only_full_attention(m)
    rms_epsilon(m)
    m.rope(read_rope(m.config, d.head_dim))
    at = m.prefix("model.")
    m.copy(f"{at}embed_tokens.weight", "token_embd.weight", d.vocab, d.hidden)
    for i, layer in enumerate(m.layers(d.layers, f"{at}layers.")):
        layer.norm("input_layernorm", "attn_norm", d.hidden)
        attention(layer, d, bias=bias, out_bias=out_bias)
        if head_norms:
            layer.norm("self_attn.q_norm", "attn_q_norm", d.head_dim)
            layer.norm("self_attn.k_norm", "attn_k_norm", d.head_dim)
        layer.norm("post_attention_layernorm", "ffn_norm", d.hidden)
        ffn(i, layer, d)
    m.norm(f"{at}norm", "output_norm", d.hidden)
    m.output(f"{at}embed_tokens", "lm_head", d.vocab, d.hidden, tied=False)


def _windows(m: ModelMap, d: Decoder) -> None:
    """Write the window and which layers have it: those that layer_types names, else those from max_window_layers on.

    The keys are those that llama.cpp has for other architectures; of these it reads none of them.
    """
    context = m.config.integer("max_position_embeddings", 1, MAX_CONTEXT)
    window = m.config.integer("sliding_window", 1, MAX_CONTEXT, default=4096)
    first = m.config.integer("max_window_layers", 0, MAX_LAYERS, default=28)
    full, sliding = "full_attention", "sliding_attention"
    kinds = m.config.items("layer_types", [sliding if i >= first else full for i in range(d.layers)])
    for kind in kinds:
        if kind not in (full, sliding):
            m.refuse("layer_types", kind, full, sliding)
    if len(kinds) != d.layers:
        m.config.fail("layer_types", f"names {len(kinds)} layers; num_hidden_layers is {d.layers}")
    if window < context and sliding in kinds:
        m.add("attention.sliding_window", "uint32", window)
        m.add("attention.sliding_window_pattern", "array", [kind == sliding for kind in kinds], items="bool")
        m.notes.append(f"attends through a window of {window} tokens; llama.cpp ignores it and is exact up to there")
