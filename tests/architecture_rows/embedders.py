"""Decoders whose checkpoints embed texts: rows of the last layer are compared, names have no first word, no head."""

from __future__ import annotations

from architecture_rows.row import Row

ROWS = (
    Row("llama-embedding", "LlamaModel"),
    Row("mistral-embedding", "MistralModel", {"sliding_window": None}),
    Row("qwen2-embedding", "Qwen2Model"),
    Row("qwen3-embedding", "Qwen3Model", {"head_dim": 32}),
    Row(
        "qwen3-embedding-causal", "Qwen3Model", {"head_dim": 32, "tie_word_embeddings": True},
        {"architectures": ["Qwen3ForCausalLM"]},
    ),
)  # fmt: skip
