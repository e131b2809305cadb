"""Qwen3: Llama's forward pass with a norm over each head of the queries and keys, and rotary pairs half a head apart
(Yang et al. 2025).

Enters: `qwen3.*` metadata and tensors; leaves: the forward pass as calls to the builder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...quant.gguf_reader import GgufFile
from .llama import Llama, read_fields, read_layer_windows

if TYPE_CHECKING:
    from ..engine.buffers import Rows
    from ..engine.program import Builder
    from ..engine.weights import Weights

ARCH = "qwen3"


@dataclass(frozen=True)
class Qwen3(Llama):
    def norm_heads(self, b: Builder, w: Weights, at: str, q: Rows, k: Rows) -> None:
        for rows, name in ((q, "attn_q_norm"), (k, "attn_k_norm")):
            b.norm_heads(rows, self.head_dim, w.rms_norm(at + name, self.head_dim, self.epsilon))


def read(file: GgufFile) -> Qwen3:
    """Return the model with every hyper-parameter checked; raises ModelFileError naming the key."""
    fields = read_fields(file, ARCH, halves=True)
    return Qwen3(**fields, **read_layer_windows(file, ARCH, fields["n_layers"]))
