"""Keys that published config.json files have besides those of transformers' own: accepted where they change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import architectures
import pytest
from conversions import refused

from halfbyte.convert import archs
from halfbyte.convert.checkpoint import Checkpoint
from halfbyte.errors import UnsupportedError

# By rows of tests/architectures.py.
KEYS: dict[str, dict[str, Any]] = {
    "llama": {
        "pretraining_tp": 1, "is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"dtype": 4},
        "max_sequence_length": 2048, "torch_dtype": "bfloat16", "auto_map": {"AutoModel": "x.y"}, "_name_or_path": "a",
        "activation": "swiglu", "unsloth_fixed": True, "sliding_window": None, "output_router_logits": False,
        "task_specific_params": {"a": 1}, "eos_token_id": [2, 3], "temperature": 0.5, "embd_pdrop": 0.1,
    },
    "mistral": {"rope_scaling": None, "classifier_dropout": None, "use_flash_attn": True},
    "qwen2": {"use_mrope": None, "max_window_layers": 21, "sliding_window": 32768, "attention_dropout": 0.0},
    "qwen3": {"max_window_layers": 36, "use_sliding_window": False},
    "mixtral": {"router_jitter_noise": 0.0, "router_aux_loss_coef": 0.02, "output_router_logits": False},
    "qwen2moe": {"max_window_layers": 21, "sliding_window": 32768, "mlp_only_layers": [], "decoder_sparse_step": 1},
    "qwen3moe": {
        "max_window_layers": 48, "sliding_window": None, "rope_scaling": None, "mlp_only_layers": [],
        "router_aux_loss_coef": 0.001, "output_router_logits": False,
    },
    "gpt-oss": {"experts_per_token": 2, "initial_context_length": 64, "router_aux_loss_coef": 0.9},
    "deepseek2": {
        "aux_loss_alpha": 0.001, "ep_size": 1, "moe_layer_freq": 1, "pretraining_tp": 1, "scoring_func": "softmax",
        "seq_aux": True, "topk_method": "greedy", "norm_topk_prob": False, "auto_map": {"AutoModel": "x.y"},
    },
    "smollm3": {"pretraining_tp": 2, "max_window_layers": 28, "use_sliding_window": False},
    "cohere": {"model_max_length": 128, "use_qk_norm": False, "pretraining_tp": 1},
    "cohere2": {
        "cache_implementation": "hybrid", "layer_switch": 4, "order_of_interleaved_layers": "local_attn_first",
        "position_embedding_type": "rope_gptj", "rotary_pct": 1.0, "use_embedding_sharing": True,
        "use_gated_activation": True, "use_parallel_block": True, "use_parallel_embedding": False,
        "_sliding_window_pattern": 4, "max_sequence_length": 8192,
    },
    "stablelm": {"rotary_scaling_factor": 1.0, "norm_eps": 1e-5, "attention_dropout": 0.0},
    "gpt2": {"n_ctx": 256, "task_specific_params": {"text-generation": {"max_length": 50}}, "model_type": "gpt2"},
    "gptneox": {"rotary_emb_base": 10000, "rotary_pct": 0.25, "rope_parameters": None, "classifier_dropout": 0.1},
    "falcon": {"apply_residual_connection_post_layernorm": False, "auto_map": {"AutoConfig": "x.y"}},
    "falcon-one-norm": {"ff_factor": 2.5},
    "starcoder2": {
        "mlp_type": "default", "norm_type": "layer_norm", "embedding_dropout": 0.1, "activation_function": "gelu",
        "attention_softmax_in_fp32": True, "scale_attention_softmax_in_fp32": True, "scale_attn_weights": True,
        "layer_norm_epsilon": 1e-5,
    },
    "bert": {
        "directionality": "bidi", "pooler_fc_size": 768, "pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3,
        "pooler_size_per_head": 128, "pooler_type": "first_token_transform", "gradient_checkpointing": False,
    },
    "modern-bert": {
        "classifier_pooling": "mean", "decoder_bias": True, "deterministic_flash_attn": False, "mlp_bias": False,
        "norm_bias": False, "norm_eps": 1e-5, "position_embedding_type": "absolute", "sparse_prediction": False,
        "repad_logits_with_grad": False, "sparse_pred_ignore_index": -100, "initializer_cutoff_factor": 2.0,
    },
    "moonlight": {"moe_layer_freq": 1, "pretraining_tp": 1, "aux_loss_alpha": 0.001, "seq_aux": True},
    "deepseek3-groups": {"num_nextn_predict_layers": 1, "ep_size": 1, "moe_layer_freq": 1, "seq_aux": True},
    "qwen3-embedding-causal": {"max_window_layers": 28, "sliding_window": None, "use_sliding_window": False},
    "mpt": {
        "init_config": {"name": "kaiming_normal_", "verbose": 0}, "tokenizer_name": "a/b", "verbose": 0,
        "learned_pos_emb": True, "embedding_fraction": 1.0, "init_device": "cpu", "attn_config": {
            "alibi": True, "alibi_bias_max": 8, "attn_impl": "triton", "attn_pdrop": 0, "clip_qkv": None,
            "attn_type": "multihead_attention", "attn_uses_sequence_id": False, "prefix_lm": False, "qk_ln": False,
            "softmax_scale": None,
        },
    },
    "bloom": {
        "hidden_size": None, "n_embed": 64, "n_head": None, "num_attention_heads": 4, "n_inner": None,
        "offset_alibi": 100, "attention_softmax_in_fp32": True, "masked_softmax_fusion": True, "skip_bias_add": True,
        "skip_bias_add_qkv": False, "bias_dropout_fusion": True, "unk_token_id": 0, "seq_length": 2048,
    },
}  # fmt: skip

# One value that makes another model of each.
OTHERS: dict[str, dict[str, Any]] = {
    "llama": {"attention_multiplier": 0.5},
    "mistral": {"hidden_act": "gelu"},
    "mixtral": {"hidden_act": "gelu"},
    "qwen2moe": {"use_sliding_window": True},
    "qwen3moe": {"use_sliding_window": True},
    "deepseek2": {"topk_method": "noaux_tc"},
    "deepseek3": {"topk_method": "greedy"},
    "deepseek2-lite": {"attention_bias": True},
    "smollm3": {"no_rope_layers": [1, 1, 1, 1, 1]},
    "granite": {"mlp_bias": True},
    "olmo2": {"layer_types": ["full_attention", "sliding_attention"]},
    "cohere": {"attention_bias": True},
    "cohere2": {"layer_types": ["full_attention"] * 5},
    "stablelm": {"hidden_act": "gelu"},
    "falcon": {"ff_factor": 3},
    "bert": {"directionality": "left"},
    "starcoder2": {"scale_attn_weights": False},
}


@pytest.mark.parametrize("name", KEYS)
def test_harmless_keys_are_accepted(tmp_path: Path, name: str) -> None:
    row = architectures.BY_NAME[name]
    with Checkpoint(architectures.build(tmp_path / "m", row, **KEYS[name])) as checkpoint:
        found = archs.plan_checkpoint(checkpoint)
    with Checkpoint(architectures.build(tmp_path / "plain", row)) as checkpoint:
        plain = archs.plan_checkpoint(checkpoint)
    assert [tensor.name for tensor in found.tensors] == [tensor.name for tensor in plain.tensors]
    values, key = {entry.key: entry.value for entry in plain.metadata}, f"{found.architecture}.context_length"
    assert {entry.key: entry.value for entry in found.metadata} | {key: values[key]} == values


@pytest.mark.parametrize("name", OTHERS)
def test_another_computation_is_refused_by_its_key(tmp_path: Path, name: str) -> None:
    folder = architectures.build(tmp_path / "m", architectures.BY_NAME[name], **OTHERS[name])
    (key,) = OTHERS[name]
    refused(folder, UnsupportedError, f"config.json {key}", "supported:")


def test_wrappers_are_refused_by_name(tmp_path: Path) -> None:
    row = architectures.BY_NAME["llama"]
    names = {"architectures": ["LlavaForConditionalGeneration"], "text_config": {}}
    refused(architectures.build(tmp_path / "a", row, **names), UnsupportedError, "'LlavaForConditionalGeneration'")
    folder = architectures.build(tmp_path / "b", row, vision_config={"depth": 2})
    refused(folder, UnsupportedError, "config.json vision_config")
