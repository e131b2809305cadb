"""Streamed text against the plain decoding of the same bytes."""

import pytest
import tiny_vocab as vocab
from hypothesis import example, given, settings
from hypothesis import strategies as st

from halfbyte.runtime.tokenizer import StreamDecoder, load_tokenizer

_loaded = {}


def tokenizer_of(name, folder):
    """A real vocabulary of the test data, or one of the two made ones."""
    if name not in _loaded:
        if name in ("spm", "bpe"):
            _loaded[name] = load_tokenizer(vocab.write(folder / f"{name}.gguf", getattr(vocab, name)()))
        else:
            _loaded[name] = load_tokenizer(vocab.data_folder() / f"ggml-vocab/ggml-vocab-{name}.gguf")
    return _loaded[name]


# the bytes that a character may begin with, every prefix of every character (surrogates are none, but CPython's decoder
# waits for the third byte of one before it gives U+FFFD)
BEGINNINGS = {
    chr(point).encode("utf-8", "surrogatepass")[:length]
    for point in [*range(0x80, 0x10000), *range(0x10000, 0x110000, 0x40)]
    for length in (1, 2, 3)
    if length < len(chr(point).encode("utf-8", "surrogatepass"))
}


def waiting_bytes(data):
    """How many bytes at the end of `data` may still become a character."""
    return next((length for length in (3, 2, 1) if data[-length:] in BEGINNINGS and len(data) >= length), 0)


def check(tokenizer, ids, skip_special):
    """Push `ids` one by one; after each, all that is complete must be out, and nothing that may change."""
    decoder = StreamDecoder(tokenizer, skip_special)
    kept = [i for i in ids if not (skip_special and tokenizer.is_control(i))]
    out, data = "", b""
    for i in ids:
        out += decoder.push(i)
        if i in kept:
            data += tokenizer.token_bytes(i)
        shown = data.removeprefix(b" ") if tokenizer.adds_space_prefix else data
        complete = shown[: len(shown) - waiting_bytes(shown)]
        assert out == complete.decode("utf-8", "replace")
    out += decoder.finish()
    assert out == tokenizer.decode(ids, skip_special)
    assert out == shown.decode("utf-8", "replace") if ids else out == ""


@pytest.mark.parametrize("name", ["spm", "bpe"])
@settings(max_examples=150, deadline=None)
@given(data=st.data(), skip_special=st.booleans())
def test_random_ids(name, data, skip_special, tmp_path_factory):
    tokenizer = tokenizer_of(name, tmp_path_factory.getbasetemp())
    # mostly bytes, so that characters are built, broken and left open
    first = tokenizer.vocabulary.ids["<0x00>"] if name == "spm" else 0
    some_byte = st.sampled_from([0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 0xC3, 0xA9, 0xFF, 0x20, 0x41, 0xED, 0xA0])
    ids = st.lists(some_byte.map(lambda byte: first + byte) | st.integers(0, tokenizer.n_vocab - 1), max_size=24)
    check(tokenizer, data.draw(ids), skip_special)


@pytest.mark.parametrize("name", ["llama-spm", "phi-3", "llama-bpe", "qwen2", "deepseek-llm"])
@settings(max_examples=40, deadline=None)
@given(data=st.data(), skip_special=st.booleans())
def test_random_ids_of_real_vocabularies(name, data, skip_special, tmp_path_factory):
    tokenizer = tokenizer_of(name, tmp_path_factory.getbasetemp())
    check(tokenizer, data.draw(st.lists(st.integers(0, tokenizer.n_vocab - 1), max_size=30)), skip_special)


@pytest.mark.parametrize("name", ["spm", "bpe"])
@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=20))
@example(text="a€😀é�")
def test_text_never_breaks(name, text, tmp_path_factory):
    """Text comes back whole, and no step adds a replacement character of its own."""
    tokenizer = tokenizer_of(name, tmp_path_factory.getbasetemp())
    decoder = StreamDecoder(tokenizer)
    steps = [decoder.push(i) for i in tokenizer.encode(text)] + [decoder.finish()]
    assert "".join(steps) == text
    assert sum(step.count("�") for step in steps) == text.count("�")


def test_continuing_a_text_keeps_the_space(tmp_path):
    tokenizer = tokenizer_of("spm", tmp_path)
    hello = tokenizer.vocabulary.ids["▁hello"]
    assert StreamDecoder(tokenizer).push(hello) == "hello"
    assert StreamDecoder(tokenizer, continues=True).push(hello) == " hello"


def test_unfinished_character_is_told_at_the_end(tmp_path):
    tokenizer = tokenizer_of("spm", tmp_path)
    decoder = StreamDecoder(tokenizer)
    ids = tokenizer.vocabulary.ids
    assert decoder.push(ids["<0xF0>"]) == decoder.push(ids["<0x9F>"]) == ""
    assert decoder.finish() == "�"
