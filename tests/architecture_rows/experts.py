"""Mixtures of experts."""

from __future__ import annotations

from architecture_rows.row import YARN, Row

GPT_OSS = {
    "num_hidden_layers": 3, "head_dim": 32, "sliding_window": 8, "num_local_experts": 5, "num_experts_per_tok": 2,
}  # fmt: skip

QWEN_MOE = {"num_experts": 6, "num_experts_per_tok": 4, "moe_intermediate_size": 32}
DEEPSEEK2 = {
    "num_hidden_layers": 2, "num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 32, "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16, "v_head_dim": 32, "n_routed_experts": 6, "num_experts_per_tok": 2, "n_shared_experts": 2,
    "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32, "first_k_dense_replace": 1,
    "routed_scaling_factor": 0.4,
}  # fmt: skip
DEEPSEEK2_GROUPS = DEEPSEEK2 | {
    "q_lora_rank": 48, "n_routed_experts": 12, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2,
}  # fmt: skip
DEEPSEEK2_YARN = {
    "type": "yarn", "factor": 40.0, "original_max_position_embeddings": 64, "mscale": 0.707, "mscale_all_dim": 0.707,
    "beta_fast": 32, "beta_slow": 1,
}  # fmt: skip

ROWS = (
    Row(
        "mixtral", "MixtralForCausalLM", {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None},
    ),
    Row("gpt-oss", "GptOssForCausalLM", GPT_OSS | {"rope_parameters": YARN}, length=24),
    Row(
        "gpt-oss-not-truncated", "GptOssForCausalLM", GPT_OSS | {"rope_parameters": YARN | {"truncate": False}},
        {"experts_per_token": 2, "initial_context_length": 64}, no_peer="always truncates yarn's range",
    ),
    Row("qwen3moe", "Qwen3MoeForCausalLM", QWEN_MOE | {"head_dim": 32, "norm_topk_prob": True}),
    Row(
        "qwen3moe-mixed", "Qwen3MoeForCausalLM",
        QWEN_MOE | {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
        no_peer="wants experts in every layer, and normalises their weights",
    ),
    Row("qwen2moe", "Qwen2MoeForCausalLM", QWEN_MOE | {"shared_expert_intermediate_size": 80}),
    Row(
        "deepseek2", "DeepseekV2ForCausalLM", DEEPSEEK2 | {"q_lora_rank": 48},
        {
            "rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": DEEPSEEK2_YARN, "moe_layer_freq": 1,
            "scoring_func": "softmax", "aux_loss_alpha": 0.001,
        },
    ),
    Row(
        "deepseek3", "DeepseekV3ForCausalLM", DEEPSEEK2 | {"q_lora_rank": 48, "norm_topk_prob": True},
        {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "num_nextn_predict_layers": 0},
    ),
    Row(
        "deepseek2-groups", "DeepseekV2ForCausalLM",
        DEEPSEEK2_GROUPS | {"topk_method": "group_limited_greedy", "norm_topk_prob": False},
        no_peer="weighs a group by its two best experts, as DeepSeek 3 does",
    ),
    Row(
        "deepseek3-groups", "DeepseekV3ForCausalLM", DEEPSEEK2_GROUPS | {"norm_topk_prob": True},
        {"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    ),
    Row(
        "moonlight", "DeepseekV3ForCausalLM", DEEPSEEK2 | {"norm_topk_prob": True, "rms_norm_eps": 0.05},
        {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "num_nextn_predict_layers": 0, "ep_size": 1},
        no_peer="reads queries without a latent vector in models of 26, 27 and 48 layers only",
        no_file="reads none either",
    ),
    Row(
        "deepseek2-lite", "DeepseekV2ForCausalLM", DEEPSEEK2,
        no_peer="reads queries without a latent vector in models of 26, 27 and 48 layers only",
        no_file="reads none either",
    ),
)  # fmt: skip
