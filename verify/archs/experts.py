"""Mixtures of experts: Mixtral, Qwen 2 and 3 MoE, gpt-oss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..blocks import Rotation, attend, largest, sigmoid, softmax
from ..decoder import Decoder
from ..source import Array, Source
from .llama import Mistral, Qwen3


class Experts(Decoder):
    """Of many feed-forwards a router picks some for each token; layers without a router have one for all."""

    router = "gate"
    parts = "gate_proj", "up_proj", "down_proj"
    default_used = 4
    default_normed = False

    def __init__(self, source: Source, ids: Sequence[int]):
        super().__init__(source, ids)
        self.used = self.c.integer("num_experts_per_tok", 1, 1 << 16, self.default_used)

    def feed(self, h: Array, at: str) -> Array:
        if not self.s.has(f"{at}{self.router}.weight"):
            return super().feed(h, at)
        shares = self.shares(self.s.linear(h, at + self.router), at)
        out = np.zeros_like(h)
        for expert in np.flatnonzero(shares.any(axis=0)):
            rows = np.flatnonzero(shares[:, expert])
            out[rows] += shares[rows, expert, None] * self.expert(h[rows], at, int(expert))
        return out

    def shares(self, liked: Array, at: str) -> Array:
        """Return what each expert's result is multiplied with, 0 for those not picked; liked: the router's, both
        [n, experts]."""
        shares = softmax(liked)
        return self.normed(np.where(largest(shares, self.used), shares, 0))

    def normed(self, shares: Array) -> Array:
        """Make the shares of each token 1 together, where config.json says so."""
        normed = self.c.boolean("norm_topk_prob", self.default_normed)
        return shares / shares.sum(axis=1, keepdims=True) if normed else shares

    def expert(self, h: Array, at: str, expert: int) -> Array:
        return self.gated(h, f"{at}experts.{expert}.", *self.parts)


class Mixtral(Experts, Mistral):
    """Shares that make 1 together."""

    mlp, parts = "block_sparse_moe.", ("w1", "w3", "w2")
    default_used, default_normed = 2, True


class Qwen2Moe(Experts):
    """One expert more, which every token goes through, as far as a gate of its own lets it."""

    def feed(self, h: Array, at: str) -> Array:
        out = super().feed(h, at)
        if not self.s.has(f"{at}shared_expert_gate.weight"):
            return out
        open_ = sigmoid(self.s.linear(h, at + "shared_expert_gate"))
        return out + open_ * self.gated(h, at + "shared_expert.", *self.parts)


class Qwen3Moe(Experts, Qwen3):
    default_head_dim, default_used = None, 8


class GptOss(Experts):
    """A sink for each head, a window in every other layer, all experts of a layer in one tensor."""

    router = "router"
    default_epsilon, default_head_dim = 1e-5, 64

    def __init__(self, source: Source, ids: Sequence[int]):
        super().__init__(source, ids)
        width = self.c.integer("sliding_window", 1, 1 << 31, 128)
        usual = ["full_attention" if i % 2 else "sliding_attention" for i in range(self.layers)]
        self.windows = [width if kind == "sliding_attention" else None for kind in self.c.items("layer_types", usual)]
        self.by_input = not self.c.has("quantization_config")  # blocks of MXFP4 go along the inputs, floats across

    def read_rotation(self) -> Rotation:
        return Rotation(self.c, self.head_dim, len(self.ids), theta=150000.0)

    def attend(self, q: Array, k: Array, v: Array, layer: int) -> Array:
        sinks = self.s.vector(f"{self.layer_name.format(layer)}self_attn.sinks")
        return attend(q, k, v, self.scale, self.windows[layer], sinks=sinks)

    def shares(self, liked: Array, at: str) -> Array:
        return softmax(np.where(largest(liked, self.used), liked, -np.inf).astype(liked.dtype))

    def expert(self, h: Array, at: str, expert: int) -> Array:
        """SwiGLU with limits, and 1 added to what the gate is multiplied with; even rows are the gate's."""
        limit, alpha = (self.s.dtype(self.c.number(f"swiglu_{k}", 0, 1e9, v)) for k, v in _SWIGLU.items())
        both = self._of(h, f"{at}experts.gate_up_proj", expert)
        gate, up = np.minimum(both[:, ::2], limit), np.clip(both[:, 1::2], -limit, limit)
        return self._of((up + 1) * gate * sigmoid(alpha * gate), f"{at}experts.down_proj", expert)

    def _of(self, x: Array, name: str, expert: int) -> Array:
        return x @ self.s.matrix(name, expert, transposed=self.by_input).T + self.s.rows(f"{name}_bias", [expert])


_SWIGLU = {"limit": 7.0, "alpha": 1.702}

CLASSES: dict[str, type[Decoder]] = {
    "MixtralForCausalLM": Mixtral,
    "Qwen2MoeForCausalLM": Qwen2Moe,
    "Qwen3MoeForCausalLM": Qwen3Moe,
    "GptOssForCausalLM": GptOss,
}
