"""nomic-bert.  Enters: a checkpoint's `ModelMap`; leaves: it, filled.

config.json has the names of GPT-2 where the model's own code wrote it, and BERT's where transformers did; the tensors
have the same names.  Those of the output are llama.cpp's (conversion/bert.py).
"""

from __future__ import annotations

from ..decoder import Decoder, read_decoder
from ..encoder import map_encoder, map_token_types
from ..model_map import MAX_CONTEXT, MAX_LAYERS, Dim, ModelMap
from ..rope import read_rope
from .gemma import only_kinds

CLASSES = {"NomicBertModel": "nomic-bert"}
THETA = 1000.0
TRAINED = 2048
"""Positions that the published models were trained on."""


def plan(m: ModelMap) -> None:
    """Map a nomic-bert checkpoint."""
    map_encoder(m)
    d = _read_sizes(m) if m.config.has("n_embd") else _read_new_sizes(m)
    m.copy("embeddings.word_embeddings.weight", "token_embd.weight", d.vocab, d.hidden)
    m.copy("embeddings.token_type_embeddings.weight", "token_types.weight", map_token_types(m), d.hidden)
    m.norm("emb_ln", "token_embd_norm", d.hidden, bias=True)
    for layer in m.layers(d.layers, "encoder.layers."):
        layer.linear("attn.Wqkv", "attn_qkv", 3 * d.q, d.hidden)
        layer.linear("attn.out_proj", "attn_output", d.hidden, d.q)
        layer.norm("norm1", "attn_output_norm", d.hidden, bias=True)
        layer.linear("mlp.fc12", "ffn_gate", d.ffn, d.hidden)
        layer.linear("mlp.fc11", "ffn_up", d.ffn, d.hidden)
        layer.linear("mlp.fc2", "ffn_down", d.hidden, d.ffn)
        layer.norm("norm2", "layer_output_norm", d.hidden, bias=True)


def _read_new_sizes(m: ModelMap) -> Decoder:
    """Read and write sizes under BERT's names."""
    m.only("hidden_act", "silu")
    d = read_decoder(m)
    m.only("num_key_value_heads", None, int(d.heads))
    m.number("layer_norm_eps", "attention.layer_norm_epsilon", 0.0, 1.0, default=1e-12)
    m.rope(only_kinds(m, read_rope(m.config, d.head_dim, theta=THETA)))
    return d


def _read_sizes(m: ModelMap) -> Decoder:
    """Read and write sizes under GPT-2's names; what the model's code could do besides is refused."""
    m.only("activation_function", "swiglu")
    for key in ("prenorm", "parallel_block", "causal", "use_rms_norm", "qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias",
                "rotary_emb_interleaved", "scale_attn_by_inverse_layer_idx"):  # fmt: skip
        m.only(key, False)
    m.only("rotary_emb_fraction", 1.0)
    m.only("rotary_emb_scale_base", None)
    m.only("rotary_scaling_factor", None)
    m.only("moe_every_n_layers", None, 0)
    m.only("num_experts", None, 0)
    m.only("scale_attn_weights", True)
    m.unused(
        "fused_bias_fc", "fused_dropout_add_ln", "use_xentropy", "reorder_and_upcast_attn", "use_flash_attn",
        "last_layer_subset", "dense_seq_output", "pad_vocab_size_multiple", "max_position_embeddings",
    )  # fmt: skip
    vocab = m.vocab()
    written, trained = (
        m.config.integer(key, 1, MAX_CONTEXT, default=TRAINED) for key in ("n_positions", "max_trained_positions")
    )
    context = min(written, trained)
    if context < written:
        m.notes.append(f"the context is {context} tokens, which the model was trained on, not {written}")
    m.add("context_length", "uint32", context)
    hidden = m.size("n_embd", "embedding_length")
    layers = m.size("n_layer", "block_count", maximum=MAX_LAYERS)
    ffn = m.size("n_inner", "feed_forward_length")
    heads = m.size("n_head", "attention.head_count")
    if hidden % (2 * heads):
        m.config.fail("n_head", f"is {heads}, which does not divide n_embd {hidden} into heads of an even size")
    m.number("layer_norm_epsilon", "attention.layer_norm_epsilon", 0.0, 1.0)
    head_dim = Dim(hidden // heads, "n_embd / n_head")
    m.rope(only_kinds(m, read_rope(m.config, head_dim, theta=THETA, theta_key="rotary_emb_base")))
    return Decoder(hidden, layers, ffn, heads, heads, head_dim, vocab)
