"""Falcon 7B, 40B, 180B, 11B and Falcon-RW.  Enters: a checkpoint's `ModelMap`; leaves: it, filled.

Names of keys and tensors and the order of the fused rows are those of llama.cpp's converter (conversion/falcon.py).
"""

from __future__ import annotations

from ..decoder import check_heads, gelu, layer_epsilon, ungrouped
from ..model_map import MAX_CONTEXT, MAX_LAYERS, Dim, ModelMap
from ..rope import read_rope

ALIBI_BIAS = 8.0  # no key says another one
CLASSES = {"FalconForCausalLM": "falcon", "RWForCausalLM": "falcon"}


def plan(m: ModelMap) -> None:
    """Map a Falcon checkpoint.  llama.cpp's falcon has neither ALiBi nor biases, nor one part after the other."""
    m.only("apply_residual_connection_post_layernorm", False)
    gelu(m, "activation", "gelu")
    vocab = m.vocab()
    m.size("max_position_embeddings", "context_length", maximum=MAX_CONTEXT, default=2048)
    hidden = m.size(m.named("hidden_size", "n_embed"), "embedding_length")
    layers = m.size(m.named("num_hidden_layers", "n_layer"), "block_count", maximum=MAX_LAYERS)
    heads = m.size(m.named("num_attention_heads", "n_head"), "attention.head_count")
    check_heads(m, hidden, heads)
    head_dim = Dim(hidden // heads, f"{hidden.words} / {heads.words}")
    ffn = m.size("ffn_hidden_size", "feed_forward_length", default=4 * hidden)
    m.only("ff_factor", None, ffn / hidden)
    kv_heads = _kv_heads(m, heads)
    m.add("attention.head_count_kv", "uint32", int(kv_heads))
    m.add("tensor_data_layout", "string", "jploski")
    layer_epsilon(m, "layer_norm_epsilon")
    if m.flag("alibi", False):
        m.unused("rope_theta", "rope_scaling", "rope_parameters")
        m.add("attention.max_alibi_bias", "float32", ALIBI_BIAS)
        m.notes.append("llama.cpp knows no Falcon with ALiBi; transformers rounds it to bfloat16")
    else:
        m.rope(read_rope(m.config, head_dim))
    bias = m.flag("bias", False)
    parallel = m.flag("new_decoder_architecture", False) or m.flag("parallel_attn", True)
    if not parallel:
        m.add("use_parallel_residual", "bool", False)
    two_norms = m.flag("new_decoder_architecture", False) and m.only("num_ln_in_parallel_attn", 2, 1) == 2
    order, rows = ungrouped(kv_heads, heads // kv_heads, head_dim), hidden + 2 * kv_heads * head_dim
    m.copy("transformer.word_embeddings.weight", "token_embd.weight", vocab, hidden)
    for layer in m.layers(layers, "transformer.h."):
        if two_norms:
            layer.norm("ln_mlp", "attn_norm", hidden, bias=True)
            layer.norm("ln_attn", "attn_norm_2", hidden, bias=True)
        else:
            layer.norm("input_layernorm", "attn_norm", hidden, bias=True)
        layer.linear("self_attention.query_key_value", "attn_qkv", rows, hidden, bias=bias, order=order)
        layer.linear("self_attention.dense", "attn_output", hidden, hidden, bias=bias)
        if not parallel:
            layer.norm("post_attention_layernorm", "ffn_norm", hidden, bias=True)
        layer.linear("mlp.dense_h_to_4h", "ffn_up", ffn, hidden, bias=bias)
        layer.linear("mlp.dense_4h_to_h", "ffn_down", hidden, ffn, bias=bias)
    m.norm("transformer.ln_f", "output_norm", hidden, bias=True)
    m.output("transformer.word_embeddings", "lm_head", vocab, hidden, tied=True)


def _kv_heads(m: ModelMap, heads: Dim) -> Dim:
    """Return how many heads of keys there are; the older form of the file has one, or all.

    Raises ModelFileError for heads that cannot share.
    """
    key = m.named("num_kv_heads", "n_head_kv")
    if not m.flag("new_decoder_architecture", False):
        m.only("num_ln_in_parallel_attn", None, 1)
        return Dim(1, "1") if m.flag("multi_query", True) else heads
    m.unused("parallel_attn", "multi_query")
    found = m.size(key, default=int(heads))
    if heads % found:
        m.config.fail(key, f"is {found}, which does not divide {heads.words} {heads}")
    return found
