"""LlamaForCausalLM: Llama 1 to 3, and models of the same computation.  Enters: an open checkpoint; leaves: its plan.

Names of keys and tensors, the order of the rows of Q and K, and the tensor of rope factors are those of llama.cpp's
converter (gguf-py constants, conversion/llama.py), so that llama.cpp loads the file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from ...errors import ModelFileError, UnsupportedError, printable
from ..checkpoint import Checkpoint
from ..jsonfile import Settings
from ..plan import Entry, Plan, PlannedTensor
from ..rope import Rope, read_rope

ARCHITECTURE = "LlamaForCausalLM"

MAX_SIZE = 1 << 20
MAX_LAYERS = 4096
MAX_VOCAB = 1 << 22


@dataclass(frozen=True)
class Sizes:
    """config.json as numbers of elements; `ffn` is intermediate_size, `vocab` the rows of the embedding."""

    hidden: int
    layers: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    rms_eps: float
    rope: Rope
    tied: bool
    attention_bias: bool


def plan(checkpoint: Checkpoint) -> Plan:
    """Return the plan of a Llama checkpoint.

    Raises ModelFileError when config.json and the tensors disagree, UnsupportedError for a setting that halfbyte does
    not compute.
    """
    refuse_settings(checkpoint.config, {"sliding_window": None, "mlp_bias": False})
    return plan_llama(checkpoint, read_sizes(checkpoint.config))


def refuse_settings(config: Settings, allowed: dict[str, object]) -> None:
    """Raise UnsupportedError when config.json asks for a computation that is not Llama's, by the key's name.

    allowed   further keys, with the one value (besides absence) that changes nothing
    """
    harmless = {"quantization_config": None, "partial_rotary_factor": 1.0, "hidden_act": "silu", "is_causal": True}
    for key, value in {**harmless, **allowed}.items():
        found = config.get(key, value)
        if found != value:
            raise UnsupportedError(f"config.json {key}", json.dumps(found), (json.dumps(value),), config.path)
    if any(kind != "full_attention" for kind in config.items("layer_types", [])):
        raise UnsupportedError("config.json layer_types", config.get("layer_types"), ("full_attention",), config.path)


def read_sizes(config: Settings) -> Sizes:
    """Return the sizes in config.json, each checked on its own and against the others."""
    hidden = config.integer("hidden_size", 1, MAX_SIZE)
    heads = config.integer("num_attention_heads", 1, MAX_SIZE)
    kv_heads = config.integer("num_key_value_heads", 1, MAX_SIZE, default=heads)
    if heads % kv_heads:
        config.fail("num_key_value_heads", f"is {kv_heads}, which does not divide num_attention_heads {heads}")
    if not config.has("head_dim") and hidden % heads:
        config.fail("num_attention_heads", f"is {heads}, which does not divide hidden_size {hidden}")
    head_dim = config.integer("head_dim", 2, MAX_SIZE // heads, default=hidden // heads)
    if head_dim % 2:
        config.fail("head_dim", f"is {head_dim}; rotary positions need an even number")
    return Sizes(
        hidden=hidden,
        layers=config.integer("num_hidden_layers", 1, MAX_LAYERS),
        ffn=config.integer("intermediate_size", 1, MAX_SIZE),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=config.integer("vocab_size", 1, MAX_VOCAB),
        context=config.integer("max_position_embeddings", 1, 1 << 31),
        rms_eps=config.number("rms_norm_eps", 0.0, 1.0, default=1e-6),
        rope=read_rope(config),
        tied=config.boolean("tie_word_embeddings", default=False),
        attention_bias=config.boolean("attention_bias", default=False),
    )


def plan_llama(checkpoint: Checkpoint, sizes: Sizes) -> Plan:
    """Return the plan of a checkpoint that computes as Llama does, with the given sizes."""
    tensors = []
    factors = sizes.rope.frequency_factors(sizes.head_dim)
    if factors is not None:
        tensors.append(PlannedTensor("rope_freqs.weight", factors.shape, values=factors))
    expected = _expected(sizes)
    for source, (planned, meaning) in expected.items():
        _check_shape(checkpoint, source, planned.shape, meaning)
        tensors.append(planned)
    _check_rest(checkpoint, sizes, set(expected))
    return Plan("llama", _metadata(checkpoint.config, sizes), tuple(tensors), sizes.vocab)


def _metadata(config: Settings, sizes: Sizes) -> tuple[Entry, ...]:
    found = [
        Entry("llama.vocab_size", "uint32", sizes.vocab),
        Entry("llama.context_length", "uint32", sizes.context),
        Entry("llama.embedding_length", "uint32", sizes.hidden),
        Entry("llama.block_count", "uint32", sizes.layers),
        Entry("llama.feed_forward_length", "uint32", sizes.ffn),
        Entry("llama.attention.head_count", "uint32", sizes.heads),
        Entry("llama.attention.head_count_kv", "uint32", sizes.kv_heads),
        Entry("llama.attention.layer_norm_rms_epsilon", "float32", sizes.rms_eps),
        Entry("llama.rope.dimension_count", "uint32", sizes.head_dim),
        Entry("llama.rope.freq_base", "float32", sizes.rope.theta),
    ]
    if config.has("head_dim"):
        found.append(Entry("llama.attention.key_length", "uint32", sizes.head_dim))
        found.append(Entry("llama.attention.value_length", "uint32", sizes.head_dim))
    if sizes.rope.type == "linear":
        found.append(Entry("llama.rope.scaling.type", "string", "linear"))
        found.append(Entry("llama.rope.scaling.factor", "float32", sizes.rope.factor))
    return tuple(found)


def _expected(sizes: Sizes) -> dict[str, tuple[PlannedTensor, str]]:
    """Return Hugging Face name -> the tensor to write, and its shape in the words of config.json."""
    q, kv, hidden = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim, sizes.hidden
    q_words, kv_words = "num_attention_heads x head_dim", "num_key_value_heads x head_dim"
    q_order, kv_order = rotary_order(sizes.heads, sizes.head_dim), rotary_order(sizes.kv_heads, sizes.head_dim)
    found: dict[str, tuple[PlannedTensor, str]] = {}

    def add(source: str, name: str, shape: tuple[int, ...], meaning: str, order: np.ndarray | None = None) -> None:
        found[source] = (PlannedTensor(name, shape, source, order), meaning)

    add("model.embed_tokens.weight", "token_embd.weight", (sizes.vocab, hidden), "vocab_size, hidden_size")
    for i in range(sizes.layers):
        layer, block = f"model.layers.{i}", f"blk.{i}"
        add(f"{layer}.input_layernorm.weight", f"{block}.attn_norm.weight", (hidden,), "hidden_size")
        for letter, rows, words, order in (
            ("q", q, q_words, q_order),
            ("k", kv, kv_words, kv_order),
            ("v", kv, kv_words, None),
        ):
            source, name = f"{layer}.self_attn.{letter}_proj", f"{block}.attn_{letter}"
            add(f"{source}.weight", f"{name}.weight", (rows, hidden), f"{words}, hidden_size", order)
            if sizes.attention_bias:
                add(f"{source}.bias", f"{name}.bias", (rows,), words, order)
        source, name = f"{layer}.self_attn.o_proj", f"{block}.attn_output"
        add(f"{source}.weight", f"{name}.weight", (hidden, q), f"hidden_size, {q_words}")
        if sizes.attention_bias:
            add(f"{source}.bias", f"{name}.bias", (hidden,), "hidden_size")
        add(f"{layer}.post_attention_layernorm.weight", f"{block}.ffn_norm.weight", (hidden,), "hidden_size")
        up = (sizes.ffn, hidden), "intermediate_size, hidden_size"
        add(f"{layer}.mlp.gate_proj.weight", f"{block}.ffn_gate.weight", *up)
        add(f"{layer}.mlp.up_proj.weight", f"{block}.ffn_up.weight", *up)
        down = (hidden, sizes.ffn), "hidden_size, intermediate_size"
        add(f"{layer}.mlp.down_proj.weight", f"{block}.ffn_down.weight", *down)
    add("model.norm.weight", "output_norm.weight", (hidden,), "hidden_size")
    if not sizes.tied:
        add("lm_head.weight", "output.weight", (sizes.vocab, hidden), "vocab_size, hidden_size")
    return found


def rotary_order(heads: int, head_dim: int) -> np.ndarray:
    """Return the order of Q's or K's rows in GGUF, int64 [heads * head_dim]: row i there is row order[i] here.

    Hugging Face turns the pair (j, j + head_dim / 2) of a head by one angle, GGUF's llama the pair (2j, 2j + 1).
    """
    rows = np.arange(heads * head_dim).reshape(heads, 2, head_dim // 2)
    return rows.transpose(0, 2, 1).reshape(-1)


def _check_shape(checkpoint: Checkpoint, source: str, shape: tuple[int, ...], meaning: str) -> None:
    config = checkpoint.config.path.name
    stored = checkpoint.tensors.get(source)
    if stored is None:
        raise ModelFileError(
            checkpoint.folder, f"is missing; {config} asks for {list(shape)} ({meaning})", place=f"tensor {source}"
        )
    if stored.shape != shape:
        message = f"has the shape {list(stored.shape)}, but {config} says {list(shape)} ({meaning})"
        raise ModelFileError(checkpoint.file_of(source), message, place=f"tensor {source}")


def _check_rest(checkpoint: Checkpoint, sizes: Sizes, expected: set[str]) -> None:
    """Raise ModelFileError when there is a tensor that a Llama of these sizes would not use."""
    for name in checkpoint.tensors:
        if name in expected or name.endswith(".rotary_emb.inv_freq"):  # old files store what config.json says
            continue
        if name == "lm_head.weight" and sizes.tied:
            _check_tied(checkpoint)
            continue
        said = f"num_hidden_layers {sizes.layers}, attention_bias {str(sizes.attention_bias).lower()}"
        raise ModelFileError(
            checkpoint.file_of(name),
            f"has no place in the model that {checkpoint.config.path.name} describes ({said})",
            place=f"tensor {printable(name)}",
        )


def _check_tied(checkpoint: Checkpoint) -> None:
    """Raise ModelFileError when config.json ties lm_head.weight to the embedding but the file holds another matrix."""
    embedding, head = (checkpoint.tensors[name] for name in ("model.embed_tokens.weight", "lm_head.weight"))
    same = embedding.shape == head.shape
    step = max(1, (1 << 20) // embedding.shape[1])
    for begin in range(0, embedding.shape[0], step):
        end = min(begin + step, embedding.shape[0])
        same = same and np.array_equal(
            checkpoint.rows(embedding.name, begin, end), checkpoint.rows(head.name, begin, end), equal_nan=True
        )
    if not same:
        message = f"differs from {embedding.name}, but {checkpoint.config.path.name} says tie_word_embeddings true"
        raise ModelFileError(checkpoint.file_of(head.name), message, place=f"tensor {head.name}")
