"""Against transformers on torch: the logits of float32 files, and the token ids of converted tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from gguf_models import VARIATIONS, Models, opened
from gguf_models import logits as engine_logits
from tiny_vocab import data_folder

from halfbyte import LLM, convert_checkpoint
from halfbyte.runtime.tokenizer import Tokenizer, load_tokenizer

pytestmark = pytest.mark.parity

POSITIONS = 64
CHECKPOINTS = ["stories260K", "babyllama-tok361"]


@pytest.fixture(scope="module")
def transformers() -> Any:
    pytest.importorskip("torch", reason="the extra parity is not installed")
    return pytest.importorskip("transformers", reason="the extra parity is not installed")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


def reference(transformers: Any, folder: Path, ids: list[int]) -> np.ndarray:
    """Logits of transformers in float32 with its plain attention, float32 [len(ids), vocab]."""
    import torch

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].numpy()


def compare(transformers: Any, name: str, checkpoint: Path, file: Path, ids: list[int]) -> None:
    want = reference(transformers, checkpoint, ids)
    with opened(file, threads=2) as engine:
        got = engine_logits(engine, ids)
    error = np.abs(got - want).max()
    print(f"{name}: largest difference {error:.1e} of logits up to {np.abs(want).max():.0f}")
    assert got.shape == want.shape
    assert error < 1e-4


@pytest.mark.parametrize("name", VARIATIONS)
def test_logits_of_every_variation(transformers: Any, models: Models, name: str) -> None:
    fields = VARIATIONS[name]
    ids = np.random.default_rng(0).integers(0, 400, POSITIONS).tolist()
    compare(transformers, name, models.checkpoint(**fields), models.file("f32", **fields), ids)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_of_real_checkpoints(transformers: Any, tmp_path: Path, name: str) -> None:
    """64 positions of a text that the models know, and 64 of noise."""
    folder = data_folder() / "checkpoints" / name
    convert_checkpoint(folder, tmp_path / "m.gguf", "f32")
    tokenizer = load_tokenizer(tmp_path / "m.gguf")
    story = (data_folder() / "text/tinystories_train_1000.txt").read_text(encoding="utf-8")[:400]
    known = tokenizer.encode(story, add_special=True)[:POSITIONS]
    assert len(known) == POSITIONS
    noise = np.random.default_rng(1).integers(0, tokenizer.n_vocab, POSITIONS).tolist()
    compare(transformers, f"{name}, a story", folder, tmp_path / "m.gguf", known)
    compare(transformers, f"{name}, noise", folder, tmp_path / "m.gguf", noise)


# ---------------------------------------------------------------------------------------------------------------------
# tokenizers


def texts() -> list[str]:
    """llama.cpp's own test texts, and stories."""
    raw = (data_folder() / "ggml-vocab/ggml-vocab-llama-spm.gguf.inp").read_bytes()
    found = raw.decode().split("\n__ggml_vocab_test__\n")
    story = (data_folder() / "text/tinystories_train_1000.txt").read_text(encoding="utf-8")
    return found + story[:20000].split("\n")


def same_ids(tokenizer: Tokenizer, source: Callable[[str], list[int]], where: Callable[[str], object] = len) -> None:
    compared = [text for text in texts() if text and where(text)]
    assert len(compared) > 100
    for text in compared:
        assert tokenizer.encode(text) == source(text), repr(text)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_ids_of_real_checkpoints(transformers: Any, tmp_path: Path, name: str) -> None:
    folder = data_folder() / "checkpoints" / name
    convert_checkpoint(folder, tmp_path / "m.gguf", "f16")
    tokenizer = load_tokenizer(tmp_path / "m.gguf")
    from sentencepiece import SentencePieceProcessor

    same_ids(tokenizer, SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).encode)
    plain = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    same_ids(tokenizer, lambda text: plain.encode(text, add_special_tokens=False))
    # transformers 5 replaces the file's rule for Llama: it puts no space before a text that begins with one
    llama = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    same_ids(tokenizer, lambda text: llama.encode(text, add_special_tokens=False), lambda text: text[0] != " ")
    bos = tokenizer.encode("Once upon", add_special=True)
    assert bos == llama.encode("Once upon")


@pytest.mark.parametrize("family", list(tiny.BPE_FAMILIES))
def test_ids_of_byte_level_bpe(transformers: Any, models: Models, family: str) -> None:
    fields = {"tokenizer": family, "layers": 1}
    tokenizer = load_tokenizer(models.file("f16", **fields))
    source = transformers.AutoTokenizer.from_pretrained(models.checkpoint(**fields), local_files_only=True)
    same_ids(tokenizer, lambda text: source.encode(text, add_special_tokens=False))
    ids = tokenizer.encode("Once upon", add_special=True)
    assert ids == source.encode("Once upon")
    text = "<|im_start|>user\nOnce upon<|im_end|>"
    assert tokenizer.encode(text, parse_special=True) == source.encode(text, add_special_tokens=False)


# ---------------------------------------------------------------------------------------------------------------------
# chat, from messages to ids


def test_ids_of_a_conversation(transformers: Any, models: Models) -> None:
    fields = {"tokenizer": "llama-bpe", "layers": 1}
    messages = [
        {"role": "user", "content": "Once upon a time"},
        {"role": "assistant", "content": "there was"},
        {"role": "user", "content": "and?"},
    ]
    source = transformers.AutoTokenizer.from_pretrained(models.checkpoint(**fields), local_files_only=True)
    want = source.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    with LLM(models.file("f16", **fields)) as llm:
        text = llm.chat_template().render(messages)
        assert llm.tokenize(text, add_special=False, parse_special=True) == want
