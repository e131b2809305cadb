"""What every architecture provides.  Enters: hyper-parameters of a GGUF file; leaves: a `Model` that can describe its
forward pass to the engine's builder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelFileError
from ...quant.gguf_reader import GgufFile

if TYPE_CHECKING:
    from ..engine.program import Builder, Rows
    from ..engine.weights import Weights

MAX_LAYERS = 512  # as llama.cpp
MAX_HEAD_DIM = 1024


@dataclass(frozen=True)
class Model(ABC):
    """Hyper-parameters that the engine needs of any decoder."""

    n_layers: int
    n_vocab: int
    n_embd: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_ctx_train: int
    frequencies: NDArray[np.float64]  # float64 [n_rot/2]: radians per position of each rotary pair

    @abstractmethod
    def build(self, b: Builder, w: Weights) -> Rows:
        """Describe the forward pass to the builder; return the rows of logits."""


def read_heads(file: GgufFile, arch: str, n_embd: int) -> tuple[int, int, int]:
    """Return (n_heads, n_kv_heads, head_dim), checked against each other."""
    n_heads = file.get_int(f"{arch}.attention.head_count", minimum=1, maximum=1 << 16)
    n_kv_heads = file.get_int(f"{arch}.attention.head_count_kv", n_heads, minimum=1, maximum=n_heads)
    if n_heads % n_kv_heads:
        raise ModelFileError(
            file.path, f"{n_heads} heads cannot share {n_kv_heads} KV heads", place=f"{arch}.attention.head_count_kv"
        )
    head_dim = file.get_int(f"{arch}.attention.key_length", None, minimum=2, maximum=MAX_HEAD_DIM)
    if head_dim is None:
        head_dim, rest = divmod(n_embd, n_heads)
        if rest or not 2 <= head_dim <= MAX_HEAD_DIM:
            raise ModelFileError(
                file.path, f"embedding length {n_embd} is not {n_heads} heads of 2 to {MAX_HEAD_DIM}",
                place=f"{arch}.attention.head_count",
            )  # fmt: skip
    value_dim = file.get_int(f"{arch}.attention.value_length", head_dim)
    if value_dim != head_dim or head_dim % 2:
        raise ModelFileError(
            file.path, f"is {value_dim} with keys of {head_dim}; both must be the same even number",
            place=f"{arch}.attention.value_length",
        )  # fmt: skip
    return n_heads, n_kv_heads, head_dim


def read_vocab_size(file: GgufFile, arch: str) -> int:
    """Return the rows of the embedding table; the tokenizer's list and `vocab_size` must agree where they are there."""
    view = file.tensors.get("token_embd.weight")
    if view is None or len(view.shape) != 2:
        raise ModelFileError(file.path, "is missing or not a matrix", place="token_embd.weight")
    rows = view.shape[0]
    stated = file.get_int(f"{arch}.vocab_size", rows)
    tokens = len(file.get_array("tokenizer.ggml.tokens")) if "tokenizer.ggml.tokens" in file.metadata else rows
    if not rows == stated == tokens:
        raise ModelFileError(
            file.path, f"{stated} by {arch}.vocab_size, {tokens} tokens in the tokenizer, {rows} rows of "
            "token_embd.weight: the three must agree", place="vocabulary size",
        )  # fmt: skip
    return rows


def read_rope_frequencies(file: GgufFile, arch: str, head_dim: int, default_base: float) -> NDArray[np.float64]:
    """Return float64 [n_rot/2]: base**(-2i/n_rot), divided by the linear scaling factor and by `rope_freqs.weight`.

    Su et al. 2021; linear scaling: Chen et al. 2023; the tensor carries Llama 3.1's per-frequency factors.
    """
    n_rot = file.get_int(f"{arch}.rope.dimension_count", head_dim, minimum=2, maximum=head_dim)
    if n_rot % 2:
        raise ModelFileError(file.path, f"is {n_rot}; it must be even", place=f"{arch}.rope.dimension_count")
    base = file.get_float(f"{arch}.rope.freq_base", default_base, minimum=1.0, maximum=1e12)
    frequencies = base ** (-np.arange(0, n_rot, 2, dtype=np.float64) / n_rot)
    kind = file.get_str(f"{arch}.rope.scaling.type", "linear")  # this default and the older key: as llama.cpp
    if kind == "linear":
        factor = file.get_float(f"{arch}.rope.scale_linear", 1.0, minimum=1e-3, maximum=1e6)
        frequencies = frequencies / file.get_float(f"{arch}.rope.scaling.factor", factor, minimum=1e-3, maximum=1e6)
    elif kind != "none":
        raise ModelFileError(
            file.path, f"is {kind!r}; supported: none, linear (llama3 comes as the tensor rope_freqs.weight)",
            place=f"{arch}.rope.scaling.type",
        )  # fmt: skip
    factors = file.tensors.get("rope_freqs.weight")
    if factors is not None:
        if factors.shape != (n_rot // 2,):
            raise ModelFileError(file.path, f"has shape {factors.shape}, not ({n_rot // 2},)", place=factors.name)
        values = factors.dequantize().astype(np.float64)
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise ModelFileError(file.path, "holds a factor that is not a positive number", place=factors.name)
        frequencies = frequencies / values
    return frequencies
