"""Falcon: parallel layers without biases, rotary attention with few KV heads (Almazrouei et al. 2023), or with ALiBi,
biases and one part after the other (Falcon-RW, Penedo et al. 2023).

Enters: `falcon.*` metadata and tensors; leaves: the forward pass as calls to the builder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...quant.gguf_reader import GgufFile
from .gpt import Gpt, read_gpt
from .rotation import read_rotation

if TYPE_CHECKING:
    from ..engine.buffers import Rows
    from ..engine.program import Builder
    from ..engine.weights import Weights

ARCH = "falcon"


@dataclass(frozen=True)
class Falcon(Gpt):
    def add_layer(self, b: Builder, w: Weights, x: Rows, i: int) -> None:
        """x += attention(norm(x)) + feed_forward(norm(x)); attention has a norm of its own in some (Falcon-40B).
        One after the other, each with its norm, where they are not parallel."""
        if not self.parallel:
            super().add_layer(b, w, x, i)
            return
        at = f"blk.{i}."
        qkv, wo, ff = self.matrices(w, at)
        own = w.has(at + "attn_norm_2.weight")
        norm = w.layer_norm(at + "attn_norm", self.n_embd, self.epsilon)
        g = h = b.norm(x, norm, into=ff.matrices if own else (*qkv.matrices, *ff.matrices), name="normed for ffn")
        if own:
            h = b.norm(x, w.layer_norm(at + "attn_norm_2", self.n_embd, self.epsilon), into=qkv.matrices)
        b.linear_add(x, self.attended(b, i, qkv.rows(b, h), into=(wo,)), wo)
        b.linear_add(x, ff.inner(b, g), ff.down)

    def slopes(self) -> NDArray[np.float32]:
        """Falcon scales what ALiBi takes away too."""
        return super().slopes() * np.float32(self.head_dim**-0.5)


def read(file: GgufFile) -> Falcon:
    """Return the model with every hyper-parameter checked; raises ModelFileError or UnsupportedError naming the key."""
    fields = read_gpt(file, ARCH, "gelu")
    bias = file.get_float(f"{ARCH}.attention.max_alibi_bias", 0.0, minimum=0.0, maximum=1e3)
    rotations = () if bias else (read_rotation(file, ARCH, fields["head_dim"], halves=True),)
    parallel = file.get_bool(f"{ARCH}.use_parallel_residual", True)
    return Falcon(**fields, rotations=rotations, parallel=parallel, alibi_bias=bias)
