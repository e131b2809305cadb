"""Rotary positions in config.json: both layouts, and what is refused.  That the numbers are right is shown by the
logits of tests/test_architectures.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.convert.jsonfile import Settings
from halfbyte.convert.rope import Rope, read_rope
from halfbyte.errors import ModelFileError, UnsupportedError


def rope(config: dict[str, Any], head_dim: int = 16, **options: Any) -> Rope:
    return read_rope(Settings(Path("config.json"), {"max_position_embeddings": 256} | config), head_dim, **options)


def keys(config: dict[str, Any], **options: Any) -> dict[str, Any]:
    """GGUF keys below "rope.", and the tensors as lists."""
    found = rope(config, **options)
    entries = {key.removeprefix("rope."): value for key, _, value in found.entries()}
    return entries | {name: values.tolist() for name, values in found.tensors().items()}


ORIGINAL = "original_max_position_embeddings"
YARN = {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 64}
LONG = {"rope_type": "longrope", "long_factor": [2.0] * 8, "short_factor": [1.0] * 8}
PLAIN = {"dimension_count": 16, "freq_base": 10000.0}
YARN_KEYS = {
    "scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 64,
    "scaling.yarn_beta_fast": 32.0, "scaling.yarn_beta_slow": 1.0,
}  # fmt: skip

READ: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}, PLAIN),
    "an architecture's theta": ({}, {"theta": 5e5}, PLAIN | {"freq_base": 5e5}),
    "old layout": ({"rope_theta": 1e6, "rope_scaling": None}, {}, PLAIN | {"freq_base": 1e6}),
    "new layout": ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {}, PLAIN | {"freq_base": 1e6}),
    "both thetas": ({"rope_parameters": {"rope_theta": 1e6}, "rope_theta": 5.0}, {}, PLAIN | {"freq_base": 1e6}),
    "another name of theta": (
        {"rotary_emb_base": 500, "rotary_pct": 0.5},
        {"theta_key": "rotary_emb_base", "partial_key": "rotary_pct", "partial": 1.0},
        {"dimension_count": 8, "freq_base": 500.0},
    ),
    "a part of each head": ({}, {"partial": 0.25}, PLAIN | {"dimension_count": 4}),
    "a part inside": (
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.75}}, {"partial": 0.25},
        PLAIN | {"dimension_count": 12},
    ),
    "types of layers": (
        {"rope_parameters": {"full_attention": {"rope_theta": 7.0}, "sliding_attention": YARN}},
        {"layer_type": "sliding_attention"}, PLAIN | YARN_KEYS,
    ),
    "one for all types of layers": ({"rope_theta": 7.0}, {"layer_type": "full_attention"}, PLAIN | {"freq_base": 7.0}),
    "linear": (
        {"rope_scaling": {"type": "linear", "factor": 2}}, {},
        PLAIN | {"scaling.type": "linear", "scaling.factor": 2.0},
    ),
    "dynamic": (
        {"rope_scaling": {"type": "dynamic", "factor": 2}}, {},
        PLAIN | {"scaling.dynamic_factor": 2.0, "scaling.original_context_length": 256},
    ),
    "yarn": ({"rope_scaling": YARN}, {}, PLAIN | YARN_KEYS),
    "yarn from the context": (
        {"rope_scaling": {"type": "yarn", "factor": 4.0}}, {},
        PLAIN | YARN_KEYS | {"scaling.original_context_length": 256},
    ),
    "yarn, not truncated": (
        {"rope_scaling": YARN | {"truncate": False}}, {}, PLAIN | YARN_KEYS | {"scaling.yarn_truncate": False},
    ),
    "yarn with an attention factor": (
        {"rope_scaling": YARN | {"attention_factor": 1.0}}, {},
        PLAIN | YARN_KEYS | {"scaling.attn_factor": pytest.approx(1 / (1 + 0.1 * np.log(4)))},
    ),
    "longrope under its old name": (
        {"rope_scaling": LONG | {"rope_type": "su", ORIGINAL: 8}, ORIGINAL: 64}, {},
        PLAIN | {
            "scaling.type": "longrope", "scaling.original_context_length": 64,
            "scaling.attn_factor": pytest.approx((1 + np.log(4) / np.log(64)) ** 0.5),
            "rope_factors_long.weight": [2.0] * 8, "rope_factors_short.weight": [1.0] * 8,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_what_is_written(case: str) -> None:
    config, options, wanted = READ[case]
    assert keys(config, **options) == wanted


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "another kind": ({"rope_scaling": {"type": "mrope"}}, UnsupportedError, "rope type 'mrope'.*default, linear"),
    "another key": (
        {"rope_scaling": {"type": "linear", "factor": 2, "alpha": 3}}, UnsupportedError, "rope_scaling.alpha '3'",
    ),
    "a part of each head": ({"partial_rotary_factor": 0.5}, UnsupportedError, "partial_rotary_factor '0.5'"),
    "a factor below 1": ({"rope_scaling": {"type": "linear", "factor": 0.5}}, ModelFileError, "factor: is 0.5"),
    "factors that are too few": (
        {"rope_scaling": LONG | {"long_factor": [1.0]}}, ModelFileError, "long_factor: holds 1 values; 8 positive",
    ),
    "factors that are no numbers": (
        {"rope_scaling": LONG | {"short_factor": [True] * 8}}, ModelFileError, "short_factor.*8 positive numbers",
    ),
    "dynamic from another context": (
        {"rope_scaling": {"type": "dynamic", "factor": 2, ORIGINAL: 64}}, ModelFileError,
        "original_max_position_embeddings: is 64; max_position_embeddings 256 is allowed with dynamic",
    ),
    "dynamic of one pair": (
        {"partial_rotary_factor": 0.125, "rope_scaling": {"type": "dynamic", "factor": 2}}, UnsupportedError,
        "rotated elements of a head with dynamic rope '2'.*4 or more",
    ),
    "a fixed alpha": (
        {"rope_scaling": {"type": "dynamic", "factor": 1, "alpha": 1000}}, UnsupportedError,
        "rope_scaling.alpha '1000'",
    ),
    "yarn that is not finetuned": ({"rope_scaling": YARN | {"finetuned": False}}, UnsupportedError, "finetuned"),
    "no type": ({"rope_parameters": {"rope_theta": 5.0, "factor": 2.0}}, ModelFileError, "type: is missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    config, error, said = REFUSED[case]
    with pytest.raises(error, match=said):
        rope(config, partial=1.0 if "pair" in case else None)


def test_an_odd_part_of_a_head_is_refused() -> None:
    with pytest.raises(ModelFileError, match="leaves 0 of 16 elements"):
        rope({"partial_rotary_factor": 0.05}, partial=1.0)
    with pytest.raises(ModelFileError, match="leaves 3 of 12 elements"):
        rope({}, head_dim=12, partial=0.25)
