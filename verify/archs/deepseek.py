"""DeepSeek 2 and 3, and Moonlight."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..blocks import attend, largest, rms_norm, sigmoid, softmax
from ..decoder import Decoder
from ..source import Array, Source
from .experts import Experts


class DeepSeek2(Experts):
    """Keys and values are made of a latent vector for each token, as queries may be; a part of each key is rotated,
    the same for all heads.  Shared experts beside those that the router picks."""

    default_used, default_scale = 6, 1.0

    def __init__(self, source: Source, ids: Sequence[int]):
        super().__init__(source, ids)
        self.scale = self._magnitude() ** 2 / math.sqrt(self.plain + self.head_dim)

    def read_sizes(self) -> None:
        super().read_sizes()
        size = 1, 1 << 20
        self.latent, self.plain = self.c.integer("kv_lora_rank", *size), self.c.integer("qk_nope_head_dim", *size)
        self.head_dim = self.c.integer("qk_rope_head_dim", *size)  # what is rotated

    def _magnitude(self) -> float:
        """What YaRN multiplies whole queries and keys with, not just their rotated part."""
        found = self.c.section("rope_parameters" if self.c.has("rope_parameters") else "rope_scaling")
        part = found.number("mscale_all_dim", 0, 1e9, 0.0)
        return 1 + 0.1 * part * math.log(max(1.0, found.number("factor", 0, 1e9, 1.0)))

    def attention(self, h: Array, layer: int, at: str) -> Array:
        at, n = at + "self_attn.", len(h)
        q, turned_q = np.split(self._queries(h, at).reshape(n, self.heads, -1), [self.plain], axis=2)
        latent, turned_k = np.split(self.s.linear(h, at + "kv_a_proj_with_mqa"), [self.latent], axis=1)
        k, v = self._keys_and_values(latent, at + "kv")
        turned_k = np.repeat(self.rotate(turned_k[:, None], layer), self.heads, axis=1)
        q, k = np.concatenate([q, self.rotate(turned_q, layer)], axis=2), np.concatenate([k, turned_k], axis=2)
        return self.s.linear(attend(q, k, v, self.scale), at + "o_proj")

    def _queries(self, h: Array, at: str) -> Array:
        if not self.s.has(f"{at}q_a_proj.weight"):
            return self.s.linear(h, at + "q_proj")
        return self._of_latent(self.s.linear(h, at + "q_a_proj"), at + "q")

    def _of_latent(self, x: Array, name: str) -> Array:
        return self.s.linear(self._normed_latent(x, name), f"{name}_b_proj")

    def _normed_latent(self, x: Array, name: str) -> Array:
        """These norms have an epsilon of their own, which is no key of config.json."""
        return rms_norm(x, self.s.vector(f"{name}_a_layernorm.weight"), 1e-6)

    def _keys_and_values(self, latent: Array, name: str) -> tuple[Array, Array]:
        """Return what is not rotated of keys, and values, each [n, heads, elements].

        A file has a matrix for each, and that of the keys the other way round: queries are multiplied with it.
        """
        weight, latent = f"{name}_b_proj.weight", self._normed_latent(latent, name)
        keys, values = np.split(self.s.unrounded(weight).reshape(self.heads, -1, self.latent), [self.plain], axis=1)
        keys, values = self.s.rounded(weight, keys.transpose(0, 2, 1), 0), self.s.rounded(weight, values, -1)
        return (latent @ keys).transpose(1, 0, 2), (latent @ values.transpose(0, 2, 1)).transpose(1, 0, 2)

    def rotate(self, x: Array, layer: int) -> Array:
        """Pairs are neighbours; apart they have the same products."""
        return super().rotate(np.concatenate([x[..., ::2], x[..., 1::2]], axis=-1), layer)

    def feed(self, h: Array, at: str) -> Array:
        out = super().feed(h, at)
        shared = self.s.has(f"{at}shared_experts.{self.parts[0]}.weight")
        return out + self.gated(h, at + "shared_experts.", *self.parts) if shared else out

    def shares(self, liked: Array, at: str) -> Array:
        shares = softmax(liked)
        if self.c.get("topk_method", "greedy") == "group_limited_greedy":
            shares = np.where(self.in_groups(shares, best=1, groups=1, taken=1), shares, 0)
        return self.scaled(self.normed(np.where(largest(shares, self.used), shares, 0)))

    def in_groups(self, liked: Array, best: int, groups: int, taken: int) -> NDArray[np.bool_]:
        """Return which experts are in the groups that are picked from, [n, experts]: those whose `best` best are liked
        most together.  groups, taken: what config.json leaves out."""
        groups = self.c.integer("n_group", 1, liked.shape[1], groups)
        taken = self.c.integer("topk_group", 1, groups, min(taken, groups))
        inside = np.sort(liked.reshape(len(liked), groups, -1), axis=2)
        return np.repeat(largest(inside[:, :, -best:].sum(axis=2), taken), inside.shape[2], axis=1)

    def scaled(self, shares: Array) -> Array:
        return shares * self.s.dtype(self.c.number("routed_scaling_factor", 0, 1e9, self.default_scale))


class DeepSeek3(DeepSeek2):
    """Experts are picked with a bias that has no part in their shares."""

    default_used, default_normed, default_scale = 8, True, 2.5

    def shares(self, liked: Array, at: str) -> Array:
        liked = sigmoid(liked)
        liking = liked + self.s.vector(f"{at}{self.router}.e_score_correction_bias")
        allowed = self.in_groups(liking, best=2, groups=8, taken=4)
        picked = largest(np.where(allowed, liking, -np.inf).astype(liked.dtype), self.used)
        return self.scaled(self.normed(np.where(picked, liked, 0)))


CLASSES: dict[str, type[Decoder]] = {
    "DeepseekV2ForCausalLM": DeepSeek2,
    "DeepseekV3ForCausalLM": DeepSeek3,
}
