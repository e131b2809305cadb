"""What encoders of texts share.  Enters: a `ModelMap`; leaves: it, with the GGUF keys that they all have."""

from __future__ import annotations

from .model_map import ModelMap

MAX_TOKEN_TYPES = 1 << 16


def map_encoder(m: ModelMap) -> None:
    """Write that rows see their whole sequence."""
    m.only("is_decoder", False)
    m.unused("tie_word_embeddings", "cls_token_id", "sep_token_id")
    m.add("attention.causal", "bool", False)


def map_token_types(m: ModelMap) -> int:
    """Return config.json's type_vocab_size, and write it under the key that llama.cpp reads it from."""
    count = m.size("type_vocab_size", maximum=MAX_TOKEN_TYPES)
    m.add_tokenizer("ggml.token_type_count", "uint32", int(count))
    return count
