"""Llama and Mistral: pre-norm decoder with rotary grouped-query attention and SwiGLU (Touvron et al. 2023).

Enters: `llama.*` metadata and tensors; leaves: the forward pass as calls to the builder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import UnsupportedError
from ...quant.gguf_reader import GgufFile
from .base import MAX_LAYERS, Model, read_heads, read_rope_frequencies, read_vocab_size

if TYPE_CHECKING:
    from ..engine.program import Builder, Rows
    from ..engine.weights import Weights

ARCH = "llama"


@dataclass(frozen=True)
class Llama(Model):
    n_ff: int
    epsilon: float
    tied: bool  # the output matrix is the embedding table

    def build(self, b: Builder, w: Weights) -> Rows:
        """x is the hidden state [rows, n_embd]; every linear layer is y = x @ w.T."""
        n, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        n_rot = 2 * len(self.frequencies)
        x = b.embed(w.table("token_embd.weight", self.n_vocab, self.n_embd))
        for i in range(self.n_layers):
            at = f"blk.{i}."
            wq = w.matrix(at + "attn_q.weight", n, self.n_embd, bias=at + "attn_q.bias")
            wk = w.matrix(at + "attn_k.weight", kv, self.n_embd, bias=at + "attn_k.bias")
            wv = w.matrix(at + "attn_v.weight", kv, self.n_embd, bias=at + "attn_v.bias")
            wo = w.matrix(at + "attn_output.weight", self.n_embd, n, bias=at + "attn_output.bias")
            h = b.rms_norm(x, w.vector(at + "attn_norm.weight", self.n_embd), self.epsilon, into=(wq, wk, wv))
            q, k, v = b.linear(h, wq, wk, wv)
            b.rope_store(i, q, k, v, self.head_dim, n_rot)
            b.linear_add(x, b.attention(i, q, self.n_kv_heads, self.head_dim, into=(wo,)), wo)

            w1 = w.matrix(at + "ffn_gate.weight", self.n_ff, self.n_embd)
            w2 = w.matrix(at + "ffn_down.weight", self.n_embd, self.n_ff)
            w3 = w.matrix(at + "ffn_up.weight", self.n_ff, self.n_embd)
            h = b.rms_norm(x, w.vector(at + "ffn_norm.weight", self.n_embd), self.epsilon, into=(w1, w3))
            gate, up = b.linear(h, w1, w3)
            b.linear_add(x, b.swiglu(gate, up, into=(w2,)), w2)
        out = w.matrix("token_embd.weight" if self.tied else "output.weight", self.n_vocab, self.n_embd)
        h = b.output_norm(x, w.vector("output_norm.weight", self.n_embd), self.epsilon, into=(out,))
        (logits,) = b.linear(h, out)
        return logits


def read(file: GgufFile) -> Llama:
    """Return the model with every hyper-parameter checked; raises ModelFileError or UnsupportedError naming the key."""
    experts = file.get_int(f"{ARCH}.expert_count", 0)
    if experts:
        raise UnsupportedError(f"{ARCH}.expert_count (mixture of experts)", experts, ["0"], where=file.path)
    n_embd = file.get_int(f"{ARCH}.embedding_length", minimum=1, maximum=1 << 20)
    n_heads, n_kv_heads, head_dim = read_heads(file, ARCH, n_embd)
    return Llama(
        n_layers=file.get_int(f"{ARCH}.block_count", minimum=1, maximum=MAX_LAYERS),
        n_vocab=read_vocab_size(file, ARCH),
        n_embd=n_embd,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        n_ctx_train=file.get_int(f"{ARCH}.context_length", minimum=1, maximum=1 << 31),
        frequencies=read_rope_frequencies(file, ARCH, head_dim, default_base=10000.0),
        n_ff=file.get_int(f"{ARCH}.feed_forward_length", minimum=1, maximum=1 << 24),
        epsilon=file.get_float(f"{ARCH}.attention.layer_norm_rms_epsilon", minimum=0.0, maximum=1.0),
        tied="output.weight" not in file.tensors,
    )
