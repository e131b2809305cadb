"""Models that cannot be: each is refused with one line that names the key or the tensor, before anything runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_models import Entries, Models, Tensors, logits, opened, rewritten

from halfbyte.errors import HalfbyteError, ModelFileError, UnsupportedError, UsageError
from halfbyte.quant.formats import FORMATS
from halfbyte.quant.gguf_reader import open_gguf
from halfbyte.runtime.engine.engine import Engine
from halfbyte.runtime.engine.memory import Memory
from halfbyte.runtime.models import read_model
from halfbyte.runtime.options import RuntimeOptions

IDS = [1, 5, 9, 300, 17]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


def refused(file: Path, kind: type[HalfbyteError], *said: str) -> None:
    """Opening an engine for `file` raises one line with the file's name and these words."""
    with open_gguf(file) as found, pytest.raises(HalfbyteError) as raised:
        Engine(found, RuntimeOptions(threads=2))
    assert type(raised.value) is kind, raised.value
    message = str(raised.value)
    assert "\n" not in message
    for words in (str(file), *said):
        assert words in message


def put(key: str, value: Any, kind: str = "uint32") -> Callable[[Entries], None]:
    return lambda entries: entries.__setitem__(key, (kind, value))


def experts(count: int = 8, used: int = 2, **more: int) -> Callable[[Entries], None]:
    named = {"expert_count": count, "expert_used_count": used} | {f"expert_{key}": value for key, value in more.items()}
    return lambda entries: entries.update({f"llama.{key}": ("uint32", value) for key, value in named.items()})


def dynamic(factor: float, original: int | None = 64) -> Callable[[Entries], None]:
    at, found = "llama.rope.scaling.", {"dynamic_factor": ("float32", factor)}
    found |= {"original_context_length": ("uint32", original)} if original else {}
    return lambda entries: entries.update({at + key: value for key, value in found.items()})


def drop(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda held: held.pop(key)


HEADS, KV_HEADS, BASE = "llama.attention.head_count", "llama.attention.head_count_kv", "llama.rope.freq_base"
SCALING, ROTARY = "llama.rope.scaling.type", "llama.rope.dimension_count"
METADATA: dict[str, tuple[Callable[[Entries], object], type[HalfbyteError], str, str]] = {
    "no architecture": (drop("general.architecture"), ModelFileError, "general.architecture", "missing"),
    "an unknown architecture": (put("general.architecture", "mamba", "string"), UnsupportedError, "'mamba'", "llama"),
    "a path as architecture": (put("general.architecture", "../llama", "string"), UnsupportedError, "../", "llama"),
    "an inner module": (put("general.architecture", "base", "string"), UnsupportedError, "'base'", "llama"),
    "experts, nobody says how many are used": (
        put("llama.expert_count", 8), ModelFileError, "llama.expert_used_count", "missing"
    ),
    "more experts used than there are": (experts(used=9), ModelFileError, "llama.expert_used_count", "up to 8"),
    "a million experts": (experts(count=10**6), ModelFileError, "llama.expert_count", "512"),
    "groups of experts": (experts(group_count=4), UnsupportedError, "llama.expert_group_count", "supported: 1"),
    "unknown scores of experts": (experts(gating_func=7), UnsupportedError, "expert_gating_func", "2 (sigmoid)"),
    "experts without tensors": (experts(), ModelFileError, "blk.*.ffn_gate_inp.weight", "missing"),
    "no layers": (put("llama.block_count", 0), ModelFileError, "llama.block_count", "is 0"),
    "a million layers": (put("llama.block_count", 10**6), ModelFileError, "llama.block_count", "512"),
    "more layers than tensors": (put("llama.block_count", 3), ModelFileError, "blk.2.attn_q.weight", "missing"),
    "fewer layers than tensors": (put("llama.block_count", 1), ModelFileError, "blk.1.", "no part"),
    "no width": (drop("llama.embedding_length"), ModelFileError, "llama.embedding_length", "missing"),
    "another width": (put("llama.embedding_length", 128), ModelFileError, "token_embd.weight", "(420, 128)"),
    "text as width": (put("llama.embedding_length", "64", "string"), ModelFileError, "embedding_length", "integer"),
    "no heads": (put(HEADS, 0), ModelFileError, HEADS, "is 0"),
    "heads that do not divide": (
        lambda entries: entries.update({HEADS: ("uint32", 3), KV_HEADS: ("uint32", 1)}),
        ModelFileError, HEADS, "64 is not 3 heads",
    ),
    "a head of one column": (put(HEADS, 64), ModelFileError, HEADS, "64 is not 64 heads"),
    "KV heads that do not divide": (put(KV_HEADS, 3), ModelFileError, KV_HEADS, "4 heads cannot share 3"),
    "more KV heads than heads": (put(KV_HEADS, 8), ModelFileError, KV_HEADS, "up to 4"),
    "other KV heads": (put(KV_HEADS, 4), ModelFileError, "blk.0.attn_k.weight", "(64, 64)"),
    "an odd head": (put("llama.attention.key_length", 15), ModelFileError, "llama.attention", "15"),
    "an endless head": (put("llama.attention.key_length", 1 << 20), ModelFileError, "key_length", "1024"),
    "values of another width": (put("llama.attention.value_length", 8), ModelFileError, "value_length", "is 8"),
    "no feed-forward width": (drop("llama.feed_forward_length"), ModelFileError, "feed_forward_length", "missing"),
    "another feed-forward width": (put("llama.feed_forward_length", 64), ModelFileError, "ffn_gate.weight", "(64, 64)"),
    "no context": (put("llama.context_length", 0), ModelFileError, "llama.context_length", "is 0"),
    "another vocabulary": (put("llama.vocab_size", 421), ModelFileError, "421 by llama.vocab_size", "420 rows"),
    "a rope base of NaN": (put(BASE, math.nan, "float32"), ModelFileError, BASE, "nan"),
    "a rope base of 0": (put(BASE, 0.0, "float32"), ModelFileError, BASE, "is 0.0"),
    "an infinite rope base": (put(BASE, math.inf, "float32"), ModelFileError, BASE, "inf"),
    "an odd rotary width": (put(ROTARY, 7), ModelFileError, ROTARY, "is 7"),
    "a rotary width beyond the head": (put(ROTARY, 32), ModelFileError, ROTARY, "up to 16"),
    "spiral": (put(SCALING, "spiral", "string"), UnsupportedError, SCALING, "'spiral'", "none, linear, yarn, longrope"),
    "a dynamic scaling below 1": (dynamic(0.5), ModelFileError, "rope.scaling.dynamic_factor", "is 0.5"),
    "a dynamic scaling from nowhere": (dynamic(2.0, None), ModelFileError, "original_context_length", "missing"),
    "two scalings": (
        lambda entries: (dynamic(2.0)(entries), put("llama.rope.scaling.factor", 2.0, "float32")(entries)),
        ModelFileError, "dynamic_factor", "together with llama.rope.scaling.factor",
    ),
    "a dynamic scaling of one pair": (
        lambda entries: (dynamic(2.0)(entries), put(ROTARY, 2)(entries)),
        ModelFileError, "dynamic_factor", "at least 4",
    ),
    "a scaling of 0": (put("llama.rope.scaling.factor", 0.0, "float32"), ModelFileError, "scaling.factor", "is 0.0"),
    "an epsilon of NaN": (
        put("llama.attention.layer_norm_rms_epsilon", math.nan, "float32"), ModelFileError, "rms_epsilon", "nan",
    ),
    "no epsilon": (
        drop("llama.attention.layer_norm_rms_epsilon"), ModelFileError, "layer_norm_rms_epsilon", "missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", METADATA)
def test_metadata(models: Models, tmp_path: Path, name: str) -> None:
    change, kind, *said = METADATA[name]
    refused(rewritten(models.file("q8_0"), tmp_path / "m.gguf", metadata=change), kind, *said)


def vector(name: str, values: list[float]) -> Callable[[Tensors], None]:
    data = np.array(values, np.float32)
    return lambda tensors: tensors.__setitem__(name, (data.shape, FORMATS["f32"], data))


def reshaped(name: str, *shape: int) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        _, kind, data = tensors[name]
        tensors[name] = (shape, kind, np.resize(data, kind.nbytes(shape)))

    return change


TENSORS: dict[str, tuple[Callable[[Tensors], object], str, str]] = {
    "no embedding": (drop("token_embd.weight"), "token_embd.weight", "missing"),
    "no norm": (drop("blk.1.ffn_norm.weight"), "blk.1.ffn_norm.weight", "missing"),
    "no value matrix": (drop("blk.0.attn_v.weight"), "blk.0.attn_v.weight", "missing"),
    "a short matrix": (reshaped("blk.0.ffn_up.weight", 95, 64), "blk.0.ffn_up.weight", "(95, 64)"),
    "a turned matrix": (reshaped("blk.1.ffn_down.weight", 96, 64), "blk.1.ffn_down.weight", "(96, 64)"),
    "a matrix as vector": (reshaped("blk.1.attn_q.weight", 64 * 64), "blk.1.attn_q.weight", "(4096,)"),
    "an output of other rows": (reshaped("output.weight", 419, 64), "output.weight", "(419, 64)"),
    "a short norm": (vector("output_norm.weight", [1.0] * 63), "output_norm.weight", "(63,)"),
    "a norm of NaN": (vector("blk.0.attn_norm.weight", [math.nan] * 64), "blk.0.attn_norm.weight", "not finite"),
    "a bias of infinity": (vector("blk.0.attn_q.bias", [math.inf] * 64), "blk.0.attn_q.bias", "not finite"),
    "rope factors of 0": (vector("rope_freqs.weight", [0.0] * 8), "rope_freqs.weight", "positive"),
    "too many rope factors": (vector("rope_freqs.weight", [1.0] * 16), "rope_freqs.weight", "(16,)"),
    "a bias that is not computed": (vector("blk.0.ffn_norm.bias", [1.0] * 96), "blk.0.ffn_norm.bias", "no part"),
    "a norm of keys": (vector("blk.0.attn_k_norm.weight", [1.0] * 16), "blk.0.attn_k_norm.weight", "no part"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors(models: Models, tmp_path: Path, name: str) -> None:
    change, *said = TENSORS[name]
    refused(rewritten(models.file("q8_0"), tmp_path / "m.gguf", tensors=change), ModelFileError, *said)


def test_a_model_that_is_sound_after_all(models: Models, tmp_path: Path) -> None:
    """The same helper, nothing changed: the refusals above are not the helper's."""
    with opened(rewritten(models.file("q8_0"), tmp_path / "m.gguf")) as copy, opened(models.file("q8_0")) as engine:
        np.testing.assert_array_equal(logits(copy, IDS), logits(engine, IDS))


@pytest.mark.parametrize("key", ["llama.rope.scaling.factor", "llama.rope.scale_linear"])
def test_linear_scaling_is_the_default_type(models: Models, tmp_path: Path, key: str) -> None:
    """Files of older converters: a factor and no type, which llama.cpp reads as linear."""

    def change(entries: Entries) -> None:
        entries[key] = entries.pop("llama.rope.scaling.factor")
        del entries["llama.rope.scaling.type"]

    scaled = models.file("f32", rope_scaling="linear")
    with opened(rewritten(scaled, tmp_path / "m.gguf", metadata=change)) as old, opened(scaled) as engine:
        np.testing.assert_array_equal(logits(old, IDS), logits(engine, IDS))


def test_only_the_first_columns_of_a_head_rotate(models: Models, tmp_path: Path) -> None:
    """rope.dimension_count 8 of 16: as a model whose other pairs do not turn, which no rotary factor can slow more."""
    source = models.file("f32")
    frozen = 10000.0 ** (-np.arange(0, 16, 2) / 16) / 10000.0 ** (-np.arange(0, 16, 2) / 8)
    frozen[4:] = 1e30  # position / 1e30 turns nothing
    part = rewritten(source, tmp_path / "part.gguf", metadata=put(ROTARY, 8))
    whole = rewritten(source, tmp_path / "whole.gguf", tensors=vector("rope_freqs.weight", frozen.tolist()))
    with opened(part) as a, opened(whole) as b, opened(source) as plain:
        np.testing.assert_allclose(logits(a, IDS), logits(b, IDS), atol=1e-4)
        assert np.abs(logits(a, IDS) - logits(plain, IDS)).max() > 0.1


def test_hyper_parameters_are_read_without_defaults_in_their_way(models: Models) -> None:
    fields = {"heads": 6, "kv_heads": 3, "head_dim": 8, "ffn": 100, "context": 333, "layers": 3, "rope_theta": 5e5}
    with open_gguf(models.file("f16", **fields)) as file:
        model = read_model(file)
    found = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    (rotation,) = found.pop("rotations")
    np.testing.assert_allclose(rotation.frequencies, 5e5 ** (-np.arange(0, 8, 2) / 8), rtol=1e-6)
    assert found.pop("epsilon") == pytest.approx(1e-5)
    assert found == {
        "n_layers": 3, "n_vocab": 420, "n_embd": 64, "n_heads": 6, "n_kv_heads": 3, "head_dim": 8, "n_ctx_train": 333,
        "n_ff": 100, "window": 0, "whole": (), "scores": None, "embedding_scale": 1.0, "residual_scale": 1.0,
        "logit_scale": 1.0, "mixture": None, "fused_ff": False,
    }  # fmt: skip


def test_memory_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match=r"no memory for the moon: .* GiB wanted"):
        Memory(1 << 62, "the moon")
