"""BERT.  Enters: a checkpoint's `ModelMap`; leaves: it, filled.

Names of keys and tensors are those of llama.cpp's converter (gguf-py constants, conversion/bert.py), so that llama.cpp
loads the file.
"""

from __future__ import annotations

from ..decoder import Decoder, read_decoder
from ..encoder import map_encoder, map_token_types
from ..model_map import MAX_CONTEXT, ModelMap, Part

CLASSES = {"BertModel": "bert", "BertForMaskedLM": "bert"}


def plan(m: ModelMap) -> None:
    """Map a BERT checkpoint; heads for other tasks than embeddings are left out."""
    m.only("hidden_act", "gelu")
    m.only("position_embedding_type", "absolute")
    m.only("directionality", "bidi")
    pooler = ("fc_size", "num_attention_heads", "num_fc_layers", "size_per_head", "type")  # of the original files
    m.unused(*(f"pooler_{key}" for key in pooler))
    map_encoder(m)
    d = read_decoder(m)
    m.number("layer_norm_eps", "attention.layer_norm_epsilon", 0.0, 1.0)
    prefix = "bert." if m.has("bert.embeddings.word_embeddings.weight") else ""
    m.ignore(r"(bert\.)?pooler\..*")
    m.ignore(r"(bert\.)?embeddings\.position_ids")
    m.ignore(r"cls\..*")
    top = m.part(prefix, "")
    top.copy("embeddings.word_embeddings.weight", "token_embd.weight", d.vocab, d.hidden)
    top.copy("embeddings.token_type_embeddings.weight", "token_types.weight", map_token_types(m), d.hidden)
    positions = m.size("max_position_embeddings", maximum=MAX_CONTEXT)
    top.copy("embeddings.position_embeddings.weight", "position_embd.weight", positions, d.hidden)
    _norm(top, "embeddings.LayerNorm", "token_embd_norm", d)
    for layer in m.layers(d.layers, f"{prefix}encoder.layer."):
        layer.linear("attention.self.query", "attn_q", d.q, d.hidden, bias=True)
        layer.linear("attention.self.key", "attn_k", d.kv, d.hidden, bias=True)
        layer.linear("attention.self.value", "attn_v", d.kv, d.hidden, bias=True)
        layer.linear("attention.output.dense", "attn_output", d.hidden, d.q, bias=True)
        _norm(layer, "attention.output.LayerNorm", "attn_output_norm", d)
        layer.linear("intermediate.dense", "ffn_up", d.ffn, d.hidden, bias=True)
        layer.linear("output.dense", "ffn_down", d.hidden, d.ffn, bias=True)
        _norm(layer, "output.LayerNorm", "layer_output_norm", d)


def _norm(part: Part, source: str, name: str, d: Decoder) -> None:
    """Map a layer norm, whose parts have TensorFlow's names in old files."""
    weight, bias = ("gamma", "beta") if part.has(f"{source}.gamma") else ("weight", "bias")
    part.copy(f"{source}.{weight}", f"{name}.weight", d.hidden)
    part.copy(f"{source}.{bias}", f"{name}.bias", d.hidden)
