"""A random model as a GGUF file.  Enters: a shape and a type; leaves: the file, without a checkpoint on the way.

Types of tensors, names and metadata are those that converting the checkpoint of the same shape and seed gives.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator

from ...quant.formats import FORMATS
from ...quant.gguf_writer import GgufWriter
from ...quant.recipe import ModelSizes, choose_formats, recipe_by_name
from .shapes import Shape
from .vocab import SPECIAL, Vocabulary, vocabulary
from .weights import RandomWeights

Progress = Callable[[int, int], None]  # (elements done, elements in all)

_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
_NORMAL, _CONTROL = 1, 3  # tokenizer.ggml.token_type


def write_gguf(
    path: str | os.PathLike[str],
    shape: Shape,
    type: str,
    seed: int = 1,
    force: bool = False,
    progress: Progress | None = None,
    pure: bool = False,
) -> None:
    """Write the model `shape` of file type `type` (quant/recipe.py) to `path`, a piece of a tensor at a time.

    pure  all matrices get one format, the embedding and the output matrix included

    Memory holds the packed tensors of one layer, since all layers have the same.  Raises UnsupportedError for an
    unknown type, OutputExistsError when `path` is there and `force` is not given, UsageError when it cannot be written.
    """
    recipe = recipe_by_name(type)
    listed = list(_tensors(shape))
    chosen = choose_formats(
        {name: sizes for name, _, sizes in listed}, recipe,
        ModelSizes("llama", layers=shape.layers, heads=shape.heads, kv_heads=shape.kv_heads),
        pure,
    )  # fmt: skip
    tensors = {name: (kind, sizes, chosen[name] or FORMATS["f32"]) for name, kind, sizes in listed}
    total, done = sum(math.prod(sizes) for _, sizes, _ in tensors.values()), 0
    with GgufWriter(path, force) as writer, RandomWeights(seed) as weights:
        _metadata(writer, shape, recipe.file_type)
        for name, (_, sizes, format) in tensors.items():
            writer.declare(name, sizes, format)
        for name, (kind, sizes, format) in tensors.items():
            make = weights.shared if name.startswith("blk.") else weights.pieces
            writer.write(name, make(kind, sizes, format))
            done += math.prod(sizes)
            if progress:
                progress(done, total)


def _tensors(shape: Shape) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield GGUF name, kind (what its values depend on) and shape, in the converter's order."""
    hidden = (shape.hidden,)
    yield "token_embd.weight", "token_embd", (shape.vocab, shape.hidden)
    for i in range(shape.layers):
        yield f"blk.{i}.attn_norm.weight", "attn_norm", hidden
        for kind, sizes in shape.matrices():
            if kind == "ffn_gate":
                yield f"blk.{i}.ffn_norm.weight", "ffn_norm", hidden
            yield f"blk.{i}.{kind}.weight", kind, sizes
    yield "output_norm.weight", "output_norm", hidden
    if not shape.tied:
        yield "output.weight", "output", (shape.vocab, shape.hidden)


def _metadata(writer: GgufWriter, shape: Shape, file_type: int) -> None:
    writer.add_str("general.architecture", "llama")
    writer.add_str("general.type", "model")
    writer.add_str("general.name", f"random weights, shape of {shape.model}")
    writer.add_uint32("general.file_type", file_type)
    writer.add_uint32("general.quantization_version", _QUANTIZATION_VERSION)
    for key, number in (
        ("vocab_size", shape.vocab),
        ("context_length", shape.context),
        ("embedding_length", shape.hidden),
        ("block_count", shape.layers),
        ("feed_forward_length", shape.ffn),
        ("attention.head_count", shape.heads),
        ("attention.head_count_kv", shape.kv_heads),
        ("rope.dimension_count", shape.head_dim),
        ("attention.key_length", shape.head_dim),
        ("attention.value_length", shape.head_dim),
    ):
        writer.add_uint32(f"llama.{key}", number)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", shape.rms_epsilon)
    writer.add_float32("llama.rope.freq_base", shape.rope_theta)
    _vocabulary(writer, vocabulary(shape.vocab))


def _vocabulary(writer: GgufWriter, vocab: Vocabulary) -> None:
    writer.add_str("tokenizer.ggml.model", "gpt2")
    writer.add_str("tokenizer.ggml.pre", "llama-bpe")
    writer.add_array("tokenizer.ggml.tokens", "string", [*vocab.tokens, *SPECIAL])
    types = [_NORMAL] * len(vocab.tokens) + [_CONTROL] * len(SPECIAL)
    writer.add_array("tokenizer.ggml.token_type", "int32", types)
    writer.add_array("tokenizer.ggml.merges", "string", [f"{left} {right}" for left, right in vocab.merges])
    writer.add_uint32("tokenizer.ggml.bos_token_id", vocab.bos)
    writer.add_uint32("tokenizer.ggml.eos_token_id", vocab.eos)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_bool("tokenizer.ggml.add_eos_token", False)
