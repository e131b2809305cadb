"""Tiny models for the engine's tests.  Enters: a shape and a type; leaves: a GGUF file, and the logits it should give.

The expected logits come from the float64 forward pass of oracle.py on the weights as the file holds them, which the
`gguf` package rounds: neither the converter nor the engine has a part in them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import oracle
import tiny

from halfbyte import convert_checkpoint
from halfbyte.quant.formats import FORMATS, BlockFormat
from halfbyte.quant.gguf_reader import StringArray, open_gguf
from halfbyte.quant.gguf_writer import GgufWriter
from halfbyte.runtime.engine.batch import Part
from halfbyte.runtime.engine.engine import Engine
from halfbyte.runtime.engine.kv_pages import Sequence
from halfbyte.runtime.kernels.jit import Library
from halfbyte.runtime.options import RuntimeOptions

TYPES = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]
FLOATS = TYPES[:3]
SEARCHED = ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4"]  # gguf reads them; we write them
# Matrices by the last words of their names: in a checkpoint, and in GGUF.
MATRICES = {
    "embed_tokens": "token_embd", "lm_head": "output", "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v",
    "o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip

VARIATIONS: dict[str, dict[str, Any]] = {
    "GQA": {},
    "MHA": {"kv_heads": 4},
    "MQA": {"kv_heads": 1},
    "groups of 1, heads of 8": {"heads": 8, "kv_heads": 8},
    "groups of 3, heads of 64": {"hidden": 96, "heads": 3, "kv_heads": 1, "head_dim": 64},
    "groups of 7": {"hidden": 112, "heads": 7, "kv_heads": 1},
    "groups of 8": {"heads": 8, "kv_heads": 1},
    "heads of 80": {"heads": 2, "kv_heads": 1, "head_dim": 80},
    "heads of 6, an odd number of pairs": {"head_dim": 6},
    "tied": {"tied": True},
    "attention bias": {"attention_bias": True},
    "linear rope scaling": {"rope_scaling": "linear"},
    "llama3 rope scaling": {"rope_scaling": "llama3", "rope_theta": 500000.0},
    "rope base 1e6": {"rope_theta": 1e6},
    "epsilon 0.01": {"rms_eps": 1e-2},
    "Mistral": {"architecture": "MistralForCausalLM", "head_dim": 32},
    "FFN of 172": {"ffn": 172},
    "nothing divides by 32": {"hidden": 36, "heads": 3, "kv_heads": 1, "ffn": 50, "vocab": 433},
    "odd width": {"hidden": 35, "heads": 5, "kv_heads": 1, "head_dim": 8, "ffn": 51},
    "vocabulary of 421": {"vocab": 421},
    "f16": {"dtype": "f16"},
    "bf16 in 3 files": {"dtype": "bf16", "shards": 3},
    "1 layer, byte-level BPE": {"layers": 1, "tokenizer": "llama-bpe", "tied": True},
}

Entries = dict[str, tuple[str, Any]]  # key -> GGUF type, value
Tensors = dict[str, tuple[tuple[int, ...], BlockFormat, np.ndarray]]  # name -> shape, format, packed bytes


def _named(types: dict[str, str]) -> str:
    return "-".join(f"{matrix}={type}" for matrix, type in types.items())


class Models:
    """Checkpoints and files of one test session, each made once; `folder` is theirs."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._numbers: dict[tuple[tiny.Tiny, str], int] = {}

    def _place(self, spec: tiny.Tiny, kind: str) -> Path:
        return self._folder / f"{self._numbers.setdefault((spec, kind), len(self._numbers))}-{kind}"

    def checkpoint(self, **fields: Any) -> Path:
        """Return the Hugging Face folder of Tiny(**fields)."""
        spec = tiny.Tiny(**fields)
        place = self._place(spec, "checkpoint")
        return place if place.exists() else tiny.build(place, spec)

    def file(self, type: str, **fields: Any) -> Path:
        """Return Tiny(**fields) as a GGUF file whose matrices all have the format `type`."""
        place = self._place(tiny.Tiny(**fields), type).with_suffix(".gguf")
        if not place.exists():
            convert_checkpoint(self.checkpoint(**fields), place, type, pure=True)
        return place

    def mixed(self, types: dict[str, str], **fields: Any) -> Path:
        """Return Tiny(**fields) as a GGUF file whose matrices have types of their own, by the keys of MATRICES."""
        place = self._place(tiny.Tiny(**fields), _named(types)).with_suffix(".gguf")
        formats = {MATRICES[matrix]: FORMATS[type] for matrix, type in types.items()}

        def change(tensors: Tensors) -> None:
            for name, (shape, _, data) in tensors.items():
                kind = formats.get(name.split(".")[-2])
                if kind and len(shape) == 2:
                    tensors[name] = (shape, kind, kind.quantize(data.view(np.float32).reshape(shape)))

        return place if place.exists() else rewritten(self.file("f32", **fields), place, tensors=change)

    def logits(self, types: str | dict[str, str], ids: list[int], int8: bool = False, **fields: Any) -> np.ndarray:
        """Return float64 [len(ids), vocab]: what the file of this type, or of these types, stands for.

        int8: what enters a matrix of an integer type is rounded to 8 bits, as the engine does it.
        """
        by_matrix = types if isinstance(types, dict) else dict.fromkeys(MATRICES, types)
        place = self._place(tiny.Tiny(**fields), _named(by_matrix) + "-rounded")
        if not place.exists():
            round_checkpoint(self.checkpoint(**fields), place, by_matrix)
        return oracle.llama_logits(place, ids, integers(by_matrix) if int8 else {})


def integers(types: dict[str, str]) -> dict[str, int]:
    """Return the matrices of an integer type, with the number of activations that share a scale there."""
    return {matrix: FORMATS[type].block_size for matrix, type in types.items() if type not in FLOATS}


def round_checkpoint(source: Path, target: Path, types: dict[str, str]) -> None:
    """Write a float32 checkpoint with the weights of `source` as a GGUF file holds them; types: by matrix."""
    config, tensors = oracle.load_checkpoint(source)
    target.mkdir()
    tiny.write_json(target / "config.json", config)
    rounded = {name: _rounded(value, types.get(name.split(".")[-2], "f32")) for name, value in tensors.items()}
    tiny.write_safetensors(target / "model.safetensors", rounded, "f32")


def _rounded(value: np.ndarray, type: str) -> np.ndarray:
    """A tensor as a file of `type` holds it: vectors in F32, rows that 32 does not divide in F16."""
    if value.ndim == 1:
        return value
    value = value.astype(np.float32)
    kind = gguf.GGMLQuantizationType[type.upper() if type in FLOATS or value.shape[1] % 32 == 0 else "F16"]
    if type in SEARCHED:
        return gguf.quants.dequantize(FORMATS[type].quantize(value), kind).reshape(value.shape)
    return gguf.quants.dequantize(gguf.quants.quantize(value, kind), kind).reshape(value.shape)


@contextlib.contextmanager
def opened(file: Path, library: Library | None = None, **options: Any) -> Iterator[Engine]:
    """An engine for `file` on one thread unless `options` say otherwise."""
    with open_gguf(file) as found:
        engine = Engine(found, RuntimeOptions(**{"threads": 1, **options}), library=library)
        try:
            yield engine
        finally:
            engine.close()


def logits(engine: Engine, ids: list[int], sequence: Sequence | None = None, at_once: int = 64) -> np.ndarray:
    """Return float32 [len(ids), vocab] after each of `ids`, fed `at_once` at a time to `sequence` (None: a new one)."""
    held = sequence if sequence is not None else engine.new_sequence()
    parts = [ids[i : i + at_once] for i in range(0, len(ids), at_once)]
    found = [engine.step([Part(held, part, len(part))]).copy() for part in parts]
    if sequence is None:
        held.close()
    return np.concatenate(found)


def rewritten(
    source: Path,
    target: Path,
    metadata: Callable[[Entries], object] = lambda entries: None,
    tensors: Callable[[Tensors], object] = lambda tensors: None,
) -> Path:
    """Copy a GGUF file, its metadata and its tensors changed by the callables, and return the copy."""
    with open_gguf(source) as file:
        entries = {key: (file.value_type(key), file.metadata[key]) for key in file.metadata}
        held = {name: (view.shape, view.format, np.array(view.data)) for name, view in file.tensors.items()}
    metadata(entries)
    tensors(held)
    with GgufWriter(target) as writer:
        for key, (kind, value) in entries.items():
            if kind.startswith("array["):
                values = [value.raw(i) for i in range(len(value))] if isinstance(value, StringArray) else value.tolist()
                writer.add_array(key, kind[6:-1], values)
            else:
                writer.add(key, value, kind)
        for name, (shape, kind_of_block, _) in held.items():
            writer.declare(name, shape, kind_of_block)
        for name, (_, _, data) in held.items():
            writer.write(name, data)
    return target
