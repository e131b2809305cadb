"""The Python interface, from the package's own names: `from halfbyte import LLM, SamplingParams`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from tiny_vocab import data_folder

import halfbyte
from halfbyte import LLM, SamplingParams, convert_checkpoint
from halfbyte.errors import ModelFileError, UsageError
from halfbyte.runtime.steps import Generation, GenerationStep

# What stories260K tells greedily from BOS, as every float32 implementation of it does.
OPENING = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
STORY = (
    OPENING + " One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. "
    'She said, "I want to play with your ball, but I can\'t find it."\n'
    "Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to do.\"\n"
    "Lily didn't want to help her mom, so she"
)
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 30}


@pytest.fixture(scope="module")
def llm(tiny_gguf: Path) -> Iterator[LLM]:
    with LLM(tiny_gguf, threads=2) as llm:
        yield llm


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """stories260K in float32: a real model."""
    file = tmp_path_factory.mktemp("stories") / "stories.gguf"
    convert_checkpoint(data_folder() / "checkpoints/stories260K", file, "f32")
    with LLM(file) as llm:
        yield llm


# ---------------------------------------------------------------------------------------------------------------------
# a real model


def test_the_story_of_lily(stories: LLM) -> None:
    found = stories.generate("", max_tokens=200, temperature=0)
    print(found.text)
    assert found.text == STORY
    assert (len(found.token_ids), found.finish_reason) == (200, "length")
    assert stories.generate([stories.tokenizer.bos_id], max_tokens=200, temperature=0).text == STORY
    assert stories.detokenize(found.token_ids) == STORY


def test_a_real_story_ends_at_a_stop_text_and_goes_on_from_its_own_words(stories: LLM) -> None:
    found = stories.generate("", max_tokens=80, temperature=0, stop="in the park")
    assert found.text == OPENING.removesuffix("in the park.")
    assert found.finish_reason == "stop"
    for words in (4, 7, 12, 20):  # the answer begins with the space between two words
        prompt = " ".join(STORY.split(" ")[:words])
        assert STORY.startswith(prompt + stories.generate(prompt, max_tokens=15, temperature=0).text)


def test_logits_choose_the_tokens_of_the_story(stories: LLM) -> None:
    found = stories.generate("", max_tokens=150, temperature=0)
    logits = stories.logits([stories.tokenizer.bos_id, *found.token_ids])
    assert logits[:-1].argmax(axis=1).tolist() == found.token_ids


# ---------------------------------------------------------------------------------------------------------------------
# the interface


def test_what_the_package_exports() -> None:
    assert set(halfbyte.__all__) == {"LLM", "SamplingParams", "convert_checkpoint", "quantize_file"}
    for name in ("threads", "context"):
        assert name in halfbyte.runtime.options.RuntimeOptions.__dataclass_fields__
    for method in (LLM.generate, LLM.stream, LLM.chat, LLM.stream_chat):
        assert inspect.signature(method).parameters["self"]


def test_facts_about_the_model(llm: LLM, tiny_gguf: Path) -> None:
    spec, model = tiny.Tiny(), llm.model
    assert (model.architecture, model.type_label, model.name) == ("llama", "Q8_0", "checkpoint")
    assert (model.n_layers, model.n_embd, model.n_vocab, model.n_ctx_train) == (2, 64, spec.rows, 256)
    assert model.n_params == sum(value.size for value in tiny.weights(spec).values())
    assert (model.path, model.file_bytes) == (tiny_gguf, tiny_gguf.stat().st_size)
    assert 0.9 < model.size_bytes / model.file_bytes < 1
    assert model.size_bytes - model.body_bytes == 2 * spec.rows * spec.hidden * 34 / 32  # embedding and output
    assert llm.n_ctx == 256
    assert llm.options.threads == 2


def test_generate_stream_and_greedy_logits_agree(llm: LLM) -> None:
    whole = llm.generate("hello there", **GREEDY)
    assert isinstance(whole, Generation)
    steps = list(llm.stream("hello there", **GREEDY))
    assert all(isinstance(step, GenerationStep) for step in steps)
    assert [step.token_id for step in steps if step.token_id is not None] == whole.token_ids
    ids = llm.tokenize("hello there")
    assert llm.generate(ids, **GREEDY).token_ids == whole.token_ids
    assert llm.generate(np.array(ids), **GREEDY).token_ids == whole.token_ids
    logits = llm.logits(ids + whole.token_ids)
    assert logits[len(ids) - 1 : -1].argmax(axis=1).tolist() == whole.token_ids


def test_logits_are_a_float32_array_of_their_own(llm: LLM) -> None:
    ids = llm.tokenize("a" * 150)
    assert len(ids) > 130  # more than two steps' worth
    first = llm.logits(ids)
    assert (first.dtype, first.shape) == (np.float32, (len(ids), llm.model.n_vocab))
    kept = first.copy()
    other = llm.logits(ids[:5])
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(other, kept[:5])
    assert llm.logits([]).shape == (0, llm.model.n_vocab)


@pytest.mark.parametrize("ubatch", [512, 7])
def test_streamed_logits_are_those_asked_for(llm: LLM, tiny_gguf: Path, ubatch: int) -> None:
    ids = llm.tokenize("a" * 150)
    whole = llm.logits(ids)
    with LLM(tiny_gguf, threads=1, ubatch=ubatch) as other:
        for first in (0, 1, 63, 100, len(ids) - 1):
            found = [rows.copy() for rows in other.stream_logits(ids, first)]
            assert max(len(rows) for rows in found) <= other.engine.max_outputs
            np.testing.assert_array_equal(np.concatenate(found), whole[first:])
        assert list(other.stream_logits(ids, len(ids))) == []
        with pytest.raises(UsageError, match="300 tokens do not fit the context of 256"):
            next(other.stream_logits([1] * 300))


def test_tokenize_and_detokenize(llm: LLM) -> None:
    bos = llm.tokenizer.bos_id
    plain = llm.tokenize("the girl", add_special=False)
    assert llm.tokenize("the girl") == [bos, *plain]
    assert llm.detokenize(plain) == "the girl"
    assert llm.tokenize("</s>", add_special=False, parse_special=True)[-1] == llm.tokenizer.eos_id
    assert llm.tokenizer.eos_id not in llm.tokenize("</s>")


def test_sampling_options_are_those_of_sampling_params(llm: LLM) -> None:
    cool = {"temperature": 0.3, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "repeat_penalty": 1.3, "seed": 3}
    assert SamplingParams(**cool).temperature == 0.3
    one, two = (llm.generate("the", max_tokens=20, **cool).token_ids for _ in range(2))
    assert one == two
    assert llm.generate("the", max_tokens=20, **{**cool, "top_k": 1}).token_ids != one or cool["top_k"] == 1
    penalised = llm.generate("the", max_tokens=100, temperature=0, ignore_eos=True, repeat_penalty=1000.0)
    plain = llm.generate("the", max_tokens=100, temperature=0, ignore_eos=True)
    assert len(set(penalised.token_ids)) > len(set(plain.token_ids))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda llm: llm.generate("a", temprature=1), "'temprature'.*temperature"),
        (lambda llm: llm.stream("a", n_predict=1), "'n_predict'.*max_tokens"),
        (lambda llm: llm.chat([{"role": "user", "content": "a"}], seeds=1), "'seeds'"),
        (lambda llm: llm.generate("a", temperature="hot"), "temperature"),
        (lambda llm: llm.generate("a", top_p=1.5), "top_p"),
        (lambda llm: llm.generate("a", stop=[""]), "stop"),
        (lambda llm: llm.generate([1, 420]), "420"),
        (lambda llm: llm.generate([-1]), "-1"),
        (lambda llm: llm.logits([10**9]), "1000000000"),
        (lambda llm: llm.detokenize([420]), "420"),
        (lambda llm: llm.chat("hello"), "message"),
    ],
)
def test_misuse_is_a_usage_error(llm: LLM, call: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call(llm)
    assert llm.generate("a", max_tokens=1).timings.generated_tokens <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thread": 2}, "'thread'.*threads"),
        ({"threads": 2.5}, "threads is 2.5"),
        ({"threads": -1}, "threads is -1"),
        ({"context": -5}, "context is -5"),
        ({"ubatch": 0}, "ubatch is 0"),
        ({"cache_type": "q5_0"}, "cache_type is 'q5_0'.*f16, f32, q8_0, q4_0"),
    ],
)
def test_options_of_loading(tiny_gguf: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LLM(tiny_gguf, **options)


def test_none_is_an_option_not_given(tiny_gguf: Path) -> None:
    with LLM(tiny_gguf, threads=None, context=None) as llm:
        assert llm.n_ctx == 256
        assert llm.engine.n_threads >= 1


def test_progress_tells_what_takes_long(tiny_gguf: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    LLM(tiny_gguf, progress=lambda *what: heard.append(what)).close()
    loading = [(done, total) for what, done, total in heard if what == "loading weights"]
    assert loading[-1][0] == loading[-1][1] > 0
    assert loading == sorted(loading)


def test_files_that_are_no_model(tmp_path: Path, tiny_gguf: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.gguf"):
        LLM(tmp_path / "nothing.gguf")
    (tmp_path / "text.gguf").write_text("Once upon a time")
    with pytest.raises(ModelFileError, match=r"text\.gguf"):
        LLM(tmp_path / "text.gguf")
    (tmp_path / "short.gguf").write_bytes(tiny_gguf.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match=r"short\.gguf"):
        LLM(tmp_path / "short.gguf")


def test_a_closed_model_says_so(tiny_gguf: Path) -> None:
    llm = LLM(tiny_gguf, threads=2)
    stream = llm.stream("the", max_tokens=20)
    next(stream)
    llm.close()
    llm.close()
    for call in (lambda: list(stream), lambda: llm.generate("the"), lambda: llm.logits([1])):
        with pytest.raises(UsageError, match="closed"):
            call()


def test_two_models_at_once(tiny_gguf: Path, no_template_gguf: Path) -> None:
    with LLM(tiny_gguf, threads=2) as a, LLM(no_template_gguf, threads=2) as b:
        alone = a.generate("the", **GREEDY).token_ids
        streams = a.stream("the", **GREEDY), b.stream("the", **GREEDY)
        both = [[step.token_id for step in pair] for pair in zip(*streams, strict=True)]
    assert [ids[0] for ids in both[:-1]] == alone


# ---------------------------------------------------------------------------------------------------------------------
# conversations


def test_chat_reuses_what_earlier_turns_computed(tiny_gguf: Path) -> None:
    """The second turn computes only its own words, and says what a fresh model says to the whole conversation."""
    with LLM(tiny_gguf) as llm:
        messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "tell me a story"}]
        first = llm.chat(messages, **GREEDY)
        assert first.timings.cached_tokens == 0
        messages += [{"role": "assistant", "content": "once upon a time"}, {"role": "user", "content": "go on"}]
        second = llm.chat(messages, **GREEDY)
        assert second.timings.cached_tokens >= first.timings.prompt_tokens - 1
        assert second.timings.prompt_tokens > second.timings.cached_tokens
    with LLM(tiny_gguf) as fresh:
        again = fresh.chat(messages, **GREEDY)
    assert again.timings.cached_tokens == 0
    assert (again.text, again.token_ids) == (second.text, second.token_ids)


def test_chat_is_the_template_and_its_stream(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hello"}]
    whole = llm.chat(messages, **GREEDY)
    assert "".join(step.text for step in llm.stream_chat(messages, **GREEDY)) == whole.text
    text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert llm.chat_template().render(messages) == text
    ids = llm.tokenize(text, add_special=True, parse_special=True)
    assert llm.generate(ids, **GREEDY).token_ids == whole.token_ids


def test_a_file_without_a_template_takes_a_built_in_one(no_template_gguf: Path) -> None:
    messages = [{"role": "user", "content": "hello"}]
    with LLM(no_template_gguf) as llm:
        with pytest.raises(UsageError, match="no chat template"):
            llm.chat(messages)
        named = llm.chat(messages, chat_template="chatml", **GREEDY)
        assert len(named.token_ids) > 0
        with pytest.raises(UsageError, match="no chat template"):
            llm.chat(messages)
        with pytest.raises(UsageError, match=r"'alpaca'.*chatml"):
            llm.chat(messages, chat_template="alpaca")
