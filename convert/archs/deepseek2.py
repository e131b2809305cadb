"""DeepseekV2ForCausalLM and DeepseekV3ForCausalLM (DeepSeek-AI 2024).  Enters: a checkpoint's `ModelMap`; leaves: it,
filled.

Keys and values of a latent vector are written as llama.cpp's converter does it: for each head the matrix that takes its
queries to the latent vector, and the one that takes that to its values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ..experts import map_experts, read_experts
from ..lazy import Lazy
from ..model_map import MAX_CONTEXT, MAX_LAYERS, Dim, ModelMap, Part
from ..rope import read_rope

CLASSES = {"DeepseekV2ForCausalLM": "deepseek2", "DeepseekV3ForCausalLM": "deepseek2"}
EPSILON = 1e-6  # of the norms of latent vectors, and of all others where config.json does not say


@dataclass(frozen=True)
class _Sizes:
    """Of attention: columns of the latent vectors (query: None without), and of a head what is not rotated, what is,
    and its values."""

    hidden: Dim
    heads: Dim
    query: Dim | None
    latent: Dim
    plain: Dim
    rotated: Dim
    value: Dim


def plan(m: ModelMap) -> None:
    """Map a DeepSeek 2 or 3 checkpoint."""
    m.only("hidden_act", "silu")
    for key in ("attention_bias", "mlp_bias"):
        m.only(key, False)
    m.only("moe_layer_freq", 1)
    m.unused("num_key_value_heads", "head_dim", "qk_head_dim", "ep_size")
    vocab = m.vocab()
    m.size("max_position_embeddings", "context_length", maximum=MAX_CONTEXT)
    s = _read_sizes(m)
    layers = m.size("num_hidden_layers", "block_count", maximum=MAX_LAYERS)
    ffn = m.size("intermediate_size", "feed_forward_length")
    if m.number("rms_norm_eps", "attention.layer_norm_rms_epsilon", 0.0, 1.0, EPSILON) != EPSILON:
        m.notes.append(f"latent vectors have an epsilon of {EPSILON}; llama.cpp takes rms_norm_eps for them too")
    _rope(m, s)
    experts, width = read_experts(m, "n_routed_experts"), m.size("moe_intermediate_size", "expert_feed_forward_length")
    shared = m.size("n_shared_experts", "expert_shared_count")
    m.number("routed_scaling_factor", "expert_weights_scale", 1e-6, 1e6, 1.0)
    biased = _scores(m, experts)
    if biased:
        _drop_predictors(m, layers)
    dense = m.size("first_k_dense_replace", "leading_dense_block_count", minimum=0, maximum=int(layers), default=0)

    m.copy("model.embed_tokens.weight", "token_embd.weight", vocab, s.hidden)
    for i, layer in enumerate(m.layers(layers, "model.layers.")):
        layer.norm("input_layernorm", "attn_norm", s.hidden)
        _attention(layer, s)
        layer.norm("post_attention_layernorm", "ffn_norm", s.hidden)
        if i < dense:
            _gated(layer, "mlp.", "", ffn, s.hidden)
            continue
        layer.linear("mlp.gate", "ffn_gate_inp", experts, s.hidden)
        if biased:
            layer.copy("mlp.gate.e_score_correction_bias", "exp_probs_b.bias", experts)
        names = ("gate_proj", "up_proj", "down_proj")
        map_experts(layer, "mlp.experts.{}.", names, experts, width, s.hidden)
        _gated(layer, "mlp.shared_experts.", "_shexp", shared * width, s.hidden)
    m.norm("model.norm", "output_norm", s.hidden)
    m.output("model.embed_tokens", "lm_head", vocab, s.hidden, tied=False)


def _scores(m: ModelMap, experts: int) -> bool:
    """Write how experts are weighed; return whether a bias has a say in who is taken."""
    if m.class_name == "DeepseekV2ForCausalLM":
        m.only("norm_topk_prob", False)
        m.only("scoring_func", "softmax")
        if m.only("topk_method", "greedy", "group_limited_greedy") == "greedy":
            m.unused("n_group", "topk_group")
        elif _groups(m, experts, 1, 1):
            m.notes.append("llama.cpp weighs a group by its two best experts, DeepSeek 2 by the best alone")
        normalised, function = False, 1
    else:
        _groups(m, experts, 8, 4)
        m.only("topk_method", "noaux_tc")
        m.only("scoring_func", "sigmoid")
        m.only("rope_interleave", True)
        m.unused("num_mtp_layers")
        normalised, function = m.config.boolean("norm_topk_prob", default=True), 2
    m.add("expert_weights_norm", "bool", normalised)
    m.add("expert_gating_func", "uint32", function)
    return function == 2


def _groups(m: ModelMap, experts: int, usual: int, usual_taken: int) -> bool:
    """Write how many groups of experts there are and how many are taken from; return whether there is more than one.

    usual, usual_taken: of a config.json that does not say
    """
    groups = m.config.integer("n_group", 1, experts, default=usual)
    taken = m.config.integer("topk_group", 1, groups, default=min(usual_taken, groups))
    if groups == 1:
        return False
    if experts % groups or experts == groups:
        m.config.fail("n_group", f"is {groups}; {experts} experts need groups of the same size, 2 or more")
    used = m.config.integer("num_experts_per_tok", 1, experts)
    if taken * (experts // groups) < used:
        m.config.fail("topk_group", f"is {taken}, of {experts // groups} experts each; a token needs {used}")
    m.add("expert_group_count", "uint32", groups)
    m.add("expert_group_used_count", "uint32", taken)
    return True


def _drop_predictors(m: ModelMap, layers: int) -> None:
    """Leave out the layers that predict tokens after the next: they have no part in its logits."""
    count = m.config.integer("num_nextn_predict_layers", 0, 8, default=0)
    for i in range(layers, layers + count):
        m.ignore(rf"model\.layers\.{i}\..*")
    if count:
        m.notes.append(f"{count} layers that predict tokens after the next are left out")


def _read_sizes(m: ModelMap) -> _Sizes:
    hidden, heads = m.size("hidden_size", "embedding_length"), m.size("num_attention_heads", "attention.head_count")
    if "q_lora_rank" not in m.config.values:
        m.config.fail("q_lora_rank", "is missing; a number is allowed, or null for queries without a latent vector")
    query = m.size("q_lora_rank", "attention.q_lora_rank") if m.config.has("q_lora_rank") else None
    latent = m.size("kv_lora_rank", "attention.kv_lora_rank")
    plain, rotated, value = (m.size(key) for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    if rotated % 2:
        m.config.fail("qk_rope_head_dim", f"is {rotated}; rotary positions need an even number")
    for name, size in (
        ("head_count_kv", 1), ("key_length", latent + rotated), ("value_length", latent),
        ("key_length_mla", plain + rotated), ("value_length_mla", value),
    ):  # fmt: skip
        m.add(f"attention.{name}", "uint32", int(size))
    return _Sizes(hidden, heads, query, latent, plain, rotated, value)


def _rope(m: ModelMap, s: _Sizes) -> None:
    """Write the rotation; what yarn does to the magnitude of all columns goes to the scores, as a key of its own."""
    found = m.config.section("rope_parameters" if m.config.has("rope_parameters") else "rope_scaling")
    whole = found.number("mscale_all_dim", 0.0, 1e3, default=0.0)
    rope = read_rope(m.config, s.rotated)
    if rope.kind == "yarn":
        if not whole or not math.isclose(rope.attention_factor, 1.0):
            m.refuse("rope_scaling mscale", found.get("mscale", None), whole)
        m.add("rope.scaling.yarn_log_multiplier", "float32", 0.1 * whole)
        rope = replace(rope, attention_factor=1 + 0.1 * math.log(rope.factor))
    m.rope(rope)


def _attention(layer: Part, s: _Sizes) -> None:
    if s.query is None:
        layer.linear("self_attn.q_proj", "attn_q", s.heads * (s.plain + s.rotated), s.hidden)
    else:
        layer.linear("self_attn.q_a_proj", "attn_q_a", s.query, s.hidden)
        layer.norm("self_attn.q_a_layernorm", "attn_q_a_norm", s.query)
        layer.linear("self_attn.q_b_proj", "attn_q_b", s.heads * (s.plain + s.rotated), s.query)
    layer.linear("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa", s.latent + s.rotated, s.hidden)
    layer.norm("self_attn.kv_a_layernorm", "attn_kv_a_norm", s.latent)
    both = layer.stored("self_attn.kv_b_proj.weight", s.heads * (s.plain + s.value), s.latent)
    rows = np.arange(s.heads * (s.plain + s.value)).reshape(s.heads, -1)

    def part(first: int, end: int) -> Lazy:
        return both.ordered(rows[:, first:end].reshape(-1)).reshaped(s.heads, end - first, s.latent)

    layer.put("attn_k_b.weight", part(0, s.plain).transposed())
    layer.put("attn_v_b.weight", part(s.plain, s.plain + s.value))
    layer.linear("self_attn.o_proj", "attn_output", s.hidden, s.heads * s.value)


def _gated(layer: Part, source: str, kind: str, ffn: int, hidden: int) -> None:
    """Map a feed-forward of gate, up and down; kind: behind the names of the tensors."""
    layer.linear(f"{source}gate_proj", f"ffn_gate{kind}", ffn, hidden)
    layer.linear(f"{source}up_proj", f"ffn_up{kind}", ffn, hidden)
    layer.linear(f"{source}down_proj", f"ffn_down{kind}", hidden, ffn)
