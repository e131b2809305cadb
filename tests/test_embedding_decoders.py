"""Decoders that embed texts: rows and last tokens of transformers, the files of sentence-transformers beside them,
texts that end with a token of their own, llama.cpp.

The golden rows are what transformers computes (test_architectures_parity.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import architectures
import numpy as np
import pytest
import tiny
from architectures import EMBEDDERS, Row
from conversions import metadata, refused, run_command
from test_architectures_peers import THEIRS, quantized_by_it
from test_embedding import both, write_pooling

from halfbyte import LLM, convert_checkpoint
from halfbyte.errors import ModelFileError, UnsupportedError
from halfbyte.runtime.embedding import normalised

every_row = pytest.mark.parametrize("row", EMBEDDERS, ids=lambda row: row.name)


def checkpoint_of(folder: Path, row: Row, pooling: str | None = "lasttoken", **config: Any) -> Path:
    """Write the row's checkpoint as sentence-transformers has it."""
    checkpoint = architectures.build(folder / "checkpoint", row, **config)
    if pooling:
        modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
        kinds = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in modules]
        tiny.write_json(checkpoint / "modules.json", kinds)
        write_pooling(checkpoint, word_embedding_dimension=64, **{f"pooling_mode_{pooling}": True})
    return checkpoint


@every_row
def test_rows_and_last_tokens_of_transformers(tmp_path: Path, row: Row) -> None:
    convert_checkpoint(checkpoint_of(tmp_path, row), tmp_path / "m.gguf", "f32")
    with LLM(tmp_path / "m.gguf", threads=1) as llm:
        (rows,) = llm.embed_tokens([row.golden["ids"]], normalize=False)
        (vector,) = llm.embed([row.golden["ids"]])
        assert llm.pooling == "last"
    error = np.abs(rows - row.logits).max()
    print(f"{row.name}: largest difference {error:.1e} of rows with a deviation of {row.logits.std():.1f}")
    assert error < row.tolerance
    np.testing.assert_allclose(vector, normalised(row.logits[-1]), atol=1e-4)


@pytest.mark.parametrize(("pooling", "number"), [("mean_tokens", 1), ("cls_token", 2), ("lasttoken", 3), (None, None)])
def test_the_pooling_of_any_decoder(tmp_path: Path, pooling: str | None, number: int | None) -> None:
    """Gemma stands for those that no row has."""
    checkpoint = checkpoint_of(tmp_path, architectures.BY_NAME["gemma"], pooling)
    convert_checkpoint(checkpoint, tmp_path / "m.gguf", "f32")
    assert metadata(tmp_path / "m.gguf").get("gemma.pooling_type") == number


def test_the_command_takes_the_last_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert_checkpoint(checkpoint_of(tmp_path, EMBEDDERS[0]), tmp_path / "m.gguf", "f32")
    words = ["embed", tmp_path / "m.gguf", "-p", "Once upon a time", "-t", 1, "--embd-output-format", "array"]
    (found,), (last,) = (json.loads(run_command(capsys, *words, *more)[1]) for more in ([], ["--pooling", "last"]))
    assert found == last
    assert np.linalg.norm(found) == pytest.approx(1)


def test_a_module_that_changes_the_embedding_is_refused(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, EMBEDDERS[0])
    kinds = [{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]
    tiny.write_json(checkpoint / "modules.json", kinds)
    refused(checkpoint, UnsupportedError, "sentence-transformers module 'Dense' is not supported")


def test_a_model_that_generates_needs_its_matrix_of_logits(tmp_path: Path) -> None:
    """Without the files of sentence-transformers a head that is missing is a mistake, unless the class has none."""
    causal, untied = architectures.BY_NAME["qwen3-embedding-causal"], {"tie_word_embeddings": False}
    refused(
        checkpoint_of(tmp_path / "a", causal, None, **untied), ModelFileError, "tensor lm_head.weight", "is missing"
    )
    embedding = architectures.BY_NAME["qwen2-embedding"]
    for number, checkpoint in enumerate(
        (checkpoint_of(tmp_path / "b", causal, **untied), checkpoint_of(tmp_path / "c", embedding, None))
    ):
        report = convert_checkpoint(checkpoint, tmp_path / f"{number}.gguf", "f32")
        assert report.notes == ("has no matrix for logits: embeddings of texts alone mean something",)


@pytest.mark.parametrize(("named", "eot"), [("<|im_end|>", None), ("<|im_start|>", 402)])
def test_texts_end_with_a_token_of_their_own(tmp_path: Path, named: str, eot: int | None) -> None:
    """As Qwen3-Embedding's: eos_token is the chat's, but tokenizer.json ends each text with another one."""
    checkpoint = tiny.build(tmp_path / "checkpoint", tiny.Tiny(tokenizer="qwen2"))
    content = json.loads((checkpoint / "tokenizer.json").read_text("utf-8"))
    end = "<|end_of_text|>"
    text = {"Sequence": {"id": "A", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing", "single": [text, {"SpecialToken": {"id": end, "type_id": 0}}], "pair": [],
        "special_tokens": {end: {"id": end, "ids": [401], "tokens": [end]}},
    }  # fmt: skip
    tiny.write_json(checkpoint / "tokenizer.json", content)
    described = json.loads((checkpoint / "tokenizer_config.json").read_text("utf-8"))
    tiny.write_json(checkpoint / "tokenizer_config.json", described | {"eos_token": named})
    write_pooling(checkpoint, pooling_mode_lasttoken=True)
    convert_checkpoint(checkpoint, tmp_path / "m.gguf", "f32")
    found = metadata(tmp_path / "m.gguf")
    assert (found["tokenizer.ggml.eos_token_id"], found["tokenizer.ggml.add_eos_token"]) == (401, True)
    assert found.get("tokenizer.ggml.eot_token_id") == eot
    with LLM(tmp_path / "m.gguf", threads=1) as llm:
        ids = llm.tokenize("Once upon a time")
        assert ids[-1] == 401
        np.testing.assert_array_equal(llm.embed(["Once upon a time"]), llm.embed([ids], pooling="last"))
        assert {401, 403 if eot is None else eot} <= set(llm.tokenizer.stop_ids)


@pytest.mark.peers
@pytest.mark.parametrize("type", ["f32", THEIRS])
@every_row
def test_llama_cpp_gives_the_same_embeddings(tmp_path: Path, row: Row, type: str) -> None:
    """Of our file and of its own, pooled as the file says, of texts that both tokenize alike."""
    file = tmp_path / "m.gguf"
    convert_checkpoint(checkpoint_of(tmp_path, row), file, "f32")
    ours, theirs = both(quantized_by_it(file) if type == THEIRS else file)
    cosines = (ours * theirs).sum(axis=1)
    print(f"{row.name} {type}: least cosine {cosines.min():.7f}")
    assert cosines.min() > (0.999 if type == THEIRS else 0.9999)
