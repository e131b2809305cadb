"""Latent attention: files of the older layout, every type of cache, and keys that must agree with each other."""

from __future__ import annotations

from pathlib import Path

import architectures
import numpy as np
import pytest
from conversions import refused
from gguf_models import Entries, Tensors, logits, opened, rewritten

from halfbyte import convert_checkpoint
from halfbyte.errors import HalfbyteWarning, ModelFileError
from halfbyte.quant.formats import FORMATS
from halfbyte.quant.gguf_reader import open_gguf
from halfbyte.runtime.models import read_model

ROW = architectures.BY_NAME["deepseek2-lite"]
HEADS, LATENT, PLAIN, VALUE = 4, 32, 32, 32


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deepseek2")
    convert_checkpoint(architectures.build(folder / "checkpoint", ROW), folder / "m.gguf", "f32")
    return folder / "m.gguf"


def older(source: Path, target: Path, type: str) -> Path:
    """Write keys and values of a head as one tensor of `type`, and the lengths of heads under the usual keys."""

    def metadata(entries: Entries) -> None:
        for name in ("key_length", "value_length"):
            entries[f"deepseek2.attention.{name}"] = entries.pop(f"deepseek2.attention.{name}_mla")
        entries["deepseek2.attention.head_count_kv"] = ("uint32", HEADS)

    def tensors(held: Tensors) -> None:
        for name in [name for name in held if name.endswith("attn_k_b.weight")]:
            keys = held.pop(name)[2].view(np.float32).reshape(HEADS, LATENT, PLAIN).transpose(0, 2, 1)
            values = held.pop(name.replace("k_b", "v_b"))[2].view(np.float32).reshape(HEADS, VALUE, LATENT)
            both = np.concatenate([keys, values], axis=1).reshape(-1, LATENT)
            held[name.replace("k_b", "kv_b")] = (both.shape, FORMATS[type], FORMATS[type].quantize(both))

    return rewritten(source, target, metadata, tensors)


def test_older_layout(file: Path, tmp_path: Path) -> None:
    with opened(older(file, tmp_path / "older.gguf", "f32")) as engine:
        np.testing.assert_allclose(logits(engine, ROW.golden["ids"]), ROW.logits, atol=1e-3)


def test_older_layout_in_blocks_says_what_it_takes(file: Path, tmp_path: Path) -> None:
    """Q8_0 of matrices that are multiplied as they are and transposed: rounded once, by the file."""
    with (
        pytest.warns(HalfbyteWarning, match=r"4 of type q8_0 run as f32 \(nothing is lost\)"),
        opened(older(file, tmp_path / "older.gguf", "q8_0")) as engine,
    ):
        error = np.sqrt(((logits(engine, ROW.golden["ids"]) - ROW.logits) ** 2).mean())
    assert 1e-4 < error < 0.1


@pytest.mark.parametrize(("type", "most"), [("f16", 0.01), ("q8_0", 0.1), ("q4_0", 0.5)])
def test_caches(file: Path, type: str, most: float) -> None:
    """Keys and values are the same rows, of which q4_0 turns the keys."""
    with opened(file, cache_type=type) as engine:
        error = np.sqrt(((logits(engine, ROW.golden["ids"]) - ROW.logits) ** 2).mean())
        assert engine.cache_bytes < 4
    print(f"{type}: error {error:.1e}")
    assert 0 < error < most


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("attention.kv_lora_rank", 1023, "an even sum up to 1024"),
        ("attention.key_length_mla", 16, "17 up to 1024"),
        ("attention.value_length_mla", 16, "blk.0.attn_v_b.weight"),
        ("rope.dimension_count", 15, "an even sum"),
        ("expert_shared_count", 3, "ffn_gate_shexp"),
        ("leading_dense_block_count", 0, "blk.0.ffn_gate_inp.weight"),
    ],
)
def test_keys_that_do_not_fit(file: Path, tmp_path: Path, key: str, value: int, words: str) -> None:
    changed = rewritten(
        file, tmp_path / "m.gguf", lambda entries: entries.update({f"deepseek2.{key}": ("uint32", value)})
    )
    with pytest.raises(ModelFileError) as found, opened(changed):
        pass
    assert words in str(found.value)


@pytest.mark.parametrize(
    ("entries", "key", "words"),
    [
        ({"group_count": 5}, "expert_group_count", "is 5 with 12 experts"),
        ({"group_count": 12}, "expert_group_count", "2 or more"),
        ({"group_used_count": 5}, "expert_group_used_count", "up to 4"),
        ({"group_used_count": 1, "used_count": 4}, "expert_group_used_count", "of 3 experts each, but a row goes to 4"),
    ],
)
def test_groups_that_do_not_fit(tmp_path: Path, entries: dict[str, int], key: str, words: str) -> None:
    folder = architectures.build(tmp_path / "checkpoint", architectures.BY_NAME["deepseek3-groups"])
    convert_checkpoint(folder, tmp_path / "sound.gguf", "f32")
    wrong = {f"deepseek2.expert_{name}": ("uint32", value) for name, value in entries.items()}
    changed = rewritten(tmp_path / "sound.gguf", tmp_path / "m.gguf", lambda held: held.update(wrong))
    with pytest.raises(ModelFileError) as found, opened(changed):
        pass
    assert f"deepseek2.{key}" in str(found.value) and words in str(found.value)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"n_group": 5}, "is 5; 12 experts need groups of the same size, 2 or more"),
        ({"n_group": 12}, "is 12; 12 experts"),
        ({"topk_group": 5}, "topk_group"),
        ({"topk_group": 1, "num_experts_per_tok": 4}, "is 1, of 3 experts each; a token needs 4"),
    ],
)
def test_groups_of_a_checkpoint_that_do_not_fit(tmp_path: Path, keys: dict[str, int], words: str) -> None:
    folder = architectures.build(tmp_path / "checkpoint", architectures.BY_NAME["deepseek2-groups"], **keys)
    refused(folder, ModelFileError, words)


def test_the_cache_holds_latents(file: Path) -> None:
    with open_gguf(file) as opened_file:
        model = read_model(opened_file)
    assert (model.n_kv_heads, model.head_dim) == (1, LATENT + 16)
