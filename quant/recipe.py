"""Which tensor gets which format.  Enters: names and shapes of a model's tensors, and a type; leaves: their formats.

A type is one of llama.cpp's file types ("q4_k_m"): a format for most matrices, and a finer one where an error costs
most.  Choices, fallbacks and ids are those of llama-quantize without an importance matrix (llama.cpp,
src/llama-quant.cpp); tests/test_recipe.py holds them against it.  Not here: what it does for glm5-next and
bailingmoe3 alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import UnsupportedError, UsageError, printable
from .formats import FORMATS, BlockFormat, format_by_name


@dataclass(frozen=True)
class ModelSizes:
    """What of a model's metadata the choices depend on: general.architecture and numbers of the first layer."""

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    experts: int = 0

    @property
    def shares_v(self) -> bool:
        """Whether at least four query heads share a V: it is small then, and its error counts often."""
        return self.kv_heads > 0 and self.heads // self.kv_heads >= 4

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp names it 70B, by its layers; those get a finer V."""
        if self.architecture == "llama":
            return self.layers == 80 and self.heads != self.kv_heads and self.experts != 8
        return self.layers == {"qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}.get(self.architecture)


@dataclass(frozen=True)
class _Place:
    """A tensor's place among those of its kind: the `index`-th of `count`, from 0, in a model of these sizes."""

    index: int
    count: int
    sizes: ModelSizes


_Choices = tuple[tuple[Callable[[_Place], bool], str], ...]
"""Conditions and formats; the first whose condition holds is taken, and the recipe's own format where none does."""


def _all(place: _Place) -> bool:
    return True


def _shared(place: _Place) -> bool:
    return place.sizes.shares_v


def _below(index: int) -> Callable[[_Place], bool]:
    return lambda place: place.index < index


def _first(part: int) -> Callable[[_Place], bool]:
    """The first 1/part of them."""
    return lambda place: place.index < place.count // part


def _more(place: _Place) -> bool:
    """The first and the last eighth, and every third between them."""
    i, n = place.index, place.count
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


@dataclass(frozen=True)
class Recipe:
    """One type of file.

    name       as --type takes it
    file_type  general.file_type, llama.cpp's `enum llama_ftype`
    format     of the matrices without a choice of their own
    choices    of attn_v, attn_output and ffn_down, in every layer
    """

    name: str
    file_type: int
    format: str
    choices: Mapping[str, _Choices] = field(default_factory=dict)


_GQA_AND_FIRST_EIGHTH = {"attn_v": ((_shared, "q5_k"),), "ffn_down": ((_first(8), "q5_k"),)}
_MORE_BITS = {"attn_v": ((_more, "q6_k"),), "ffn_down": ((_more, "q6_k"),)}

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("f32", 0, "f32"),
        Recipe("f16", 1, "f16"),
        Recipe("bf16", 32, "bf16"),
        Recipe("q8_0", 7, "q8_0"),
        Recipe("q4_0", 2, "q4_0"),
        Recipe("q4_1", 3, "q4_1"),
        Recipe("q5_0", 8, "q5_0"),
        Recipe("q5_1", 9, "q5_1"),
        Recipe("q2_k", 10, "q2_k", {
            "attn_v": ((_shared, "q4_k"), (_all, "q3_k")), "attn_output": ((_all, "q3_k"),),
            "ffn_down": ((_all, "q3_k"),),
        }),
        Recipe("q2_k_s", 21, "q2_k", {"attn_v": ((_shared, "q4_k"),), "ffn_down": ((_first(8), "q4_k"),)}),
        Recipe("q3_k_s", 11, "q3_k"),
        Recipe("q3_k_m", 12, "q3_k", {
            "attn_v": ((_below(2), "q5_k"), (_all, "q4_k")), "attn_output": ((_all, "q4_k"),),
            "ffn_down": ((_first(16), "q5_k"), (_all, "q4_k")),
        }),
        Recipe("q3_k_l", 13, "q3_k", dict.fromkeys(("attn_v", "attn_output", "ffn_down"), ((_all, "q5_k"),))),
        Recipe("q4_k_s", 14, "q4_k", {"attn_v": ((_below(4), "q5_k"),), "ffn_down": ((_first(8), "q5_k"),)}),
        Recipe("q4_k_m", 15, "q4_k", _MORE_BITS),
        Recipe("q5_k_s", 16, "q5_k"),
        Recipe("q5_k_m", 17, "q5_k", _MORE_BITS),
        Recipe("q6_k", 18, "q6_k"),
        Recipe("iq4_nl", 25, "iq4_nl", _GQA_AND_FIRST_EIGHTH),
        Recipe("iq4_xs", 30, "iq4_xs", _GQA_AND_FIRST_EIGHTH),
        Recipe("mxfp4_moe", 38, "mxfp4"),
    )
}  # fmt: skip
"""The types, by name."""

ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
"""Short names of types, as llama-quantize knows them."""

_FALCON: dict[str, dict[str, _Choices]] = {
    "q2_k": {"attn_output": ()},
    "q3_k_m": {"attn_output": (), "ffn_down": ((_first(16), "q5_k"), (_more, "q4_k"))},
    "q3_k_l": {"attn_output": ((_all, "q4_k"),), "ffn_down": ((_all, "q4_k"),)},
    "q4_k_s": {"ffn_down": ()},
    "q4_k_m": {"ffn_down": ((_first(16), "q6_k"), (_more, "q5_k"))},
}

_EIGHT_EXPERTS_OUTPUT_Q5_K = {"q2_k", "q3_k_s", "q3_k_m", "iq4_nl", "q4_k_s", "q4_k_m", "iq4_xs"}

_FALLBACKS = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0", "iq4_xs": "iq4_nl"}
"""What takes the place of blocks of 256 that do not divide a row; F16 where 32 does not divide it either."""

PLAIN = ("f32", "f16", "bf16")
"""Formats that round nothing in blocks."""

# Small matrices that no type rounds, by a part of their names.
_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "time_mix_first.weight",
    "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight",
    "time_mix_v2.weight", "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight",
    "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight",
    "attn_rel_b.weight", ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd",
    ".patch_merger", "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip
_KEPT_NAMES = ("position_embd.weight", "token_types.weight")

# Kinds of matrices that have choices, by a part of their names.
_KINDS = {
    "attn_qkv.weight": "attn_v", "attn_kv_b.weight": "attn_v", "attn_v.weight": "attn_v", "attn_k.weight": "attn_k",
    "attn_output.weight": "attn_output", "ffn_down": "ffn_down",
}  # fmt: skip
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")


@dataclass(frozen=True)
class Override:
    """`--tensor-type REGEX=TYPE`: tensors in whose name the regex is found get the format."""

    text: str
    pattern: re.Pattern[str]
    format: BlockFormat


def parse_override(text: str) -> Override:
    """Return "REGEX=TYPE" as an Override; upper and lower case are the same.

    UsageError when a part is missing or the regex is none; UnsupportedError, listing the formats, when TYPE is none.
    """
    regex, _, name = text.rpartition("=")
    if not regex or not name:
        raise UsageError(f"--tensor-type {printable(text)!r}: REGEX=TYPE is wanted, as in 'ffn_down=q6_k'")
    try:
        pattern = re.compile(regex, re.IGNORECASE)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"--tensor-type {printable(text)!r}: the regex is invalid: {error}") from None
    return Override(text, pattern, format_by_name(name.lower(), f"--tensor-type {printable(text)!r}"))


def recipe_by_name(name: str) -> Recipe:
    """Return the recipe of type `name`, or of what it is short for; UnsupportedError, listing them, when none is."""
    try:
        return RECIPES[ALIASES.get(name, name)]
    except KeyError:
        raise UnsupportedError("type", name, list(RECIPES)) from None


def choose_formats(
    tensors: Mapping[str, Sequence[int]],
    recipe: Recipe,
    sizes: ModelSizes,
    pure: bool = False,
    overrides: Sequence[Override] = (),
) -> dict[str, BlockFormat | None]:
    """Return the format of every tensor, None for those that no type rounds (vectors, norms, routers).

    tensors    shapes, rows first, by GGUF names
    pure       all matrices get the recipe's format where its blocks divide their rows
    overrides  formats by name, before the recipe; the first that is found in a name counts

    Raises UsageError when an override matches none of the tensors that are rounded.
    """
    rounded = [name for name, shape in tensors.items() if _is_rounded(name, shape)]
    for override in overrides:
        if not any(override.pattern.search(name) for name in rounded):
            raise UsageError(f"--tensor-type {printable(override.text)!r}: matches no tensor that is quantized")
    chooser = _Chooser(recipe, sizes, tensors)
    chosen: dict[str, BlockFormat | None] = dict.fromkeys(tensors)
    # The order counts: llama-quantize numbers V and down projections as it meets them, but for those overridden.
    for name in sorted(rounded, key=lambda name: (_layer(name), name)):
        format = next((override.format for override in overrides if override.pattern.search(name)), None)
        if format is None:
            format = FORMATS[recipe.format if pure or recipe.format in PLAIN else chooser.choose(name)]
        chosen[name] = _that_fits(format, tensors[name][-1])
    return chosen


class _Chooser:
    """Goes through the matrices of a model and counts them by kind."""

    def __init__(self, recipe: Recipe, sizes: ModelSizes, tensors: Mapping[str, Sequence[int]]):
        falcon = _FALCON.get(recipe.name, {}) if sizes.architecture == "falcon" else {}
        self._choices = {**recipe.choices, **falcon}
        self._recipe, self._sizes, self._tensors = recipe, sizes, tensors
        self._seen = {"attn_v": 0, "ffn_down": 0}
        self._count = {"attn_v": sum(_kind(name) == "attn_v" for name in tensors), "ffn_down": sizes.layers}

    def choose(self, name: str) -> str:
        """Return the name of the format of matrix `name`, the next in llama-quantize's order."""
        recipe, shape = self._recipe, self._tensors[name]
        if name == "output.weight" or (name in _EMBEDDINGS and "output.weight" not in self._tensors):
            return self._output(shape[-1])
        if recipe.name == "mxfp4_moe":  # the experts' matrices alone are worth it
            return "mxfp4" if len(shape) > 2 and shape[-3] > 1 else "q8_0"
        kind, eight = _kind(name), self._sizes.experts == 8
        if kind in ("attn_k", "attn_v") and eight:  # small beside eight experts
            return "q8_0"
        if kind == "attn_output" and eight and self._sizes.architecture != "falcon":
            return "q5_k" if recipe.name in _EIGHT_EXPERTS_OUTPUT_Q5_K else recipe.format
        place = self._place(kind, name)
        format = next((format for holds, format in self._choices.get(kind, ()) if holds(place)), recipe.format)
        return "q5_k" if kind == "attn_v" and self._sizes.is_70b and format in ("q3_k", "q4_k") else format

    def _output(self, columns: int) -> str:
        """The matrix that makes the logits."""
        format = self._recipe.format
        if self._recipe.name == "mxfp4_moe" or self._sizes.architecture == "falcon":
            return "q8_0"
        return "q8_0" if format == "q8_0" or columns % FORMATS[format].block_size else "q6_k"

    def _place(self, kind: str, name: str) -> _Place:
        index = self._seen.get(kind, 0)
        if kind in self._seen:
            self._seen[kind] += 1
        if kind == "ffn_down" and self._sizes.experts > 1:  # a layer may have several
            index = _layer(name)
        return _Place(index, self._count.get(kind, 0), self._sizes)


def _is_rounded(name: str, shape: Sequence[int]) -> bool:
    """Whether the tensor is a matrix of weights that a type applies to."""
    matrix = any(rows > 1 for rows in shape[:-1])
    return matrix and name.endswith("weight") and name not in _KEPT_NAMES and not any(part in name for part in _KEPT)


def _kind(name: str) -> str:
    return next((kind for part, kind in _KINDS.items() if part in name), "")


def _layer(name: str) -> int:
    """Return the number of the layer that a tensor belongs to, -1 for none."""
    found = re.match(r"blk\.([0-9]+)", name)
    return int(found[1]) if found else -1


def _that_fits(format: BlockFormat, columns: int) -> BlockFormat:
    """Return `format`, or what llama-quantize takes instead where its blocks do not divide a row of `columns`."""
    if columns % format.block_size:
        format = FORMATS[_FALLBACKS.get(format.name, format.name)]
    return FORMATS["f16"] if columns % format.block_size else format
