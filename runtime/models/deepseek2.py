"""DeepSeek 2 and what computes alike: attention through a latent vector (DeepSeek-AI 2024), experts beside a
feed-forward that every row goes through.

Enters: `deepseek2.*` metadata and tensors; leaves: the forward pass as calls to the builder.

A position's keys and values of all heads are made of one latent vector c, and (K_h c) . q = c . (K_h^T q).  So the
cache holds c alone, with the rotated columns that all heads share: one key for all heads, and in it the values.  A head
multiplies its query by K_h^T before it meets the latent vectors, and by V_h the one that comes out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import ModelFileError
from ...quant.gguf_reader import GgufFile
from .base import MAX_HEAD_DIM, Model, read_ff, read_rms_epsilon, read_sizes
from .blocks import FeedForward, output_matrix
from .mixture import Experts, Mixture, read_mixture
from .rotation import read_rotation

if TYPE_CHECKING:
    from ..engine.buffers import Activations, Rows
    from ..engine.experts import Picked
    from ..engine.program import Builder
    from ..engine.weights import Matrix, Weights

ARCH = "deepseek2"
LATENT_EPSILON = 1e-6  # of DeepSeek's own code; no key says it


@dataclass(frozen=True)
class DeepSeek2(Model):
    """n_latent   columns of the latent vector; behind them, head_dim has the rotated ones
    n_query    columns of the queries' own latent vector, 0: they have none
    key_dim    columns of a head's queries, the rotated ones the last
    value_dim  columns of a head's values
    scale      of scores
    n_dense    layers before the first one with experts
    """

    n_latent: int
    n_query: int
    key_dim: int
    value_dim: int
    scale: float
    n_ff: int
    n_dense: int
    epsilon: float
    mixture: Mixture | None

    def build(self, b: Builder, w: Weights) -> Rows:
        """x is the hidden state [rows, n_embd]; every linear layer is y = x @ w.T."""
        x = b.embed(w.table("token_embd.weight", self.n_vocab, self.n_embd))
        heads = None
        for i in range(self.n_layers):
            at = f"blk.{i}."
            attention = LatentAttention(w, at, self)
            heads = heads or b.each_head(self.n_heads, attention.per_head)
            h = b.norm(x, w.rms_norm(at + "attn_norm", self.n_embd, self.epsilon), into=attention.matrices)
            b.linear_add(x, attention.values(b, i, h, heads), attention.output)

            ff: FeedForward | Experts
            if self.mixture and i >= self.n_dense:
                ff = Experts(w, at, self, self.mixture)
            else:
                ff = FeedForward(w, at, self, self.n_ff, "silu")
            h = b.norm(x, w.rms_norm(at + "ffn_norm", self.n_embd, self.epsilon), into=ff.matrices)
            ff.add(b, x, h)
        out = output_matrix(w, self)
        h = b.output_norm(x, w.rms_norm("output_norm", self.n_embd, self.epsilon), into=(out,))
        (logits,) = b.linear(h, out)
        return logits


class LatentAttention:
    """The attention of one layer.  Files have attn_k_b (K_h^T of each head) and attn_v_b, or older ones both as
    attn_kv_b, with rows for keys and for values of each head."""

    def __init__(self, w: Weights, at: str, model: DeepSeek2):
        m, n_heads = model, model.n_heads
        self._model = m
        self._plain = m.key_dim - (m.head_dim - m.n_latent)  # columns of a query that are not rotated
        kv = w.matrix(f"{at}attn_kv_a_mqa.weight", m.head_dim, m.n_embd)
        self._kv_norm = w.rms_norm(f"{at}attn_kv_a_norm", m.n_latent, LATENT_EPSILON)
        if m.n_query:
            query = w.matrix(f"{at}attn_q_a.weight", m.n_query, m.n_embd)
            self._q_norm = w.rms_norm(f"{at}attn_q_a_norm", m.n_query, LATENT_EPSILON)
            self._q = w.matrix(f"{at}attn_q_b.weight", n_heads * m.key_dim, m.n_query)
        else:
            query = w.matrix(f"{at}attn_q.weight", n_heads * m.key_dim, m.n_embd)
        if w.has(f"{at}attn_kv_b.weight"):
            name, shape = f"{at}attn_kv_b.weight", (self._plain + m.value_dim, m.n_latent)
            self._k = w.heads(name, n_heads, shape, 0, self._plain, transposed=True)
            self._v = w.heads(name, n_heads, shape, self._plain, m.value_dim, transposed=False)
        else:
            self._k = w.experts(f"{at}attn_k_b.weight", n_heads, n_heads, m.n_latent, self._plain)
            self._v = w.experts(f"{at}attn_v_b.weight", n_heads, n_heads, m.value_dim, m.n_latent)
        self.matrices: tuple[Matrix, ...] = (query, kv)
        self.per_head: tuple[Matrix, ...] = (self._k, self._v)
        self.output = w.matrix(f"{at}attn_output.weight", m.n_embd, n_heads * m.value_dim)

    def values(self, b: Builder, layer: int, x: Activations, heads: Picked) -> Activations:
        """What `output` is multiplied with; x: the normalised rows."""
        m, rotated = self._model, self._model.key_dim - self._plain
        q, kv = b.linear(x, *self.matrices)
        if m.n_query:
            (q,) = b.linear(b.norm(q, self._q_norm, into=(self._q,), name="query latents"), self._q, name="queries")
        b.norm_rows(kv.part(0, m.n_latent), self._kv_norm)

        (latents,) = b.linear_experts(b.split_heads(q, heads, self._plain, m.key_dim, (self._k,)), heads, self._k)
        query = b.rows("latent queries", m.n_heads * m.head_dim)
        b.join_heads(latents, heads, query, m.head_dim)
        b.copy_heads(
            q.part(self._plain, q.columns - self._plain), m.key_dim, heads, rotated,
            query.part(m.n_latent, query.columns - m.n_latent), m.head_dim,
        )  # fmt: skip
        b.rope_store(layer, query, kv, kv, m.head_dim, first=m.n_latent)
        attended = b.attention(layer, query, 1, m.head_dim, into=(), scale=m.scale).rows
        assert attended is not None

        (values,) = b.linear_experts(b.split_heads(attended, heads, m.n_latent, m.head_dim, (self._v,)), heads, self._v)
        joined = b.rows("values", m.n_heads * m.value_dim)
        b.join_heads(values, heads, joined, m.value_dim)
        return b.ready(joined, "values", into=(self.output,))


def read(file: GgufFile) -> DeepSeek2:
    """Return the model with every hyper-parameter checked; raises ModelFileError or UnsupportedError naming the key."""
    n_heads = file.get_int(f"{ARCH}.attention.head_count", minimum=1, maximum=1 << 16)
    n_latent = file.get_int(f"{ARCH}.attention.kv_lora_rank", minimum=2, maximum=MAX_HEAD_DIM)
    n_rotated = file.get_int(f"{ARCH}.rope.dimension_count", minimum=2, maximum=MAX_HEAD_DIM)
    if n_latent + n_rotated > MAX_HEAD_DIM or (n_latent + n_rotated) % 2:
        message = f"is {n_latent} with {n_rotated} rotated columns; an even sum up to {MAX_HEAD_DIM} is allowed"
        raise ModelFileError(file.path, message, place=f"{ARCH}.attention.kv_lora_rank")
    return DeepSeek2(
        **read_sizes(file, ARCH, (n_heads, 1, n_latent + n_rotated)),
        rotations=(read_rotation(file, ARCH, n_rotated, halves=False),),
        n_latent=n_latent,
        n_query=file.get_int(f"{ARCH}.attention.q_lora_rank", 0, minimum=0, maximum=1 << 20),
        key_dim=(key_dim := _head_size(file, "key_length", n_rotated + 1)),
        value_dim=_head_size(file, "value_length", 1),
        scale=_magnitude(file) ** 2 / math.sqrt(key_dim),
        n_ff=read_ff(file, ARCH),
        n_dense=file.get_int(f"{ARCH}.leading_dense_block_count", 0, minimum=0),
        epsilon=read_rms_epsilon(file, ARCH),
        mixture=read_mixture(file, ARCH, normalised=False, grouped=True),
    )


def _head_size(file: GgufFile, name: str, minimum: int) -> int:
    """The columns of a head: files whose key_length is that of the cache have them in a key of their own."""
    key = f"{ARCH}.attention.{name}"
    found = file.get_int(f"{key}_mla", None, minimum=minimum, maximum=MAX_HEAD_DIM)
    return file.get_int(key, minimum=minimum, maximum=MAX_HEAD_DIM) if found is None else found


def _magnitude(file: GgufFile) -> float:
    """What yarn multiplies queries and keys by: 1 + multiplier * ln(factor), of all columns."""
    at = f"{ARCH}.rope.scaling."
    per_log = file.get_float(at + "yarn_log_multiplier", 0.0, minimum=-1e3, maximum=1e3)
    factor = file.get_float(at + "factor", 1.0, minimum=1e-3, maximum=1e6)
    return 1.0 + per_log * math.log(factor) if factor > 1 else 1.0
