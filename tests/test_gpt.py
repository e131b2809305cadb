"""What the models of GPT-2's form have beside their logits: slopes, older names, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import architectures
import numpy as np
import pytest
import tiny
from conversions import edit, metadata, refused
from gguf_models import opened, rewritten

from halfbyte import convert_checkpoint
from halfbyte.errors import HalfbyteError, ModelFileError, UnsupportedError, UsageError
from halfbyte.quant.gguf_reader import open_gguf
from halfbyte.runtime.models import read_model
from halfbyte.runtime.models.gpt import alibi_slopes


def checkpoint(folder: Path, row: str) -> Path:
    return architectures.build(folder / "checkpoint", architectures.BY_NAME[row])


def file_of(folder: Path, row: str) -> Path:
    convert_checkpoint(checkpoint(folder, row), folder / "m.gguf", "f32")
    return folder / "m.gguf"


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 40, 71, 112])
@pytest.mark.parametrize("bias", [8.0, 16.0])
def test_slopes_are_those_of_mpts_rule(heads: int, bias: float) -> None:
    """All slopes of the next power of two; of fewer heads the even places first, then the odd ones."""
    above = 1 << (heads - 1).bit_length()
    every = 2.0 ** (-bias / above * np.arange(1, above + 1))
    want = every if above == heads else np.concatenate([every[1::2], every[::2]])[:heads]
    np.testing.assert_allclose(alibi_slopes(heads, bias), want, rtol=1e-6)


@pytest.mark.parametrize(("row", "head"), [("gpt2", "h.0.attn."), ("bloom", "h.0.self_attention.")])
def test_names_of_the_model_without_its_head(tmp_path: Path, row: str, head: str) -> None:
    """As the first published checkpoints have them, with the buffers that they store."""
    folder = checkpoint(tmp_path, row)
    tensors = architectures.weights(architectures.BY_NAME[row], architectures.BY_NAME[row].golden["tensors"])
    bare = {name.removeprefix("transformer."): values for name, values in tensors.items()}
    if row == "gpt2":
        bare[f"{head}bias"] = np.tri(256, dtype=np.float32).reshape(1, 1, 256, 256)
        bare[f"{head}masked_bias"] = np.array(-1e4, np.float32)
    tiny.write_safetensors(folder / "model.safetensors", bare, "f32")
    convert_checkpoint(folder, tmp_path / "bare.gguf", "f32")
    assert (tmp_path / "bare.gguf").read_bytes() == file_of(tmp_path / "again", row).read_bytes()


def test_falcons_first_names_of_keys(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "falcon-grouped")
    convert_checkpoint(folder, tmp_path / "new.gguf", "f32")
    old = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "num_kv_heads": "n_head_kv"}
    edit(folder / "config.json", lambda c: c.update({old[key]: c.pop(key) for key in old}))
    convert_checkpoint(folder, tmp_path / "old.gguf", "f32")
    assert (tmp_path / "old.gguf").read_bytes() == (tmp_path / "new.gguf").read_bytes()


def test_a_context_beyond_the_learned_positions(tmp_path: Path) -> None:
    file = file_of(tmp_path, "gpt2")
    with opened(file, context=256) as engine:
        assert engine.n_ctx == 256
    with pytest.raises(UsageError, match="positions for 256"), opened(file, context=257):
        pass


def test_only_the_unusual_gelu_is_written(tmp_path: Path) -> None:
    assert "gpt2.hidden_activation" not in metadata(file_of(tmp_path / "usual", "gpt2"))
    assert metadata(file_of(tmp_path / "other", "gpt2-untied"))["gpt2.hidden_activation"] == "gelu"


CONFIGS: dict[str, tuple[str, dict[str, Any], type[HalfbyteError], tuple[str, ...]]] = {
    "ReLU": ("gpt2", {"activation_function": "relu"}, UnsupportedError, ("activation_function", "gelu_new")),
    "scores by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, UnsupportedError, ("inverse_layer",)),
    "two numbers of layers": ("gpt2", {"num_hidden_layers": 3}, ModelFileError, ("num_hidden_layers", "n_layer is 2")),
    "heads that do not divide": ("gpt2", {"n_head": 5}, ModelFileError, ("n_head", "does not divide")),
    "heads of 1": ("gpt2", {"n_head": 64}, ModelFileError, ("n_head", "heads of 1")),
    "Falcon without biases that it says it has": (
        "falcon", {"bias": True}, ModelFileError, ("query_key_value.bias", "is missing")
    ),
    "Falcon's shares": ("falcon-grouped", {"num_kv_heads": 3}, ModelFileError, ("num_kv_heads", "does not divide")),
    "NeoX without biases": ("gptneox", {"attention_bias": False}, UnsupportedError, ("attention_bias 'false'",)),
    "MPT without ALiBi": ("mpt", {"attn_config": {"alibi": False}}, UnsupportedError, ("attn_config.alibi 'false'",)),
    "MPT's new key": ("mpt", {"attn_config": {"bonus": 2}}, UnsupportedError, ("attn_config.bonus '2'",)),
    "MPT with biases": ("mpt", {"no_bias": False}, UnsupportedError, ("no_bias 'false'",)),
    "BLOOM after its norm": (
        "bloom", {"apply_residual_connection_post_layernorm": True}, UnsupportedError, ("post_layernorm 'true'",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_that_are_refused(tmp_path: Path, name: str) -> None:
    row, changes, error, said = CONFIGS[name]
    folder = architectures.build(tmp_path / "checkpoint", architectures.BY_NAME[row], **changes)
    refused(folder, error, *said)


@pytest.mark.parametrize(
    ("row", "key", "kind", "value"),
    [
        ("mpt", "mpt.attention.max_alibi_bias", "float32", 0.0),
        ("gptneox", "gptneox.hidden_activation", "string", "silu"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, row: str, key: str, kind: str, value: object) -> None:
    file = rewritten(file_of(tmp_path, row), tmp_path / "edited.gguf", lambda e: e.update({key: (kind, value)}))
    with open_gguf(file) as found, pytest.raises(UnsupportedError, match=key):
        read_model(found)
