"""Llama and what varies it: norms, biases, multipliers, windows, every kind of rotary positions."""

from __future__ import annotations

from architecture_rows.row import DYNAMIC, NO_DYNAMIC, YARN, Row

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 500000.0,
}  # fmt: skip

LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64,
    "short_factor": [1 + 0.1 * i for i in range(8)], "long_factor": [1.5 + i for i in range(8)],
}  # fmt: skip

ROWS = (
    Row("llama", "LlamaForCausalLM"),
    Row("llama-bias-tied", "LlamaForCausalLM", {"attention_bias": True, "tie_word_embeddings": True, "head_dim": 32}),
    Row("llama-llama3", "LlamaForCausalLM", {"rope_parameters": LLAMA3}),
    Row(
        "llama-linear", "LlamaForCausalLM",
        edits={"rope_parameters": None, "rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.5}},
    ),
    Row("llama-yarn", "LlamaForCausalLM", {"rope_parameters": YARN}),
    Row("llama-yarn-attention", "LlamaForCausalLM", {"rope_parameters": YARN | {"attention_factor": 1.3}}),
    Row(
        "llama-yarn-betas", "LlamaForCausalLM", {"rope_parameters": YARN | {"beta_fast": 24.0, "beta_slow": 2.0}},
        no_peer="does not read yarn's betas of llama",
    ),
    Row(
        "llama-yarn-mscale", "LlamaForCausalLM",
        {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3, "factor": 8.0, "type": "yarn"}},
    ),
    Row(
        "llama-yarn-exact", "LlamaForCausalLM", {"rope_parameters": YARN | {"truncate": False}},
        no_peer="always truncates the range of mixed frequencies",
    ),
    Row(
        "llama-longrope-short", "LlamaForCausalLM",
        {"rope_parameters": LONGROPE | {"original_max_position_embeddings": 256}, "max_position_embeddings": 1024},
        context=256,
    ),
    Row("llama-longrope-long", "LlamaForCausalLM", {"rope_parameters": LONGROPE | {
        "original_max_position_embeddings": 16, "attention_factor": 1.2,
    }}),
    Row(
        "llama-dynamic", "LlamaForCausalLM",
        edits={"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    ),
    Row(
        "llama-dynamic-beyond", "LlamaForCausalLM", {"rope_parameters": DYNAMIC, "max_position_embeddings": 16},
        length=40, context=64, stepwise=True, no_peer=NO_DYNAMIC,
    ),
    Row("mistral", "MistralForCausalLM", {"head_dim": 8, "sliding_window": None}),
    Row("mistral-long-window", "MistralForCausalLM", {"sliding_window": 64}),
    Row("mistral-window", "MistralForCausalLM", {"sliding_window": 7}, no_peer="does not read the window of llama"),
    Row("qwen2", "Qwen2ForCausalLM"),
    Row(
        "qwen2-old-keys", "Qwen2ForCausalLM", {"tie_word_embeddings": True},
        edits={
            "rope_parameters": None, "layer_types": None, "rope_theta": 1e6, "sliding_window": 64,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        },
    ),
    Row(
        "qwen2-window", "Qwen2ForCausalLM",
        {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
        {"layer_types": None}, no_peer="does not read the windows of qwen2",
    ),
    Row("qwen3", "Qwen3ForCausalLM", {"head_dim": 32}),
    Row(
        "qwen3-bias", "Qwen3ForCausalLM", {"head_dim": 16, "attention_bias": True},
        no_peer="does not read attn_output.bias of qwen3",
    ),
    Row(
        "qwen3-window", "Qwen3ForCausalLM",
        {
            "num_hidden_layers": 3, "head_dim": 16, "use_sliding_window": True, "sliding_window": 7,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        no_peer="does not read the windows of qwen3",
    ),
    Row("smollm3", "SmolLM3ForCausalLM", {"num_hidden_layers": 5, "pad_token_id": 0}),
    Row("granite", "GraniteForCausalLM", {
        "attention_multiplier": 0.1, "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 1.7,
    }),
    Row("olmo2", "Olmo2ForCausalLM"),
    Row("cohere", "CohereForCausalLM", {"logit_scale": 0.6, "tie_word_embeddings": True}),
    Row(
        "cohere-norms", "CohereForCausalLM", {"logit_scale": 0.6, "use_qk_norm": True, "tie_word_embeddings": True},
        no_peer="reads norms of heads of models with at least 64 layers only",
    ),
    Row("cohere2", "Cohere2ForCausalLM", {
        "num_hidden_layers": 5, "logit_scale": 0.6, "tie_word_embeddings": True, "sliding_window": 7,
    }),
    Row("stablelm", "StableLmForCausalLM", {"partial_rotary_factor": 0.5}),
    Row(
        "stablelm-dynamic-beyond", "StableLmForCausalLM",
        {"partial_rotary_factor": 0.5, "rope_parameters": DYNAMIC, "max_position_embeddings": 16},
        length=40, context=64, stepwise=True, no_peer=NO_DYNAMIC,
    ),
    Row("stablelm-parallel", "StableLmForCausalLM", {
        "use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True, "tie_word_embeddings": True,
    }, {"rope_parameters": None, "rope_theta": 5000.0}),
)  # fmt: skip
