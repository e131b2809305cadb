"""The shapes of published models.  Enters: a shape's name; leaves: its sizes, and the matrices and norms it is made of.

Sizes are those of the models' config.json on Hugging Face.  All are computed as Llama does: without Qwen's biases and
without Llama 3's scaling of rotary frequencies, which change nothing that takes time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import UnsupportedError


@dataclass(frozen=True)
class Shape:
    """The sizes of one model, in elements; `tied`: the output matrix is the embedding."""

    model: str
    hidden: int
    layers: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    rope_theta: float
    tied: bool = True
    rms_epsilon: float = 1e-5

    @property
    def parameters(self) -> int:
        """Weights in all."""
        layers = sum(rows * columns for _, (rows, columns) in self.matrices())
        ends = (1 if self.tied else 2) * self.vocab * self.hidden
        return self.layers * (layers + 2 * self.hidden) + ends + self.hidden

    def matrices(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield name within the block and shape, rows first, of the matrices of one layer in the order of their use."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "attn_q", (q, self.hidden)
        yield "attn_k", (kv, self.hidden)
        yield "attn_v", (kv, self.hidden)
        yield "attn_output", (self.hidden, q)
        yield "ffn_gate", (self.ffn, self.hidden)
        yield "ffn_up", (self.ffn, self.hidden)
        yield "ffn_down", (self.hidden, self.ffn)


SHAPES = {
    "135m": Shape("SmolLM2-135M", 576, 30, 1536, 9, 3, 64, 49152, 8192, 1e5),
    "0.5b": Shape("Qwen2.5-0.5B", 896, 24, 4864, 14, 2, 64, 151936, 32768, 1e6),
    "1b": Shape("Llama-3.2-1B", 2048, 16, 8192, 32, 8, 64, 128256, 131072, 5e5),
    "3b": Shape("Llama-3.2-3B", 3072, 28, 8192, 24, 8, 128, 128256, 131072, 5e5),
    "8b": Shape("Llama-3.1-8B", 4096, 32, 14336, 32, 8, 128, 128256, 131072, 5e5, tied=False),
}


def shape_by_name(name: str) -> Shape:
    """Return the shape called `name` ("1b"); UnsupportedError, listing them, when there is none."""
    if name.lower() not in SHAPES:
        raise UnsupportedError("shape", name, list(SHAPES))
    return SHAPES[name.lower()]
