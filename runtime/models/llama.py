"""Llama, Mistral and Mixtral: pre-norm decoder with rotary grouped-query attention and SwiGLU (Touvron et al. 2023),
or experts of it (Jiang et al. 2024).

Enters: `llama.*` metadata and tensors; leaves: the forward pass as calls to the builder.  What other architectures vary
of it are fields here, and methods that they replace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import ModelFileError
from ...quant.gguf_reader import GgufFile
from .base import Model, read_ff, read_rms_epsilon, read_sizes
from .blocks import FeedForward, QueryKeyValue, output_matrix
from .mixture import Experts, Mixture, read_mixture
from .rotation import read_rotation

if TYPE_CHECKING:
    from ..engine.buffers import Activations, Rows
    from ..engine.program import Builder
    from ..engine.weights import Matrix, Weights

ARCH = "llama"


@dataclass(frozen=True)
class Llama(Model):
    """window: positions that a row sees, 0 for all; layers in `whole` have none.  scores: what scales q k^T, None for
    1 / sqrt(head_dim).  The other scales: of the embedding, of what each block adds to the hidden state, of the logits.
    fused_ff: ffn_up has the gate's rows too, as in `FeedForward`."""

    n_ff: int
    epsilon: float
    window: int = 0
    whole: tuple[int, ...] = ()
    scores: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    mixture: Mixture | None = None
    fused_ff: bool = False

    def build(self, b: Builder, w: Weights) -> Rows:
        """x is the hidden state [rows, n_embd]; every linear layer is y = x @ w.T."""
        x = b.embed(w.table("token_embd.weight", self.n_vocab, self.n_embd), self.embedding_scale)
        for i in range(self.n_layers):
            at = f"blk.{i}."
            qkv = QueryKeyValue(w, at, self, fused=w.has(at + "attn_qkv.weight"))
            wo = w.matrix(at + "attn_output.weight", self.n_embd, self.n_heads * self.head_dim, at + "attn_output.bias")
            h = b.norm(x, w.rms_norm(at + "attn_norm", self.n_embd, self.epsilon), into=qkv.matrices)
            q, k, v = qkv.rows(b, h)
            self.norm_heads(b, w, at, q, k)
            b.rope_store(i, q, k, v, self.head_dim, self.rotation_of(i))
            attended = b.attention(
                i, q, self.n_kv_heads, self.head_dim, into=(wo,), scale=self.scores,
                window=0 if i in self.whole else self.window,
            )  # fmt: skip
            self._add(b, x, attended, wo)

            ff: FeedForward | Experts
            if self.mixture and not w.has(at + "ffn_gate.weight"):
                ff = Experts(w, at, self, self.mixture)
            else:
                ff = self._feed_forward(w, at)
            h = b.norm(x, w.rms_norm(at + "ffn_norm", self.n_embd, self.epsilon), into=ff.matrices)
            if isinstance(ff, Experts):
                ff.add(b, x, h)
            else:
                self._add(b, x, ff.inner(b, h), ff.down)
        out = output_matrix(w, self)
        h = b.output_norm(x, w.rms_norm("output_norm", self.n_embd, self.epsilon), into=(out,))
        (logits,) = b.linear(h, out)
        if self.logit_scale != 1:
            b.rescale(logits, self.logit_scale)
        return logits

    def norm_heads(self, b: Builder, w: Weights, at: str, q: Rows, k: Rows) -> None:
        """Change queries and keys before they are rotated: here, not at all."""

    def rotation_of(self, layer: int) -> int | None:
        """The rotation of a layer, None where it has no positions."""
        return 0

    def _feed_forward(self, w: Weights, at: str) -> FeedForward:
        return FeedForward(w, at, self, self.n_ff, "silu", fused=self.fused_ff)

    def _add(self, b: Builder, x: Rows, inner: Activations, weight: Matrix) -> None:
        """x += residual_scale * inner @ weight.T."""
        if self.residual_scale == 1:
            b.linear_add(x, inner, weight)
        else:
            (rows,) = b.linear(inner, weight, name="residual")
            b.add(x, rows, self.residual_scale)


def read(file: GgufFile) -> Llama:
    """Return the model with every hyper-parameter checked; raises ModelFileError or UnsupportedError naming the key."""
    window = file.get_int(f"{ARCH}.attention.sliding_window", 0, minimum=0, maximum=1 << 31)
    return Llama(**read_fields(file, ARCH, halves=False), window=window, mixture=read_mixture(file, ARCH))


def read_fields(file: GgufFile, arch: str, *, halves: bool) -> dict[str, Any]:
    """Return the fields of Llama that have no default, by name; halves: as in Rotation."""
    sizes = read_sizes(file, arch)
    return {
        **sizes,
        "rotations": (read_rotation(file, arch, sizes["head_dim"], halves=halves),),
        "n_ff": read_ff(file, arch),
        "epsilon": read_rms_epsilon(file, arch),
    }


def read_layer_windows(file: GgufFile, arch: str, n_layers: int) -> dict[str, Any]:
    """Return `window` and `whole` of a file that says for each layer whether it has a window; nothing of another.

    Raises ModelFileError naming the key.
    """
    key = f"{arch}.attention.sliding_window_pattern"
    has_window = file.get_array(key, None, of="bool")
    if has_window is None:
        return {}
    if len(has_window) != n_layers:
        raise ModelFileError(file.path, f"is of {len(has_window)} layers; there are {n_layers}", place=f"key {key!r}")
    window = file.get_int(f"{arch}.attention.sliding_window", minimum=1, maximum=1 << 31)
    return {"window": window, "whole": tuple(i for i in range(n_layers) if not has_window[i])}
