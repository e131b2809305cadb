"""Llama and those that keep its names: Mistral, Qwen 2 and 3, SmolLM 3, Granite, OLMo 2, Phi 3."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..blocks import attend, silu
from ..decoder import Decoder
from ..source import Array, Source


class Mistral(Decoder):
    """A window."""

    window_key = "sliding_window"


class Qwen2(Decoder):
    """A window in some layers, where config.json switches it on."""

    def attend(self, q: Array, k: Array, v: Array, layer: int) -> Array:
        return attend(q, k, v, self.scale, self._window(layer))

    def _window(self, layer: int) -> int | None:
        if not self.c.boolean("use_sliding_window", False):
            return None
        first = self.c.integer("max_window_layers", 0, 1 << 16, 28)
        usual = ["sliding_attention" if i >= first else "full_attention" for i in range(self.layers)]
        slides = self.c.items("layer_types", usual)[layer] == "sliding_attention"
        return self.c.integer("sliding_window", 1, 1 << 31, 4096) if slides else None


class Qwen3(Qwen2):
    """Norms of each head's queries and keys."""

    default_head_dim: int | None = 128

    def norm_heads(self, q: Array, k: Array, at: str) -> tuple[Array, Array]:
        return self.norm(q, at + "self_attn.q_norm"), self.norm(k, at + "self_attn.k_norm")


class SmolLM3(Decoder):
    """Some layers know no positions."""

    def rotate(self, x: Array, layer: int) -> Array:
        period = self.c.integer("no_rope_layer_interval", 1, 1 << 16, 4)
        usual = [int((i + 1) % period != 0) for i in range(self.layers)]
        return super().rotate(x, layer) if self.c.items("no_rope_layers", usual)[layer] else x


class Granite(Decoder):
    """Four multipliers."""

    def __init__(self, source: Source, ids: Sequence[int]):
        super().__init__(source, ids)
        self.scale = self._multiplier("attention")

    def _multiplier(self, name: str) -> float:
        return self.c.number(f"{name}_multiplier", -1e9, 1e9, 1.0)

    def embed(self) -> Array:
        return super().embed() * self.s.dtype(self._multiplier("embedding"))

    def attention(self, h: Array, layer: int, at: str) -> Array:
        return super().attention(h, layer, at) * self.s.dtype(self._multiplier("residual"))

    def feed(self, h: Array, at: str) -> Array:
        return super().feed(h, at) * self.s.dtype(self._multiplier("residual"))

    def logits_of(self, x: Array) -> Array:
        return super().logits_of(x) / self.s.dtype(self.c.number("logits_scaling", 1e-9, 1e9, 1.0))


class Olmo2(Decoder):
    """Norms behind attention and feed-forward instead of before, and over all queries and all keys together."""

    default_epsilon = 1e-5

    def project(self, h: Array, at: str) -> tuple[Array, Array, Array]:
        q, k, v = super().project(h, at)
        return self.norm(q, at + "self_attn.q_norm"), self.norm(k, at + "self_attn.k_norm"), v

    def layer(self, x: Array, layer: int) -> Array:
        at = self.layer_name.format(layer)
        x = x + self.norm(self.attention(x, layer, at), at + "post_attention_layernorm")
        return x + self.norm(self.feed(x, at + self.mlp), at + "post_feedforward_layernorm")


class Phi3(Mistral):
    """Queries, keys and values in one matrix, gate and up in another; part of a head is rotated."""

    default_epsilon = 1e-5

    def project(self, h: Array, at: str) -> tuple[Array, Array, Array]:
        sizes = [n * self.head_dim for n in (self.heads, self.kv_heads)]
        q, k, v = np.split(self.s.linear(h, at + "self_attn.qkv_proj"), [sizes[0], sizes[0] + sizes[1]], axis=1)
        return q, k, v

    def feed(self, h: Array, at: str) -> Array:
        gate, up = np.split(self.s.linear(h, at + "gate_up_proj"), 2, axis=1)
        return self.s.linear(silu(gate) * up, at + "down_proj")


CLASSES: dict[str, type[Decoder]] = {
    "LlamaForCausalLM": Decoder,
    "LlamaModel": Decoder,
    "MistralForCausalLM": Mistral,
    "MistralModel": Mistral,
    "Qwen2ForCausalLM": Qwen2,
    "Qwen2Model": Qwen2,
    "Qwen3ForCausalLM": Qwen3,
    "Qwen3Model": Qwen3,
    "SmolLM3ForCausalLM": SmolLM3,
    "GraniteForCausalLM": Granite,
    "Olmo2ForCausalLM": Olmo2,
    "Phi3ForCausalLM": Phi3,
}
