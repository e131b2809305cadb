"""GPT-2 and its relatives: fused and transposed matrices, learned positions, ALiBi, parallel blocks."""

from __future__ import annotations

from architecture_rows.row import Row

GELU = 2e-4  # as a tolerance: the two forms of GELU differ by more than 1e-3

# Keys of SIZES that an architecture has no use for.
NO_GROUPS = {"num_key_value_heads": None}
NO_FFN = {"intermediate_size": None, "num_key_value_heads": None}
ONE_ALIBI = "sdpa"  # transformers 5.23's plain attention of Falcon adds ALiBi to the scores twice
SIX_HEADS = {"hidden_size": 96, "num_attention_heads": 6}  # ALiBi's slopes of a number that is no power of two

ROWS = (
    Row("gpt2", "GPT2LMHeadModel", {"tie_word_embeddings": True}, NO_FFN, tolerance=GELU),
    Row("gpt2-untied", "GPT2LMHeadModel", {"n_inner": 160, "activation_function": "gelu"}, NO_FFN, tolerance=GELU),
    Row("gptneox", "GPTNeoXForCausalLM", edits=NO_GROUPS, tolerance=GELU),
    Row(
        "gptneox-sequential", "GPTNeoXForCausalLM",
        {"use_parallel_residual": False, "hidden_act": "gelu_fast", "tie_word_embeddings": True},
        NO_GROUPS | {"rope_parameters": None, "rotary_pct": 0.5, "rotary_emb_base": 50000}, tolerance=GELU,
    ),
    Row("falcon", "FalconForCausalLM", {"tie_word_embeddings": True}, NO_FFN, tolerance=GELU),
    Row(
        "falcon-grouped", "FalconForCausalLM", {"new_decoder_architecture": True, "num_kv_heads": 2}, NO_FFN,
        tolerance=GELU,
    ),
    Row(
        "falcon-one-norm", "FalconForCausalLM",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, "ffn_hidden_size": 160},
        NO_FFN, tolerance=GELU,
    ),
    Row(
        "falcon-all-heads", "FalconForCausalLM", {"multi_query": False},
        NO_FFN | {"architectures": ["RWForCausalLM"]}, tolerance=GELU,
    ),
    Row(
        "falcon-rw", "FalconForCausalLM",
        {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False, "tie_word_embeddings": True},
        NO_FFN, tolerance=GELU, length=40, attention=ONE_ALIBI,
        no_peer="has no ALiBi, no biases and no sequential layers of falcon",
    ),
    Row(
        "falcon-rw-parallel", "FalconForCausalLM", SIX_HEADS | {"alibi": True}, NO_FFN, tolerance=GELU,
        attention=ONE_ALIBI, no_peer="has no ALiBi of falcon",
    ),
    Row("starcoder2", "Starcoder2ForCausalLM", {"tie_word_embeddings": True}, tolerance=GELU),
    Row(
        "starcoder2-window", "Starcoder2ForCausalLM", {"sliding_window": 6, "use_bias": False}, tolerance=GELU,
        no_peer="ignores the window, and asks for biases",
    ),
    Row(
        "mpt", "MptForCausalLM", {"tie_word_embeddings": True, "max_seq_len": 64},
        NO_FFN | {"max_position_embeddings": None, "architectures": ["MPTForCausalLM"]}, tolerance=GELU,
    ),
    Row(
        "mpt-clipped", "MptForCausalLM", SIX_HEADS | {"attn_config": {"clip_qkv": 0.5}, "max_seq_len": 64},
        NO_FFN | {"max_position_embeddings": None}, tolerance=GELU,
    ),
    Row(
        "bloom", "BloomForCausalLM", {"tie_word_embeddings": True},
        NO_FFN | {"max_position_embeddings": None, "architectures": ["BloomModel"]}, tolerance=GELU,
    ),
    Row(
        "bloom-six-heads", "BloomForCausalLM", SIX_HEADS, NO_FFN | {"max_position_embeddings": None}, tolerance=GELU,
    ),
)  # fmt: skip
