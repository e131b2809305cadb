"""StarCoder2.  Enters: a checkpoint's `ModelMap`; leaves: it, filled.

Names of keys and tensors are those of llama.cpp's converter (conversion/starcoder.py); attention.sliding_window, which
that one leaves out, is the key that other architectures have.
"""

from __future__ import annotations

from ..decoder import gelu, layer_epsilon, read_decoder
from ..model_map import MAX_CONTEXT, ModelMap
from ..rope import read_rope

CLASSES = {"Starcoder2ForCausalLM": "starcoder2"}


def plan(m: ModelMap) -> None:
    """Map a StarCoder2 checkpoint."""
    gelu(m, "hidden_act", "gelu_pytorch_tanh")
    m.only("norm_type", "layer_norm")
    m.only("mlp_type", "default")
    m.only("scale_attn_weights", True)
    m.unused("activation_function", "layer_norm_epsilon")  # StarCoder 1's; hidden_act and norm_epsilon count
    m.unused("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32")
    bias = m.flag("use_bias", True)
    d = read_decoder(m)
    layer_epsilon(m, "norm_epsilon")
    if m.config.has("sliding_window"):
        m.size("sliding_window", "attention.sliding_window", maximum=MAX_CONTEXT)
    m.rope(read_rope(m.config, d.head_dim))
    m.copy("model.embed_tokens.weight", "token_embd.weight", d.vocab, d.hidden)
    for layer in m.layers(d.layers, "model.layers."):
        layer.norm("input_layernorm", "attn_norm", d.hidden, bias=True)
        layer.linear("self_attn.q_proj", "attn_q", d.q, d.hidden, bias=bias)
        layer.linear("self_attn.k_proj", "attn_k", d.kv, d.hidden, bias=bias)
        layer.linear("self_attn.v_proj", "attn_v", d.kv, d.hidden, bias=bias)
        layer.linear("self_attn.o_proj", "attn_output", d.hidden, d.q, bias=bias)
        layer.norm("post_attention_layernorm", "ffn_norm", d.hidden, bias=True)
        layer.linear("mlp.c_fc", "ffn_up", d.ffn, d.hidden, bias=bias)
        layer.linear("mlp.c_proj", "ffn_down", d.hidden, d.ffn, bias=bias)
    m.norm("model.norm", "output_norm", d.hidden, bias=True)
    m.output("model.embed_tokens", "lm_head", d.vocab, d.hidden, tied=True)
