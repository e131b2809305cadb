"""Tiny random checkpoints in Hugging Face layout.  Enters: a shape; leaves: a folder `halfbyte convert` takes.

Needs numpy, ml_dtypes, sentencepiece and tokenizers only.  Everything is seeded: the same `Tiny` gives the same bytes
of weights.  The tokenizers are real ones, trained here on a little text.

    folder = tiny.build(tmp_path / "m", tiny.Tiny(kv_heads=2, tied=True, dtype="bf16"))
    weights = tiny.weights(spec)     # the same tensors as float32, by their Hugging Face names, as the file rounds them
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import random
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DTYPES: dict[str, Any] = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
_CONFIG_NAME = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# The splitting rules of published tokenizer.json files, written out here on their own so that a wrong entry in the
# converter's table shows.  name -> (regex of the Split step, or None for ByteLevel's own rule; ignore_merges)
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
BPE_FAMILIES: dict[str, tuple[str | None, bool]] = {
    "llama-bpe": (
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        True,
    ),
    "qwen2": (
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        False,
    ),
    "gpt-2": (None, False),
}


@dataclasses.dataclass(frozen=True)
class Tiny:
    """One tiny checkpoint.  Sizes count elements; `vocab` None: as many embedding rows as the tokenizer has ids."""

    architecture: str = "LlamaForCausalLM"
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int | None = None  # None: hidden // heads, and no head_dim in config.json
    layers: int = 2
    ffn: int = 96
    vocab: int | None = None
    context: int = 256
    tied: bool = False
    attention_bias: bool = False
    rms_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: str | None = None  # None, "linear" or "llama3"
    rope_parameters: bool = False  # True: the newer config layout (rope_parameters, dtype)
    dtype: str = "f32"
    shards: int = 1
    tokenizer: str = "spm"  # "spm", or one of BPE_FAMILIES
    chat_template: str | None = CHATML
    seed: int = 1

    @property
    def dim(self) -> int:
        """Elements of one attention head."""
        return self.head_dim if self.head_dim is not None else self.hidden // self.heads

    @property
    def rows(self) -> int:
        """Rows of the embedding."""
        return self.vocab if self.vocab is not None else tokenizer_size(self.tokenizer)


def build(folder: Path, spec: Tiny | None = None, **fields: Any) -> Path:
    """Write the checkpoint `spec` (or Tiny(**fields)) into `folder`, made when missing, and return the folder."""
    spec = spec if spec is not None else Tiny(**fields)
    folder.mkdir(parents=True, exist_ok=True)
    described = config(spec)
    write_json(folder / "config.json", described)
    special = {key: described[key] for key in ("bos_token_id", "eos_token_id")}
    write_json(folder / "generation_config.json", special | {"temperature": 0.7, "top_p": 0.9})
    write_tokenizer(folder, spec)
    write_weights(folder, spec, weights(spec))
    return folder


def config(spec: Tiny) -> dict[str, Any]:
    """Return config.json as transformers writes it for this shape."""
    bos, eos = (1, 2) if spec.tokenizer == "spm" else bpe_special_ids(spec.tokenizer)[:2]
    found: dict[str, Any] = {
        "architectures": [spec.architecture],
        "model_type": spec.architecture.removesuffix("ForCausalLM").lower(),
        "hidden_act": "silu",
        "hidden_size": spec.hidden,
        "intermediate_size": spec.ffn,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "vocab_size": spec.rows,
        "max_position_embeddings": spec.context,
        "rms_norm_eps": spec.rms_eps,
        "tie_word_embeddings": spec.tied,
        "bos_token_id": bos,
        "eos_token_id": eos,
    }
    if spec.head_dim is not None:
        found["head_dim"] = spec.head_dim
    if spec.architecture == "LlamaForCausalLM":
        found |= {"attention_bias": spec.attention_bias, "mlp_bias": False}
    if spec.architecture == "MistralForCausalLM":
        found["sliding_window"] = None
    scaling = _rope_scaling(spec)
    if spec.rope_parameters:
        found["rope_parameters"] = {"rope_type": "default", **(scaling or {}), "rope_theta": spec.rope_theta}
        found["dtype"] = _CONFIG_NAME[spec.dtype]
    else:
        found |= {"rope_theta": spec.rope_theta, "rope_scaling": scaling, "torch_dtype": _CONFIG_NAME[spec.dtype]}
    return found


def _rope_scaling(spec: Tiny) -> dict[str, Any] | None:
    if spec.rope_scaling is None:
        return None
    if spec.rope_scaling == "linear":
        return {"rope_type": "linear", "factor": 2.5}
    return {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }


def shapes(spec: Tiny) -> dict[str, tuple[int, ...]]:
    """Return the tensors of the checkpoint: Hugging Face name -> shape, rows first."""
    q, kv = spec.heads * spec.dim, spec.kv_heads * spec.dim
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (spec.rows, spec.hidden)}
    for i in range(spec.layers):
        layer = f"model.layers.{i}."
        found[layer + "input_layernorm.weight"] = (spec.hidden,)
        for name, width in (("q", q), ("k", kv), ("v", kv)):
            found[f"{layer}self_attn.{name}_proj.weight"] = (width, spec.hidden)
            if spec.attention_bias:
                found[f"{layer}self_attn.{name}_proj.bias"] = (width,)
        found[layer + "self_attn.o_proj.weight"] = (spec.hidden, q)
        if spec.attention_bias:
            found[layer + "self_attn.o_proj.bias"] = (spec.hidden,)
        found[layer + "post_attention_layernorm.weight"] = (spec.hidden,)
        found[layer + "mlp.gate_proj.weight"] = (spec.ffn, spec.hidden)
        found[layer + "mlp.up_proj.weight"] = (spec.ffn, spec.hidden)
        found[layer + "mlp.down_proj.weight"] = (spec.hidden, spec.ffn)
    found["model.norm.weight"] = (spec.hidden,)
    if not spec.tied:
        found["lm_head.weight"] = (spec.rows, spec.hidden)
    return found


def weights(spec: Tiny) -> dict[str, np.ndarray]:
    """Return every tensor as float32 holding exactly what a file of `spec.dtype` holds.

    Matrices are N(0, 1 / columns) and the embedding N(0, 0.5), so that the logits of a random model differ clearly.
    """
    rng = np.random.default_rng(spec.seed)
    found = {}
    for name, shape in shapes(spec).items():
        noise = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("norm.weight"):
            value = 1 + 0.1 * noise
        elif name.endswith(".bias"):
            value = 0.1 * noise
        elif name.startswith(("model.embed", "lm_head")):
            value = 0.5 * noise
        else:
            value = noise / np.float32(shape[1] ** 0.5)
        found[name] = value.astype(DTYPES[spec.dtype]).astype(np.float32)
    return found


def write_weights(folder: Path, spec: Tiny, tensors: dict[str, np.ndarray]) -> None:
    """Write float32 `tensors` as safetensors of `spec.dtype`: one file, or `spec.shards` files with their index."""
    names = list(tensors)
    if spec.shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, spec.dtype)
        return
    weight_map: dict[str, str] = {}
    for shard in range(spec.shards):
        part = f"model-{shard + 1:05d}-of-{spec.shards:05d}.safetensors"
        held = names[shard :: spec.shards]
        write_safetensors(folder / part, {name: tensors[name] for name in held}, spec.dtype)
        weight_map |= dict.fromkeys(held, part)
    size = sum(t.size for t in tensors.values()) * np.dtype(DTYPES[spec.dtype]).itemsize
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def write_safetensors(file: Path, tensors: dict[str, np.ndarray], dtype: str) -> None:
    """Write float32 arrays as one safetensors file whose tensors are all `dtype` ("f32", "f16" or "bf16")."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs, end = [], 0
    for name, value in tensors.items():
        blob = value.astype(DTYPES[dtype]).tobytes()
        header[name] = {"dtype": dtype.upper(), "shape": list(value.shape), "data_offsets": [end, end + len(blob)]}
        blobs.append(blob)
        end += len(blob)
    described = json.dumps(header).encode()
    described += b" " * (-len(described) % 8)
    file.write_bytes(len(described).to_bytes(8, "little") + described + b"".join(blobs))


def build_sparse(folder: Path, rows: int, columns: int) -> Path:
    """Write a bf16 checkpoint whose embedding has `rows` x `columns` zeros, which take no room on the disk."""
    spec = Tiny(vocab=rows, hidden=columns, heads=columns // 64, kv_heads=1, layers=1, ffn=64, dtype="bf16")
    folder.mkdir()
    write_json(folder / "config.json", config(spec) | {"tie_word_embeddings": True})
    write_tokenizer(folder, spec)
    header, end = {}, 0
    for name, shape in shapes(dataclasses.replace(spec, tied=True)).items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)
    return folder


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------- tokenizers


@functools.cache
def text(lines: int = 400) -> tuple[str, ...]:
    """Return seeded lines of made-up words with punctuation, digits and a few accents, to train tokenizers on."""
    rng = random.Random(7)
    syllables = ["ba", "ne", "ti", "lo", "mu", "ra", "se", "ki", "do", "vu", "th", "an", "er", "in", "on", "é"]
    words = ["".join(rng.choice(syllables) for _ in range(rng.randint(1, 3))) for _ in range(120)]
    words += ["Once", "upon", "a", "time", "there", "was", "the", "and", "she", "said"]
    made = []
    for _ in range(lines):
        line = " ".join(rng.choice(words) for _ in range(rng.randint(4, 12)))
        made.append(f"{line}{rng.choice(['.', '!', '?', ', 42.', ' 1999;'])}")
    return tuple(made)


@functools.cache
def spm_model(size: int = 420) -> bytes:
    """Return a SentencePiece BPE model as Llama's: byte fallback, <unk> <s> </s>, a space in front, no other rules."""
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text()),
        model_writer=out,
        vocab_size=size,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return out.getvalue()


_BPE_SPECIALS = ("<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>")


@functools.cache
def bpe_json(family: str = "llama-bpe", size: int = 400) -> str:
    """Return a byte-level BPE tokenizer.json of one of BPE_FAMILIES: `size` trained ids, then four special ones."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    regex, ignore_merges = BPE_FAMILIES[family]
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if regex is None:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(regex), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    if family == "qwen2":
        made.normalizer = tokenizers.normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(text(), trainer)
    made.add_special_tokens(list(_BPE_SPECIALS))
    if family == "llama-bpe":
        bos = _BPE_SPECIALS[0]
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, made.token_to_id(bos))]
        )
    return made.to_str()


def bpe_special_ids(family: str) -> tuple[int, ...]:
    """Return the ids of <|begin_of_text|> <|end_of_text|> <|im_start|> <|im_end|>."""
    ids = {t["content"]: t["id"] for t in json.loads(bpe_json(family))["added_tokens"]}
    return tuple(ids[token] for token in _BPE_SPECIALS)


@functools.cache
def tokenizer_size(kind: str) -> int:
    """Return how many ids the tokenizer has, special ones counted."""
    if kind == "spm":
        import sentencepiece

        return sentencepiece.SentencePieceProcessor(model_proto=spm_model()).vocab_size()
    return max(bpe_special_ids(kind)) + 1


def write_tokenizer(folder: Path, spec: Tiny) -> None:
    """Write the tokenizer's files: tokenizer.model or tokenizer.json, and tokenizer_config.json."""
    if spec.tokenizer == "spm":
        (folder / "tokenizer.model").write_bytes(spm_model())
        described: dict[str, Any] = {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "add_bos_token": True,
            "add_eos_token": False,
        }
    else:
        (folder / "tokenizer.json").write_text(bpe_json(spec.tokenizer), encoding="utf-8")
        described = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": _BPE_SPECIALS[0],
            "eos_token": _BPE_SPECIALS[1],
        }
    if spec.chat_template is not None:
        described["chat_template"] = spec.chat_template
    write_json(folder / "tokenizer_config.json", described)
