"""Parts that many architectures share.  Enters: a layer's tensors by llama.cpp's names; leaves: the matrices, and the
calls to the builder that use them.

A norm must know who reads what it makes; so a part takes its matrices first, and says what to do with them then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Model

if TYPE_CHECKING:
    from ..engine.buffers import Activations, Rows
    from ..engine.program import Builder
    from ..engine.weights import Matrix, Weights


class QueryKeyValue:
    """attn_q, attn_k and attn_v, or (fused) attn_qkv whose rows are the three; with biases where the file has them."""

    def __init__(self, w: Weights, at: str, model: Model, fused: bool = False):
        n, kv = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
        self._sizes = (n, kv, kv)
        named = {"attn_qkv": n + 2 * kv} if fused else {"attn_q": n, "attn_k": kv, "attn_v": kv}
        self.matrices: tuple[Matrix, ...] = tuple(
            w.matrix(f"{at}{name}.weight", rows, model.n_embd, bias=f"{at}{name}.bias") for name, rows in named.items()
        )
        # After the last layer only rows that give logits count: the others store keys and values there.
        is_last = model.causal and at == f"blk.{model.n_layers - 1}."
        self._for_outputs = self.matrices[:1] if is_last and not fused else ()

    def rows(self, b: Builder, x: Activations) -> tuple[Rows, Rows, Rows]:
        """Queries, keys and values of x."""
        found = b.linear(x, *self.matrices, for_outputs=self._for_outputs)
        if len(found) == 3:
            return found[0], found[1], found[2]
        n, kv, _ = self._sizes
        return found[0].part(0, n), found[0].part(n, kv), found[0].part(n + kv, kv)


class FeedForward:
    """ffn_down(function(ffn_up x)), or gated: ffn_down(function(ffn_gate x) * ffn_up x) (Shazeer 2020).

    function: a name of kernels/functions.py.  fused: ffn_up has the rows of both, the gate's first.  kind: behind the
    names of the tensors.
    """

    def __init__(
        self, w: Weights, at: str, model: Model, n_ff: int, function: str, *, gated: bool = True, fused: bool = False,
        kind: str = "",
    ):  # fmt: skip
        self._function, self._n_ff, self._fused = function, n_ff, fused
        sizes = {"ffn_gate": n_ff} if gated and not fused else {}
        sizes["ffn_up"] = 2 * n_ff if fused else n_ff
        named = {f"{at}{name}{kind}": rows for name, rows in sizes.items()}
        self.matrices: tuple[Matrix, ...] = tuple(
            w.matrix(f"{name}.weight", rows, model.n_embd, bias=f"{name}.bias") for name, rows in named.items()
        )
        self.down = w.matrix(f"{at}ffn_down{kind}.weight", model.n_embd, n_ff, bias=f"{at}ffn_down{kind}.bias")

    def inner(self, b: Builder, x: Activations) -> Activations:
        """What `down` is multiplied with."""
        if len(self.matrices) == 2:
            return b.linear_gated(x, *self.matrices, self._function, into=(self.down,))
        rows = b.linear(x, *self.matrices)
        if self._fused:
            rows = (rows[0].part(0, self._n_ff), rows[0].part(self._n_ff, self._n_ff))
        return b.activate(self._function, rows[0], rows[1] if len(rows) > 1 else None, into=(self.down,))

    def add(self, b: Builder, hidden: Rows, x: Activations) -> None:
        """hidden += what the layer makes of x."""
        b.linear_add(hidden, self.inner(b, x), self.down)


def output_matrix(w: Weights, model: Model) -> Matrix:
    """output.weight (with its bias, where there is one), or the embedding table where the file ties them."""
    name = "output.weight" if w.has("output.weight") else "token_embd.weight"
    return w.matrix(name, model.n_vocab, model.n_embd, bias="output.bias")
