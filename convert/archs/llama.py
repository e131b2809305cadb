"""Llama 1 to 3 and models of the same computation.  Enters: a checkpoint's `ModelMap`; leaves: it, filled.

Names of keys and tensors, the order of the rows of Q and K, and the tensor of rope factors are those of llama.cpp's
converter (gguf-py constants, conversion/llama.py), so that llama.cpp loads the file.
"""

from __future__ import annotations

from collections.abc import Callable

from ..decoder import Decoder, only_full_attention, read_decoder, rms_epsilon, rotary_order
from ..model_map import ModelMap, Part
from ..rope import DEFAULT_THETA, read_rope

CLASSES = {"LlamaForCausalLM": "llama", "LlamaModel": "llama"}


def plan(m: ModelMap) -> None:
    """Map a Llama checkpoint."""
    m.only("sliding_window", None)
    m.only("mlp_bias", False)
    m.only("rope_interleaved", False)
    m.only("activation", "swiglu")
    m.unused("is_llama_config")
    map_llama(m, bias=m.flag("attention_bias", False))


def gated_ffn(layer: Part, d: Decoder) -> None:
    """Map a feed-forward of gate, up and down without biases."""
    layer.linear("mlp.gate_proj", "ffn_gate", d.ffn, d.hidden)
    layer.linear("mlp.up_proj", "ffn_up", d.ffn, d.hidden)
    layer.linear("mlp.down_proj", "ffn_down", d.hidden, d.ffn)


def map_llama(
    m: ModelMap, bias: bool, ffn: Callable[[Part, Decoder], None] = gated_ffn, *,
    tied: bool = False, theta: float = DEFAULT_THETA,
) -> None:  # fmt: skip
    """Map a checkpoint that computes as Llama does.

    bias          all four matrices of attention have one
    ffn           maps a layer's feed-forward
    tied, theta   tie_word_embeddings and rope_theta of a config.json without them
    """
    m.only("hidden_act", "silu")
    m.only("is_causal", True)
    only_full_attention(m)
    d = read_decoder(m)
    rms_epsilon(m)
    m.rope(read_rope(m.config, d.head_dim, theta=theta))
    at = m.prefix("model.")
    m.copy(f"{at}embed_tokens.weight", "token_embd.weight", d.vocab, d.hidden)
    for layer in m.layers(d.layers, f"{at}layers."):
        layer.norm("input_layernorm", "attn_norm", d.hidden)
        attention(layer, d, bias=bias, out_bias=bias, reorder=True)
        layer.norm("post_attention_layernorm", "ffn_norm", d.hidden)
        ffn(layer, d)
    m.norm(f"{at}norm", "output_norm", d.hidden)
    m.output(f"{at}embed_tokens", "lm_head", d.vocab, d.hidden, tied=tied)


def attention(layer: Part, d: Decoder, *, bias: bool = False, out_bias: bool = False, reorder: bool = False) -> None:
    """Map the four matrices of attention.

    bias      of queries, keys and values
    reorder   bring rotary pairs, half a head apart in the checkpoint, side by side
    """
    orders = [rotary_order(heads, d.head_dim) if reorder else None for heads in (d.heads, d.kv_heads)]
    layer.linear("self_attn.q_proj", "attn_q", d.q, d.hidden, bias=bias, order=orders[0])
    layer.linear("self_attn.k_proj", "attn_k", d.kv, d.hidden, bias=bias, order=orders[1])
    layer.linear("self_attn.v_proj", "attn_v", d.kv, d.hidden, bias=bias)
    layer.linear("self_attn.o_proj", "attn_output", d.hidden, d.q, bias=out_bias)
