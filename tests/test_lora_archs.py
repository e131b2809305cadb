"""LoRA on layers that conversion transposes, reorders, joins or writes twice: the adapted model is the merged one."""

from __future__ import annotations

import zlib
from pathlib import Path

import architectures
import numpy as np
import oracle
import pytest
import tiny

from halfbyte import LLM, convert_checkpoint
from halfbyte.convert.adapter import convert_adapter
from halfbyte.errors import UnsupportedError

RANK, ALPHA = 3, 6
# Rows of tests/architectures.py, and the last words of the layers that are adapted.
CASES = {
    "gpt2": ("c_attn", "c_fc", "c_proj"),
    "gptneox": ("query_key_value", "dense", "dense_4h_to_h"),
    "gptneox-sequential": ("embed_in",),
    "falcon-grouped": ("query_key_value",),
    "starcoder2": ("q_proj", "v_proj", "c_fc"),
    "mpt-clipped": ("Wqkv", "out_proj", "up_proj"),
    "bloom-six-heads": ("query_key_value", "word_embeddings"),
    "stablelm-parallel": ("embed_tokens", "q_proj"),
    "phi3": ("qkv_proj", "gate_up_proj"),
}
EMBEDDINGS = ("embed_in", "word_embeddings", "embed_tokens")


def adapted(base: Path, folder: Path, targets: tuple[str, ...], flipped: bool) -> Path:
    """Write an adapter of `base` as PEFT does, and beside it the merged checkpoint; return the adapter's folder.

    flipped: linear layers are stored as [columns, rows] (GPT-2).  An embedding changes what tokens look up, not the
    logits' matrix that is tied to it.
    """
    config, tensors = oracle.load_checkpoint(base)
    factors, before = {}, dict(tensors)
    for name, weight in before.items():
        module = name.removesuffix(".weight")
        if module.split(".")[-1] not in targets or weight.ndim < 2:
            continue
        is_embedding = module.endswith(EMBEDDINGS)
        columns, rows = weight.shape if flipped or is_embedding else weight.shape[::-1]
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        a, b = rng.standard_normal((RANK, columns)), 0.02 * rng.standard_normal((rows, RANK))
        keys = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A.weight", "lora_B.weight")
        factors |= {
            f"base_model.model.{module}.{key}": v.astype(np.float32) for key, v in zip(keys, (a, b), strict=True)
        }
        change = ALPHA / RANK * b @ a
        tensors[name] = weight + (change.T if flipped or is_embedding else change)
        if is_embedding and config.get("tie_word_embeddings"):
            head = "embed_out" if module.endswith("embed_in") else "lm_head"
            config["tie_word_embeddings"], tensors[f"{head}.weight"] = False, weight
    assert factors
    folder.mkdir()
    tiny.write_json(folder / "adapter_config.json", {
        "peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "fan_in_fan_out": flipped, "target_modules": list(targets),
    })  # fmt: skip
    tiny.write_safetensors(folder / "adapter_model.safetensors", factors, "f32")
    merged = folder.parent / "merged"
    merged.mkdir()
    tiny.write_json(merged / "config.json", config)
    tiny.write_tokenizer(merged, tiny.Tiny(chat_template=None))
    tiny.write_safetensors(merged / "model.safetensors", {k: v.astype(np.float32) for k, v in tensors.items()}, "f32")
    return folder


def test_an_adapter_of_experts_is_refused_by_the_first_of_them(tmp_path: Path) -> None:
    base = architectures.build(tmp_path / "base", architectures.BY_NAME["qwen3moe"])
    _, tensors = oracle.load_checkpoint(base)
    module = next(name for name in sorted(tensors) if ".experts.2.up_proj" in name).removesuffix(".weight")
    rows, columns = tensors[f"{module}.weight"].shape
    factors = {"lora_A": np.ones((RANK, columns), np.float32), "lora_B": np.ones((rows, RANK), np.float32)}
    folder = tmp_path / "adapter"
    folder.mkdir()
    tiny.write_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA})
    named = {f"base_model.model.{module}.{key}.weight": value for key, value in factors.items()}
    tiny.write_safetensors(folder / "adapter_model.safetensors", named, "f32")
    with pytest.raises(UnsupportedError) as raised:
        convert_adapter(folder, base, tmp_path / "out.gguf")
    assert f"an adapter of {module}.weight: it is one of a layer's experts" in str(raised.value)
    assert "supported: linear layers and embeddings" in str(raised.value)


@pytest.mark.parametrize("name", CASES)
def test_the_adapted_model_is_the_merged_one(tmp_path: Path, name: str) -> None:
    row = architectures.BY_NAME[name]
    base = architectures.build(tmp_path / "base", row)
    folder = adapted(base, tmp_path / "adapter", CASES[name], flipped=name == "gpt2")
    convert_adapter(folder, base, tmp_path / "adapter.gguf")
    convert_checkpoint(base, tmp_path / "base.gguf", "f32")
    convert_checkpoint(tmp_path / "merged", tmp_path / "merged.gguf", "f32")
    ids = row.golden["ids"]
    with LLM(tmp_path / "merged.gguf", threads=1) as llm:
        want = llm.logits(ids)
    with LLM(tmp_path / "base.gguf", threads=1, lora=(str(tmp_path / "adapter.gguf"),)) as llm:
        got, plain = llm.logits(ids), llm.logits(ids, adapters={})
    assert np.abs(want - plain).max() > 0.1
    assert np.abs(got - want).max() < 1e-4
