"""Decoders with layer norms: StarCoder 2, Phi 1 and 2, StableLM, GPT-NeoX and Pythia, GPT-2, Falcon."""

from __future__ import annotations

import numpy as np

from ..blocks import Rotation, alibi_slopes, attend, gelu, gelu_tanh, layer_norm
from ..decoder import Decoder
from ..source import Array


class LayerNorms(Decoder):
    """Norms that take the mean away, a feed-forward of two matrices."""

    epsilon_key = "layer_norm_eps"
    default_epsilon = 1e-5
    function_key, default_function = "hidden_act", "gelu_new"
    up, down = "fc1", "fc2"

    def norm(self, x: Array, name: str) -> Array:
        bias = self.s.vector(f"{name}.bias") if self.s.has(f"{name}.bias") else None
        return layer_norm(x, self.s.vector(f"{name}.weight"), bias, self.epsilon)

    def feed(self, h: Array, at: str) -> Array:
        return self.s.linear(self.activate(self.s.linear(h, at + self.up)), at + self.down)

    def grouped(self, h: Array, name: str) -> tuple[Array, Array, Array]:
        """Project by one matrix: rows of a group's queries, of its key, of its value, and so on with the next."""
        groups = len(h), self.kv_heads, self.heads // self.kv_heads + 2, self.head_dim
        found = np.split(self.s.linear(h, name).reshape(groups), [groups[2] - 2, groups[2] - 1], axis=2)
        q, k, v = (x.reshape(len(h), -1) for x in found)
        return q, k, v

    def activate(self, x: Array) -> Array:
        exact = self.c.text(self.function_key, self.default_function) == "gelu"
        return gelu(x) if exact else gelu_tanh(x)


class Starcoder2(LayerNorms):
    epsilon_key, window_key = "norm_epsilon", "sliding_window"
    up, down = "c_fc", "c_proj"


class Phi(LayerNorms):
    """Attention and feed-forward side by side; part of a head is rotated."""

    parallel, default_partial = True, 0.5
    output, last_norm = "self_attn.dense", "model.final_layernorm"


class StableLm(LayerNorms):
    """SwiGLU; side by side or not, and norms of each head with weights of its own."""

    default_partial = 0.25

    def read_sizes(self) -> None:
        super().read_sizes()
        self.parallel = self.c.boolean("use_parallel_residual", False)

    def feed(self, h: Array, at: str) -> Array:
        return Decoder.feed(self, h, at)

    def norm_heads(self, q: Array, k: Array, at: str) -> tuple[Array, Array]:
        if not self.c.boolean("qk_layernorm", False):
            return q, k
        q, k = (self._each(x, f"{at}self_attn.{letter}_layernorm.norms.") for x, letter in ((q, "q"), (k, "k")))
        return q, k

    def _each(self, x: Array, name: str) -> Array:
        heads = [self.norm(x[:, head], f"{name}{head}") for head in range(x.shape[1])]
        return np.stack(heads, axis=1)


class GptNeoX(LayerNorms):
    """Queries, keys and values of a head lie together in one matrix."""

    layer_name, embedding, head = "gpt_neox.layers.{}.", "gpt_neox.embed_in", "embed_out"
    output, last_norm, default_partial = "attention.dense", "gpt_neox.final_layer_norm", 0.25
    up, down = "dense_h_to_4h", "dense_4h_to_h"

    def read_sizes(self) -> None:
        super().read_sizes()
        self.parallel = self.c.boolean("use_parallel_residual", True)

    def read_rotation(self) -> Rotation:
        return Rotation(self.c, self.rotated("rotary_pct"), len(self.ids), key="rotary_emb_base")

    def project(self, h: Array, at: str) -> tuple[Array, Array, Array]:
        return self.grouped(h, at + "attention.query_key_value")

    def parallel_input(self, x: Array, h: Array, at: str) -> Array:
        return self.norm(x, at + self.feed_norm)


class Gpt2(LayerNorms):
    """Learnt positions; matrices that are stored as [columns, rows]."""

    epsilon_key, function_key = "layer_norm_epsilon", "activation_function"
    hidden_keys, layers_keys, heads_keys = ("n_embd",), ("n_layer",), ("n_head",)
    layer_name, embedding = "transformer.h.{}.", "transformer.wte"
    attention_norm, feed_norm, last_norm = "ln_1", "ln_2", "transformer.ln_f"
    up, down = "c_fc", "c_proj"

    def read_sizes(self) -> None:
        super().read_sizes()
        if not self.s.has("transformer.wte.weight"):  # as the first files were saved
            self.layer_name, self.embedding, self.last_norm = "h.{}.", "wte", "ln_f"

    def read_rotation(self) -> None:
        return None

    def embed(self) -> Array:
        return super().embed() + self.s.rows(self.embedding.replace("wte", "wpe") + ".weight", range(len(self.ids)))

    def attention(self, h: Array, layer: int, at: str) -> Array:
        q, k, v = (x.reshape(len(h), self.heads, -1) for x in np.split(self._stored(h, at + "attn.c_attn"), 3, axis=1))
        return self._stored(self.attend(q, k, v, layer), at + "attn.c_proj")

    def feed(self, h: Array, at: str) -> Array:
        return self._stored(self.activate(self._stored(h, at + self.up)), at + self.down)

    def _stored(self, x: Array, name: str) -> Array:
        return x @ self.s.matrix(f"{name}.weight", transposed=True).T + self.s.vector(f"{name}.bias")


class Falcon(LayerNorms):
    """Rows of a group of queries, its key and its value in turn; 40B and 180B norm attention's input and the
    feed-forward's each for itself.  Falcon-RW has ALiBi, scaled as scores are, and one part after the other."""

    epsilon_key, function_key, default_function = "layer_norm_epsilon", "activation", "gelu"
    hidden_keys = ("hidden_size", "n_embed")
    layers_keys, heads_keys = ("num_hidden_layers", "n_layer"), ("num_attention_heads", "n_head")
    layer_name, embedding, last_norm = "transformer.h.{}.", "transformer.word_embeddings", "transformer.ln_f"
    output, parallel = "self_attention.dense", True
    up, down = "dense_h_to_4h", "dense_4h_to_h"

    def read_sizes(self) -> None:
        super().read_sizes()
        if self.c.boolean("new_decoder_architecture", False):
            self.kv_heads = self.size(("num_kv_heads", "n_head_kv", *self.heads_keys))
        elif self.c.boolean("multi_query", True):
            self.kv_heads = 1
        self.two_norms = self.s.has("transformer.h.0.ln_attn.weight")
        if self.two_norms:
            self.attention_norm = "ln_attn"
        self.parallel = self.c.boolean("new_decoder_architecture", False) or self.c.boolean("parallel_attn", True)

    def project(self, h: Array, at: str) -> tuple[Array, Array, Array]:
        return self.grouped(h, at + "self_attention.query_key_value")

    def parallel_input(self, x: Array, h: Array, at: str) -> Array:
        return self.norm(x, at + "ln_mlp") if self.two_norms else h

    def read_rotation(self) -> Rotation | None:
        return None if self.c.boolean("alibi", False) else super().read_rotation()

    def attend(self, q: Array, k: Array, v: Array, layer: int) -> Array:
        slopes = None if self.rotation else alibi_slopes(self.heads) * self.scale
        return attend(q, k, v, self.scale, slopes=slopes)


CLASSES: dict[str, type[Decoder]] = {
    "Starcoder2ForCausalLM": Starcoder2,
    "PhiForCausalLM": Phi,
    "StableLmForCausalLM": StableLm,
    "GPTNeoXForCausalLM": GptNeoX,
    "GPT2LMHeadModel": Gpt2,
    "FalconForCausalLM": Falcon,
    "RWForCausalLM": Falcon,
}
