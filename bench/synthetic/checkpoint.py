"""A random model as Hugging Face lays it out.  Enters: a shape; leaves: a folder of bf16 shards, config.json and a
tokenizer.json of the full vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ...quant.formats import FORMATS
from .shapes import Shape
from .vocab import SPECIAL, tokenizer_json, vocabulary
from .weights import RandomWeights

Progress = Callable[[int, int], None]  # (elements done, elements in all)

_SHARD_BYTES = 1 << 30
_BF16 = FORMATS["bf16"]
_NAMES = {  # GGUF's name within the block -> Hugging Face's within the layer
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_Tensors = dict[str, tuple[str, tuple[int, ...]]]  # Hugging Face's name -> kind, shape with rows first


def write_checkpoint(folder: str | Path, shape: Shape, seed: int = 1, progress: Progress | None = None) -> None:
    """Write the checkpoint of `shape` into `folder`, which is made where it is missing.

    Memory holds one layer, since all layers have the same weights.  Raises UsageError when the folder holds a
    checkpoint already or cannot be written.
    """
    folder = Path(folder)
    if (folder / "config.json").exists():
        raise UsageError(f"{folder} holds a checkpoint already")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_weights(folder, shape, seed, progress)
        _write_json(folder / "tokenizer.json", tokenizer_json(vocabulary(shape.vocab)))
        special = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[-1], "tokenizer_class": "PreTrainedTokenizerFast"}
        _write_json(folder / "tokenizer_config.json", special)
        _write_json(folder / "config.json", _config(shape))  # the last: without it the folder is no checkpoint
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror or error}") from error


def _config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.rms_epsilon,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": shape.vocab - len(SPECIAL),
        "eos_token_id": shape.vocab - 1,
        "torch_dtype": "bfloat16",
    }


def _tensors(shape: Shape) -> _Tensors:
    """Return the tensors in the order of the forward pass."""
    kinds: dict[str, tuple[int, ...]] = {"attn_norm": (shape.hidden,)}
    for kind, sizes in shape.matrices():
        if kind == "ffn_gate":
            kinds["ffn_norm"] = (shape.hidden,)
        kinds[kind] = sizes
    found: _Tensors = {"model.embed_tokens.weight": ("token_embd", (shape.vocab, shape.hidden))}
    for i in range(shape.layers):
        found |= {f"model.layers.{i}.{_NAMES[kind]}.weight": (kind, sizes) for kind, sizes in kinds.items()}
    found["model.norm.weight"] = ("output_norm", (shape.hidden,))
    if not shape.tied:
        found["lm_head.weight"] = ("output", (shape.vocab, shape.hidden))
    return found


def _write_weights(folder: Path, shape: Shape, seed: int, progress: Progress | None) -> None:
    """Write the tensors in shards of about 1 GiB, with their index."""
    tensors = _tensors(shape)
    total, done = sum(math.prod(sizes) for _, sizes in tensors.values()), 0
    shards = list(_shards(tensors))
    weight_map: dict[str, str] = {}
    with RandomWeights(seed) as weights:
        for number, names in enumerate(shards, 1):
            part = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            weight_map |= dict.fromkeys(names, part)
            with (folder / part).open("wb") as out:
                _write_header(out, {name: tensors[name][1] for name in names})
                for name in names:
                    kind, sizes = tensors[name]
                    for piece in _pieces(weights, shape, name, kind, sizes):
                        out.write(np.ascontiguousarray(piece).data)
                    done += math.prod(sizes)
                    if progress:
                        progress(done, total)
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _pieces(
    weights: RandomWeights, shape: Shape, name: str, kind: str, sizes: tuple[int, ...]
) -> Iterable[NDArray[np.uint8]]:
    """Return a tensor as bf16, uint8 [some rows, row bytes] each, with the rows of Q and K in Hugging Face's order."""
    if ".layers." not in name:
        return weights.pieces(kind, sizes, _BF16)
    made = weights.shared(kind, sizes, _BF16)
    if kind not in ("attn_q", "attn_k"):
        return made
    # GGUF's llama turns the pair of rows (2j, 2j + 1) of a head by one angle, Hugging Face (j, j + head_dim / 2).
    rows = np.concatenate(made)
    pairs = rows.reshape(-1, shape.head_dim // 2, 2, rows.shape[1])
    return [pairs.swapaxes(1, 2).reshape(rows.shape)]


def _shards(tensors: _Tensors) -> Iterator[list[str]]:
    names: list[str] = []
    held = 0
    for name, (_, sizes) in tensors.items():
        size = _BF16.nbytes(sizes)
        if names and held + size > _SHARD_BYTES:
            yield names
            names, held = [], 0
        names.append(name)
        held += size
    yield names


def _write_header(out: BinaryIO, tensors: dict[str, tuple[int, ...]]) -> None:
    header, end = {}, 0
    for name, sizes in tensors.items():
        begin, end = end, end + _BF16.nbytes(sizes)
        header[name] = {"dtype": "BF16", "shape": sizes, "data_offsets": [begin, end]}
    described = json.dumps(header).encode()
    described += b" " * (-len(described) % 8)
    out.write(len(described).to_bytes(8, "little") + described)


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
