"""Checkpoints that cannot be converted: one clear line that names the place, and nothing left behind."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from conversions import refused

from halfbyte import convert_checkpoint
from halfbyte.errors import ModelFileError, OutputExistsError, UnsupportedError, UsageError
from halfbyte.quant.gguf_reader import open_gguf

TYPES = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]


# ------------------------------------------------------------------------------------------------------ bad input


def edited(folder: Path, **changes: Any) -> Path:
    """Build a checkpoint whose config.json has these keys changed; None removes a key."""
    tiny.build(folder / "m", tiny.Tiny())
    file = folder / "m" / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder / "m"


UNSUPPORTED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "architecture": (
        {"architectures": ["Qwen9ForCausalLM"]},
        ("architecture 'Qwen9ForCausalLM'", "LlamaForCausalLM, LlamaModel, MPTForCausalLM, MistralForCausalLM"),
    ),
    "architecture that is no name": ({"architectures": ["../llama"]}, ("LlamaForCausalLM",)),
    "architecture in lower case": ({"architectures": ["llamaForCausalLM"]}, ("LlamaForCausalLM",)),
    "activation": ({"hidden_act": "gelu"}, ("config.json hidden_act", "gelu", "silu")),
    "mlp_bias": ({"mlp_bias": True}, ("mlp_bias 'true'", "supported: false")),
    "quantized": (
        {"quantization_config": {"quant_method": "exl2"}},
        ("quantization_config.quant_method 'exl2'", "awq"),
    ),
    "partial rotary": ({"partial_rotary_factor": 0.5}, ("partial_rotary_factor",)),
    "rope": ({"rope_scaling": {"type": "mrope", "factor": 4.0}}, ("rope type 'mrope'", "default, linear, dynamic")),
    "sliding layers": ({"layer_types": ["full_attention", "sliding_attention"]}, ("layer_types",)),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_settings_are_refused_by_name(tmp_path: Path, case: str) -> None:
    changes, said = UNSUPPORTED[case]
    refused(edited(tmp_path, **changes), UnsupportedError, *said, "supported:", "config.json")


WRONG: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "no architecture": ({"architectures": None}, ("key architectures: is missing",)),
    "two architectures": ({"architectures": ["A", "B"]}, ("2 architectures",)),
    "layers too many": ({"num_hidden_layers": 3}, ("model.layers.2.input_layernorm.weight", "is missing")),
    "layers too few": ({"num_hidden_layers": 1}, ("model.layers.1.", "num_hidden_layers 1")),
    "layers absurd": ({"num_hidden_layers": 1431655766}, ("num_hidden_layers", "1431655766")),
    "layers as text": ({"num_hidden_layers": "2"}, ('num_hidden_layers: is "2"',)),
    "layers negative": ({"num_hidden_layers": -1}, ("num_hidden_layers: is -1",)),
    "layers true": ({"num_hidden_layers": True}, ("num_hidden_layers: is true",)),
    "no hidden_size": ({"hidden_size": None}, ("hidden_size: is missing",)),
    "hidden_size": ({"hidden_size": 128, "head_dim": 16}, ("[420, 64]", "[420, 128]", "hidden_size")),
    "heads that do not divide": ({"num_attention_heads": 3}, ("num_key_value_heads",)),
    "hidden that heads do not divide": (
        {"num_attention_heads": 6, "num_key_value_heads": 2},
        ("num_attention_heads", "6", "64"),
    ),
    "kv heads": ({"num_key_value_heads": 4}, ("k_proj.weight", "[32, 64]", "[64, 64]", "num_key_value_heads")),
    "kv heads more": ({"num_key_value_heads": 8}, ("num_key_value_heads", "8", "4")),
    "no heads": ({"num_attention_heads": 0}, ("num_attention_heads: is 0",)),
    "head_dim absurd": ({"head_dim": 1 << 19}, ("head_dim", "524288")),
    "odd head_dim": ({"head_dim": 15}, ("head_dim", "15", "even")),
    "head_dim": ({"head_dim": 32}, ("q_proj.weight", "[64, 64]", "[128, 64]", "head_dim")),
    "intermediate_size": ({"intermediate_size": 97}, ("gate_proj.weight", "[96, 64]", "[97, 64]")),
    "vocab_size": ({"vocab_size": 421}, ("embed_tokens.weight", "[420, 64]", "[421, 64]", "vocab_size")),
    "tied after all": ({"tie_word_embeddings": True}, ("lm_head.weight", "tie_word_embeddings true")),
    "bias that is not there": ({"attention_bias": True}, ("q_proj.bias", "is missing")),
    "eps": ({"rms_norm_eps": "small"}, ("rms_norm_eps",)),
    "theta": ({"rope_theta": 0}, ("rope_theta",)),
    "both ropes": (
        {"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "default"}},
        ("rope_scaling", "rope_parameters"),
    ),
    "no factor": ({"rope_scaling": {"type": "linear"}}, ("rope_scaling.factor: is missing",)),
    "no type": ({"rope_scaling": {"factor": 2.0}}, ("rope_scaling.type: is missing",)),
    "llama3 without lengths": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}},
        ("original_max_position_embeddings: is missing",),
    ),
    "eos beyond the vocabulary": ({"eos_token_id": 420}, ("eos_token_id", "420", "419")),
}


@pytest.mark.parametrize("case", WRONG)
def test_config_that_is_wrong_or_contradicts_the_tensors(tmp_path: Path, case: str) -> None:
    changes, said = WRONG[case]
    refused(edited(tmp_path, **changes), ModelFileError, *said)


def with_weights(folder: Path, change: dict[str, np.ndarray], drop: str = "", dtype: str = "f32") -> Path:
    spec = tiny.Tiny(dtype=dtype)
    tiny.build(folder / "m", spec)
    weights = {name: value for name, value in tiny.weights(spec).items() if name != drop}
    tiny.write_weights(folder / "m", spec, weights | change)
    return folder / "m"


def test_tensors_that_are_missing_or_too_many(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    refused(with_weights(tmp_path / "a", {}, drop=name), ModelFileError, f"tensor {name}: is missing", "[96, 64]")
    odd = {"model.layers.0.self_attn.q_norm.weight": np.ones(16, np.float32)}
    refused(with_weights(tmp_path / "b", odd), ModelFileError, "q_norm.weight: has no place", "config.json")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_with_their_index(tmp_path: Path, value: float) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    broken = tiny.weights(tiny.Tiny())[name]
    broken[3, 7] = value
    refused(with_weights(tmp_path, {name: broken}), ModelFileError, f"tensor {name}: is {value} at [3, 7]", type="f32")


def test_values_that_the_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    large = tiny.weights(tiny.Tiny(dtype="bf16"))[name]
    large[0, 0] = 1e6
    folder = with_weights(tmp_path, {name: large}, dtype="bf16")
    refused(folder, ModelFileError, f"tensor {name}: holds ", "too large for f16", type="f16")
    convert_checkpoint(folder, tmp_path / "m.gguf", type="bf16")


def test_unknown_type_lists_the_types(tmp_path: Path) -> None:
    refused(tiny.build(tmp_path / "m"), UnsupportedError, "'q9_0'", ", ".join(TYPES), type="q9_0")


def test_output_that_exists_needs_force(tmp_path: Path) -> None:
    folder, out = tiny.build(tmp_path / "m"), tmp_path / "m.gguf"
    out.write_text("precious")
    with pytest.raises(OutputExistsError, match="--force"):
        convert_checkpoint(folder, out)
    assert out.read_text() == "precious"
    convert_checkpoint(folder, out, force=True)
    open_gguf(out).close()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "link.gguf"])
def test_output_is_never_a_file_of_the_checkpoint(tmp_path: Path, name: str) -> None:
    folder = tiny.build(tmp_path / "m")
    if name == "link.gguf":
        (folder / name).hardlink_to(folder / "model.safetensors")
    before = (folder / name).read_bytes()
    with pytest.raises(UsageError, match="is a file of the checkpoint"):
        convert_checkpoint(folder, folder / name, force=True)
    assert (folder / name).read_bytes() == before


def test_default_output_is_named_after_folder_and_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.build(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    assert convert_checkpoint(folder).path == Path("m-Q8_0.gguf")
    monkeypatch.chdir(folder)
    assert convert_checkpoint(".", type="f16").path == Path("m-F16.gguf")
    assert (folder / "m-F16.gguf").exists()


# --------------------------------------------------------------------------------------------- faults on the way


def test_source_that_changes_while_it_is_converted(tmp_path: Path) -> None:
    folder = tiny.build(tmp_path / "m")

    def touch(done: int, total: int, name: str) -> None:
        os.utime(folder / "model.safetensors", ns=(done, done))

    refused(folder, ModelFileError, "changed while it was being converted", progress=touch)


def test_interrupt_leaves_nothing(tmp_path: Path) -> None:
    folder = tiny.build(tmp_path / "m")

    def interrupt(done: int, total: int, name: str) -> None:
        raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(folder, tmp_path / "out" / "m.gguf", progress=interrupt)
    assert list((tmp_path / "out").iterdir()) == []
