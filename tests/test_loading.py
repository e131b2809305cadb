"""Tokenizer and weights are loaded at the same time: with the same result, and no thread stays."""

import threading

import pytest

from halfbyte import LLM
from halfbyte.errors import UnsupportedError
from halfbyte.runtime import loading
from halfbyte.runtime.tokenizer import load_tokenizer


def threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("halfbyte")}


@pytest.fixture
def without_tokenizer(tiny_gguf, tmp_path):
    """The tiny model, whose tokenizer is of a family that nobody knows."""
    content, key = tiny_gguf.read_bytes(), b"tokenizer.ggml.model"
    place = content.index(key) + len(key) + 12  # behind the value's type and length
    file = tmp_path / "odd.gguf"
    file.write_bytes(content[:place] + b"?" + content[place + 1 :])
    return file


def test_the_tokenizer_has_a_thread_of_its_own(tiny_gguf, monkeypatch):
    names = []
    monkeypatch.setattr(
        loading, "load_tokenizer", lambda file: names.append(threading.current_thread().name) or load_tokenizer(file)
    )
    with LLM(tiny_gguf) as llm:
        assert names == ["halfbyte-tokenizer"]
        assert "halfbyte-tokenizer" not in {thread.name for thread in threads()}
        assert llm.tokenize("the little dog") == load_tokenizer(tiny_gguf).encode("the little dog", add_special=True)


def test_where_there_is_no_thread_to_have_it_is_loaded_all_the_same(tiny_gguf, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(loading._TokenizerThread, "start", refuse)
    with LLM(tiny_gguf, threads=1) as llm:
        assert llm.generate("the", max_tokens=2, temperature=0).token_ids


def test_a_tokenizer_that_cannot_be_used_ends_the_load_and_leaves_no_thread(without_tokenizer):
    before = threads()
    with pytest.raises(UnsupportedError, match=r"odd\.gguf: tokenizer\.ggml\.model: tokenizer model '\?"):
        LLM(without_tokenizer, threads=2)
    assert threads() == before
