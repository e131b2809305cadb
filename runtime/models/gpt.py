"""Decoders of GPT-2's form: a layer norm before each part, a feed-forward of two matrices (Radford et al. 2019).

Enters: the keys and tensors that these architectures share; leaves: the forward pass.  An architecture's own file says
what it has of its own: where positions come from, which function the feed-forward has, what happens to queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UnsupportedError
from ...quant.gguf_reader import GgufFile
from .base import Model, read_ff, read_layer_epsilon, read_sizes
from .blocks import FeedForward, QueryKeyValue, output_matrix

if TYPE_CHECKING:
    from ..engine.buffers import Activations, Rows
    from ..engine.program import Builder
    from ..engine.weights import Matrix, Weights

# Hugging Face's names, which {arch}.hidden_activation has, and those of kernels/functions.py.
GELUS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True)
class Gpt(Model):
    """function    of the feed-forward, a name of kernels/functions.py
    fused       one matrix makes queries, keys and values
    parallel    attention and feed-forward of a layer read the same hidden state (Wang and Komatsuzaki 2021)
    window      positions that a row sees, 0 for all
    alibi_bias  what ALiBi's slopes are made of, 0 without it
    """

    n_ff: int
    epsilon: float
    function: str
    fused: bool = True
    parallel: bool = False
    window: int = 0
    alibi_bias: float = 0.0

    def build(self, b: Builder, w: Weights) -> Rows:
        """x is the hidden state [rows, n_embd]; every linear layer is y = x @ w.T + bias."""
        x = self.embedded(b, w)
        for i in range(self.n_layers):
            self.add_layer(b, w, x, i)
        out = output_matrix(w, self)
        h = b.output_norm(x, w.layer_norm("output_norm", self.n_embd, self.epsilon), into=(out,))
        (logits,) = b.linear(h, out)
        return logits

    def embedded(self, b: Builder, w: Weights) -> Rows:
        """What the first layer gets."""
        return b.embed(w.table("token_embd.weight", self.n_vocab, self.n_embd))

    def add_layer(self, b: Builder, w: Weights, x: Rows, i: int) -> None:
        """x += attention(norm(x)), then x += feed_forward(norm(x)), of the x before both where they are parallel."""
        at = f"blk.{i}."
        qkv, wo, ff = self.matrices(w, at)
        ffn_norm = w.layer_norm(at + "ffn_norm", self.n_embd, self.epsilon)
        h = b.norm(x, w.layer_norm(at + "attn_norm", self.n_embd, self.epsilon), into=qkv.matrices)
        if self.parallel:
            g = b.norm(x, ffn_norm, into=ff.matrices, name="normed for ffn")
        b.linear_add(x, self.attended(b, i, qkv.rows(b, h), into=(wo,)), wo)
        if not self.parallel:
            g = b.norm(x, ffn_norm, into=ff.matrices)
        b.linear_add(x, ff.inner(b, g), ff.down)

    def matrices(self, w: Weights, at: str) -> tuple[QueryKeyValue, Matrix, FeedForward]:
        """What a layer multiplies with."""
        wo = w.matrix(at + "attn_output.weight", self.n_embd, self.n_heads * self.head_dim, at + "attn_output.bias")
        ff = FeedForward(w, at, self, self.n_ff, self.function, gated=False)
        return QueryKeyValue(w, at, self, self.fused), wo, ff

    def attended(self, b: Builder, layer: int, qkv: tuple[Rows, Rows, Rows], into: tuple[Matrix, ...]) -> Activations:
        """Attention of queries, keys and values."""
        b.rope_store(layer, *qkv, self.head_dim, rotation=0 if self.rotations else None)
        return b.attention(
            layer, qkv[0], self.n_kv_heads, self.head_dim, into, window=self.window,
            slopes=self.slopes() if self.alibi_bias else None,
        )  # fmt: skip

    def slopes(self) -> NDArray[np.float32]:
        """float32 [n_heads]: what scaled scores lose per position of distance, where there is an alibi_bias."""
        return alibi_slopes(self.n_heads, self.alibi_bias)


def alibi_slopes(n_heads: int, bias: float) -> NDArray[np.float32]:
    """float32 [n_heads]: what each head's scores lose per position of distance (Press et al. 2022).

    2^(-bias i / n) for heads i = 1..n.  Of a number that is no power of two, the first heads have the slopes of the
    power of two below it, the others every second one of the power above: as transformers and llama.cpp have it.
    """
    below = 1 << (n_heads.bit_length() - 1)
    steps = [bias * i / below for i in range(1, below + 1)]
    steps += [bias * (i + 0.5) / below for i in range(n_heads - below)]
    return np.exp2(-np.array(steps)).astype(np.float32)


def read_gpt(file: GgufFile, arch: str, activation: str) -> dict[str, Any]:
    """Return the fields of Gpt that have no default, `rotations` excepted, by name.

    activation: Hugging Face's name of what these models have where the file does not say.

    Raises ModelFileError or UnsupportedError naming the key.
    """
    key = f"{arch}.hidden_activation"
    found = file.get_str(key, activation)
    if found not in GELUS:
        raise UnsupportedError(key, found, list(GELUS), where=file.path)
    return {
        **read_sizes(file, arch),
        "n_ff": read_ff(file, arch),
        "epsilon": read_layer_epsilon(file, arch),
        "function": GELUS[found],
    }
