"""Random Llama checkpoints of real shapes, for speed and memory.  Enters: a shape's name; leaves: a folder of bf16
safetensors shards, config.json and a byte-level BPE tokenizer.json of the full vocabulary.

    python -m halfbyte.bench.synthetic 1b FOLDER

Weights are N(0, 0.02) and norms near 1; one tensor is in memory at a time, and the same seed gives the same bytes.
"""

from __future__ import annotations

import itertools
import json
import string
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import HalfbyteError, UnsupportedError, UsageError
from ..quant.split_patterns import cl100k

_SHARD_BYTES = 1 << 30
_CHUNK = 1 << 22  # elements made at a time
_LLAMA3_SPLIT = cl100k(r"\p{N}{1,3}")
_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


@dataclass(frozen=True)
class Shape:
    """The sizes of one model, in elements; every shape here ties its output matrix to the embedding."""

    hidden: int
    layers: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    rope_theta: float


SHAPES = {
    "1b": Shape(2048, 16, 8192, 32, 8, 64, 128256, 131072, 500000.0),
    "135m": Shape(576, 30, 1536, 9, 3, 64, 49152, 8192, 100000.0),
}


def write_checkpoint(folder: str | Path, shape: str, seed: int = 1) -> Path:
    """Write the checkpoint `shape` (a key of SHAPES) into `folder` and return the folder.

    Raises UnsupportedError for an unknown shape and UsageError when the folder holds a checkpoint already.
    """
    if shape not in SHAPES:
        raise UnsupportedError("shape", shape, sorted(SHAPES))
    sizes, folder = SHAPES[shape], Path(folder)
    if (folder / "config.json").exists():
        raise UsageError(f"{folder} holds a checkpoint already")
    folder.mkdir(parents=True, exist_ok=True)
    _write_weights(folder, _tensors(sizes), seed)
    _write_json(folder / "tokenizer.json", _tokenizer(sizes.vocab))
    special = {"bos_token": _SPECIAL[0], "eos_token": _SPECIAL[-1], "tokenizer_class": "PreTrainedTokenizerFast"}
    _write_json(folder / "tokenizer_config.json", special)
    _write_json(folder / "config.json", _config(sizes))
    return folder


def _config(sizes: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.ffn,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "vocab_size": sizes.vocab,
        "max_position_embeddings": sizes.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": sizes.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": sizes.vocab - len(_SPECIAL),
        "eos_token_id": sizes.vocab - 1,
        "torch_dtype": "bfloat16",
    }


def _tensors(sizes: Shape) -> dict[str, tuple[int, ...]]:
    """Return Hugging Face name -> shape, rows first, in the order of the forward pass."""
    q, kv = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (sizes.vocab, sizes.hidden)}
    for i in range(sizes.layers):
        layer = f"model.layers.{i}."
        found[layer + "input_layernorm.weight"] = (sizes.hidden,)
        found[layer + "self_attn.q_proj.weight"] = (q, sizes.hidden)
        found[layer + "self_attn.k_proj.weight"] = (kv, sizes.hidden)
        found[layer + "self_attn.v_proj.weight"] = (kv, sizes.hidden)
        found[layer + "self_attn.o_proj.weight"] = (sizes.hidden, q)
        found[layer + "post_attention_layernorm.weight"] = (sizes.hidden,)
        found[layer + "mlp.gate_proj.weight"] = (sizes.ffn, sizes.hidden)
        found[layer + "mlp.up_proj.weight"] = (sizes.ffn, sizes.hidden)
        found[layer + "mlp.down_proj.weight"] = (sizes.hidden, sizes.ffn)
    found["model.norm.weight"] = (sizes.hidden,)
    return found


def _write_weights(folder: Path, tensors: dict[str, tuple[int, ...]], seed: int) -> None:
    """Write the tensors as bf16 in shards of about 1 GiB with their index, made chunk by chunk."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, shape in tensors.items():
        size = 2 * int(np.prod(shape))
        if shards[-1] and held + size > _SHARD_BYTES:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    rng = np.random.default_rng(seed)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        part = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(names, part)
        with (folder / part).open("wb") as out:
            _write_header(out, {name: tensors[name] for name in names})
            for name in names:
                for chunk in _values(rng, name, int(np.prod(tensors[name]))):
                    out.write(chunk.data)
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _write_header(out: BinaryIO, tensors: dict[str, tuple[int, ...]]) -> None:
    header, end = {}, 0
    for name, shape in tensors.items():
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    described = json.dumps(header).encode()
    described += b" " * (-len(described) % 8)
    out.write(len(described).to_bytes(8, "little") + described)


def _values(rng: np.random.Generator, name: str, count: int) -> Iterator[np.ndarray]:
    """Yield `count` values of the tensor as bf16 bits (uint16), a chunk at a time."""
    mean, spread = (1.0, 0.05) if name.endswith("norm.weight") else (0.0, 0.02)
    for begin in range(0, count, _CHUNK):
        values = rng.standard_normal(min(_CHUNK, count - begin), dtype=np.float32)
        values *= np.float32(spread)
        values += np.float32(mean)
        bits = values.view(np.uint32)
        bits += 0x8000  # to the nearest bf16; a tie goes up, which random weights do not mind
        yield (bits >> 16).astype(np.uint16)


def _tokenizer(size: int) -> dict[str, Any]:
    """Return a byte-level BPE tokenizer.json with exactly `size` ids: bytes, made-up merges, the special tokens.

    Each merge adds one letter to a token that is there already, shortest first, so the table is as large and as deep
    as a trained one.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = sorted(ByteLevel.alphabet())
    merges: list[list[str]] = []
    wanted = size - len(_SPECIAL) - len(tokens)
    shorter = ["Ġ", *string.ascii_lowercase]
    while len(merges) < wanted:
        pairs = list(itertools.islice(itertools.product(shorter, string.ascii_lowercase), wanted - len(merges)))
        merges += [list(pair) for pair in pairs]
        shorter = ["".join(pair) for pair in pairs]
        tokens += shorter
    special = [
        {"id": len(tokens) + i, "content": text, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i, text in enumerate(_SPECIAL)
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": _LLAMA3_SPLIT}, "behavior": "Isolated", "invert": False}
    bos = {"SpecialToken": {"id": _SPECIAL[0], "type_id": 0}}
    sequences = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, sequences[0]],
            "pair": [bos, sequences[0], bos, sequences[1]],
            "special_tokens": {_SPECIAL[0]: {"id": _SPECIAL[0], "ids": [len(tokens)], "tokens": [_SPECIAL[0]]}},
        },
        "decoder": level | {"add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges,
        },
    }


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Write the checkpoint that the two arguments name; return the exit code."""
    given = sys.argv[1:] if argv is None else argv
    try:
        if len(given) != 2:
            raise UsageError(f"usage: python -m halfbyte.bench.synthetic {'|'.join(SHAPES)} FOLDER")
        write_checkpoint(given[1], given[0])
    except HalfbyteError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
