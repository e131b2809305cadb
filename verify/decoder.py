"""The skeleton of a reference.  Enters: a `Source` and token ids; leaves: logits.

Each method is a part of the forward pass; as they stand they are Llama's, by the names of its checkpoints.  An
architecture is a subclass with what it does otherwise (`archs`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..convert.jsonfile import Settings
from .blocks import Rotation, attend, rms_norm, silu
from .source import Array, Source

_MAX = 1 << 20


class Decoder:
    """One forward pass over `ids` of a checkpoint.

    heads, kv_heads, head_dim, layers, hidden   its sizes, by config.json
    scale        what scores of attention are multiplied with
    rotation     None: positions are told otherwise
    encodes      an encoder: rows see those behind them too, and there are no logits
    parallel     attention and feed-forward read the same hidden state
    """

    epsilon_key = "rms_norm_eps"
    default_epsilon = 1e-6
    default_head_dim: int | None = None
    default_partial = 1.0
    window_key: str | None = None
    encodes = parallel = False
    hidden_keys: Sequence[str] = ("hidden_size",)
    layers_keys: Sequence[str] = ("num_hidden_layers",)
    heads_keys: Sequence[str] = ("num_attention_heads",)
    layer_name, mlp = "model.layers.{}.", "mlp."
    attention_norm, feed_norm, last_norm = "input_layernorm", "post_attention_layernorm", "model.norm"
    output = "self_attn.o_proj"
    embedding, head = "model.embed_tokens", "lm_head"

    def __init__(self, source: Source, ids: Sequence[int]):
        self.s, self.ids = source, ids
        self.c = self.read_config()
        self._leave_out_prefix()
        self.read_sizes()
        self.scale = 1 / math.sqrt(self.head_dim)
        self.rotation = self.read_rotation()
        self.window = self.c.integer(self.window_key, 1, 1 << 31, None) if self.window_key else None

    def _leave_out_prefix(self) -> None:
        """Checkpoints that embed texts may hold the model without its head: the first word of all names is missing."""
        first, _, rest = self.embedding.partition(".")
        if not self.s.has(f"{self.embedding}.weight") and self.s.has(f"{rest}.weight"):
            names = (self.layer_name, self.embedding, self.last_norm)
            self.layer_name, self.embedding, self.last_norm = (name.removeprefix(f"{first}.") for name in names)

    def read_config(self) -> Settings:
        return self.s.config

    def read_sizes(self) -> None:
        c = self.c
        self.hidden, self.layers, self.heads = map(self.size, (self.hidden_keys, self.layers_keys, self.heads_keys))
        self.kv_heads = c.integer("num_key_value_heads", 1, _MAX, self.heads)
        self.head_dim = c.integer("head_dim", 2, _MAX, self.default_head_dim or self.hidden // self.heads)
        self.epsilon = c.number(self.epsilon_key, 0, 1, self.default_epsilon)

    def size(self, keys: Sequence[str]) -> int:
        """Return what config.json has under the first of `keys` that is there."""
        return self.c.integer(next(filter(self.c.has, keys), keys[0]), 1, _MAX)

    def read_rotation(self) -> Rotation | None:
        return Rotation(self.c, self.rotated(), len(self.ids))

    def rotated(self, key: str = "partial_rotary_factor") -> int:
        """Return how many elements of a head are rotated, the first ones."""
        inside = self.c.section("rope_parameters").values.get("partial_rotary_factor")
        return int(self.head_dim * (inside or self.c.number(key, 0, 1, self.default_partial)))

    def local_layers(self, period: int) -> list[bool]:
        """Return which layers have a window; where config.json does not say, all but the last of each `period`."""
        usual = ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(self.layers)]
        return [kind == "sliding_attention" for kind in self.c.items("layer_types", usual)]

    # -- the parts ----------------------------------------------------------------------------------------------------

    def norm(self, x: Array, name: str) -> Array:
        return rms_norm(x, self.s.vector(f"{name}.weight"), self.epsilon)

    def embed(self) -> Array:
        return self.s.rows(f"{self.embedding}.weight", self.ids)

    def project(self, h: Array, at: str) -> tuple[Array, Array, Array]:
        """Return queries, keys and values, each [n, heads * head_dim]."""
        q, k, v = (self.s.linear(h, f"{at}self_attn.{letter}_proj") for letter in "qkv")
        return q, k, v

    def norm_heads(self, q: Array, k: Array, at: str) -> tuple[Array, Array]:
        """Normalise what is [n, heads, head_dim]."""
        return q, k

    def rotate(self, x: Array, layer: int) -> Array:
        return self.rotation.apply(x) if self.rotation else x

    def attend(self, q: Array, k: Array, v: Array, layer: int) -> Array:
        return attend(q, k, v, self.scale, self.window)

    def feed(self, h: Array, at: str) -> Array:
        """SwiGLU (Shazeer 2020)."""
        return self.gated(h, at, "gate_proj", "up_proj", "down_proj")

    def gated(self, h: Array, at: str, gate: str, up: str, down: str) -> Array:
        return self.s.linear(silu(self.s.linear(h, at + gate)) * self.s.linear(h, at + up), at + down)

    def logits_of(self, x: Array) -> Array:
        """Return [n, vocab]: the product with the output matrix, or with the embeddings where there is none."""
        own = self.s.has(f"{self.head}.weight")
        return self.s.linear(x, self.head) if own else self.s.product(x, self.embedding)

    # -- together -----------------------------------------------------------------------------------------------------

    def attention(self, h: Array, layer: int, at: str) -> Array:
        q, k, v = (x.reshape(len(self.ids), -1, self.head_dim) for x in self.project(h, at))
        q, k = self.norm_heads(q, k, at)
        return self.s.linear(self.attend(self.rotate(q, layer), self.rotate(k, layer), v, layer), at + self.output)

    def layer(self, x: Array, layer: int) -> Array:
        at = self.layer_name.format(layer)
        h = self.norm(x, at + self.attention_norm)
        y = self.attention(h, layer, at)
        if self.parallel:
            return x + y + self.feed(self.parallel_input(x, h, at), at + self.mlp)
        x = x + y
        return x + self.feed(self.norm(x, at + self.feed_norm), at + self.mlp)

    def parallel_input(self, x: Array, h: Array, at: str) -> Array:
        """What a feed-forward beside attention reads: the same as it."""
        return h

    def rows(self) -> Array:
        """Return [len(ids), hidden]: what the last layer leaves, normalised."""
        x = self.embed()
        for layer in range(self.layers):
            x = self.layer(x, layer)
        return self.norm(x, self.last_norm) if self.last_norm else x

    def logits(self) -> Array:
        """Return [len(ids), vocab]."""
        return self.logits_of(self.rows())
