"""From a prompt to steps: prefixes, stop texts, ends, and that steps add up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from halfbyte import LLM
from halfbyte.errors import ContextLengthError, UsageError
from halfbyte.runtime.engine import engine as engine_module
from halfbyte.runtime.generate import _StopTexts, common_prefix
from halfbyte.runtime.steps import Generation

PROMPT = "the little dog said"
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}

letters = st.text("abc", max_size=12)


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_common_prefix(a: list[int], b: list[int]) -> None:
    n = common_prefix(a, b)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]


def pushed(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    """What a reader sees of `pieces`, and whether a stop text ended it."""
    held, shown = _StopTexts(stops), ""
    for piece in pieces:
        text, stopped = held.push(piece)
        shown += text
        if stopped:
            return shown, True
    return shown + held.rest(), False


@given(letters.filter(bool), st.lists(letters))
@example("aab", ["aa", "ab"])
@example("abab", ["aba", "cabab"])
def test_one_stop_text_cuts_at_its_first_place(stop: str, pieces: list[str]) -> None:
    text = "".join(pieces)
    assert pushed((stop,), pieces) == (text.split(stop)[0], stop in text)


@given(st.lists(letters.filter(bool), max_size=3).map(tuple), st.lists(letters))
def test_nothing_of_a_stop_text_is_ever_shown(stops: tuple[str, ...], pieces: list[str]) -> None:
    shown, stopped = pushed(stops, pieces)
    text = "".join(pieces)
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    assert stopped == any(stop in text for stop in stops)
    assert stopped or shown == text


def test_only_what_may_become_a_stop_text_is_held() -> None:
    held = _StopTexts(("\n\nUser:", "###"))
    assert held.push("Hello #") == ("Hello ", False)
    assert held.push("1\n") == ("#1", False)
    assert held.push("\nU") == ("", False)
    assert held.push("ser") == ("", False)
    assert held.push("!") == ("\n\nUser!", False)
    assert held.push("##") == ("", False)
    assert held.push("#") == ("", True)


# ---------------------------------------------------------------------------------------------------------------------
# with a model


@pytest.fixture(scope="module")
def llm(tiny_gguf: Path) -> Iterator[LLM]:
    with LLM(tiny_gguf, threads=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def greedy(llm: LLM) -> Generation:
    return llm.generate(PROMPT, max_tokens=60, **GREEDY)


def test_stop_texts_across_the_borders_of_tokens(llm: LLM, greedy: Generation) -> None:
    """Every text of 1 to 4 characters in the answer stops it where it first stands; no part of it is shown."""
    tried = set()
    for start in range(0, len(greedy.text) - 4, 3):
        for length in (1, 2, 4):
            tried.add(greedy.text[start : start + length])
    crossing = 0
    for stop in sorted(tried)[:: max(1, len(tried) // 40)]:
        steps = list(llm.stream(PROMPT, max_tokens=60, stop=stop, **GREEDY))
        assert "".join(step.text for step in steps) == greedy.text[: greedy.text.find(stop)]
        assert [step.finish_reason for step in steps] == [None] * (len(steps) - 1) + ["stop"]
        crossing += any(step.text == "" for step in steps[:-1])
    assert crossing > 3, "no stop text of this test was ever held back in parts"


def test_the_earliest_of_several_stop_texts_counts(llm: LLM, greedy: Generation) -> None:
    stops = [greedy.text[20:23], greedy.text[8:11], "not in there"]
    found = llm.generate(PROMPT, max_tokens=60, stop=stops, **GREEDY)
    assert found.text == greedy.text[: min(greedy.text.find(stop) for stop in stops[:2])]
    assert found.finish_reason == "stop"
    assert found.token_ids == greedy.token_ids[: len(found.token_ids)]


def test_held_text_comes_out_at_the_end(llm: LLM, greedy: Generation) -> None:
    """The limit cuts a stop text in two: what was held back of it is text after all."""
    whole = llm.generate(PROMPT, max_tokens=20, **GREEDY)
    stop = whole.text[-2:] + "never"
    steps = list(llm.stream(PROMPT, max_tokens=20, stop=stop, **GREEDY))
    assert "".join(step.text for step in steps) == whole.text
    assert (steps[-1].token_id, steps[-1].finish_reason) == (None, "length")
    assert steps[-1].text.endswith(whole.text[-2:])


@pytest.mark.parametrize("limit", [0, 1, 2, 17])
def test_max_tokens(llm: LLM, greedy: Generation, limit: int) -> None:
    found = llm.generate(PROMPT, max_tokens=limit, **GREEDY)
    assert found.token_ids == greedy.token_ids[:limit]
    assert found.finish_reason == "length"
    assert found.timings.generated_tokens == limit


def test_the_end_of_the_context_ends_the_answer(tiny_gguf: Path) -> None:
    with LLM(tiny_gguf, context=50, threads=1) as llm:
        n = len(llm.tokenize(PROMPT))
        found = llm.generate(PROMPT, **GREEDY)
        assert found.finish_reason == "length"
        assert len(found.token_ids) == 50 - n + 1  # the last token needs no place: nothing follows it
        with LLM(tiny_gguf, threads=1) as larger:
            assert larger.generate(PROMPT, max_tokens=50 - n + 1, **GREEDY).token_ids == found.token_ids


def test_a_prompt_without_room_names_both_numbers(tiny_gguf: Path) -> None:
    with LLM(tiny_gguf, context=50, threads=1) as llm:
        for n in (50, 51, 300):
            with pytest.raises(ContextLengthError, match=f"prompt has {n} tokens; the context is 50 tokens"):
                llm.generate([1] * n)
        assert len(llm.generate([1] * 49, **GREEDY).token_ids) == 2
        with pytest.raises(ContextLengthError, match="51 tokens do not fit the context of 50"):
            llm.logits([1] * 51)
        assert llm.logits([1] * 50).shape == (50, 420)
        with pytest.raises(UsageError, match="no tokens"):
            llm.generate([])


def test_an_end_token_stops_and_ignore_eos_never_chooses_it(llm: LLM) -> None:
    """Sampled flat, this random model soon draws the end token; it is no part of the answer."""
    flat: dict[str, Any] = {"temperature": 50, "top_k": 0, "top_p": 1, "min_p": 0, "max_tokens": 240}
    reasons = set()
    for seed in range(12):
        found = llm.generate([1], seed=seed, **flat)
        assert not set(found.token_ids) & llm.tokenizer.stop_ids
        reasons.add(found.finish_reason)
        found = llm.generate([1], seed=seed, ignore_eos=True, **flat)
        assert (len(found.token_ids), found.finish_reason) == (240, "length")
        assert not set(found.token_ids) & llm.tokenizer.stop_ids
    assert "stop" in reasons


def test_steps_add_up(llm: LLM, greedy: Generation) -> None:
    steps = list(llm.stream(PROMPT, max_tokens=60, **GREEDY))
    assert "".join(step.text for step in steps) == greedy.text
    assert [step.token_id for step in steps] == [*greedy.token_ids, None]
    assert [step.timings.generated_tokens for step in steps] == [*range(1, 61), 60]
    seconds = [step.timings.generation_seconds for step in steps]
    assert seconds == sorted(seconds)
    assert {step.timings.prompt_tokens for step in steps} == {len(llm.tokenize(PROMPT))}
    assert steps[-1].timings.generation_per_second > 0


def test_no_step_ends_within_a_character(llm: LLM) -> None:
    """A flat draw is full of byte tokens: steps add up to the decoded answer, whatever UTF-8 it tears."""
    for seed in range(5):
        steps = list(llm.stream([1], max_tokens=100, temperature=50, top_k=0, top_p=1, min_p=0, seed=seed))
        ids = [step.token_id for step in steps if step.token_id is not None]
        assert "".join(step.text for step in steps) == llm.tokenizer.decode(ids, skip_special=True)


def test_a_continued_text_keeps_its_spaces(llm: LLM) -> None:
    """Prompt and answer side by side are the text of all their tokens, also where the answer begins with a space."""
    began_with_space = 0
    for seed in range(40):
        ids = llm.tokenize("the")
        found = llm.generate(ids, max_tokens=3, temperature=20, top_k=0, top_p=1, min_p=0, seed=seed)
        assert "the" + found.text == llm.tokenizer.decode(ids + found.token_ids, skip_special=True)
        began_with_space += found.text.startswith(" ")
    assert began_with_space > 2


# ---------------------------------------------------------------------------------------------------------------------
# the same tokens


def test_seeds(llm: LLM) -> None:
    warm: dict[str, Any] = {"max_tokens": 40, "temperature": 1.5, "ignore_eos": True}
    found = {seed: llm.generate(PROMPT, seed=seed, **warm).token_ids for seed in (1, 2, 3)}
    assert llm.generate(PROMPT, seed=2, **warm).token_ids == found[2]
    assert len({tuple(ids) for ids in found.values()}) == 3
    assert llm.generate(PROMPT, **warm).token_ids != llm.generate(PROMPT, **warm).token_ids


def test_threads_ubatch_and_reuse_change_no_token(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "SHARED_WORK", 0)
    found = []
    for options in ({"threads": 1}, {"threads": 2}, {"threads": 3, "ubatch": 5}):
        with LLM(tiny_gguf, **options) as llm:
            for _ in range(2):  # the second time the prompt is in the cache
                found.append(llm.generate(PROMPT, max_tokens=60, temperature=1.2, seed=7, ignore_eos=True).token_ids)
    assert found[1:] == found[:-1]


def test_a_stream_closed_early_leaves_the_model_usable(llm: LLM, greedy: Generation) -> None:
    for n in (0, 1, 5):
        stream = llm.stream(PROMPT, max_tokens=60, **GREEDY)
        for _ in range(n):
            next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert llm.generate(PROMPT, max_tokens=60, **GREEDY).token_ids == greedy.token_ids
    next(llm.stream("something else", **GREEDY))
    assert llm.generate(PROMPT, max_tokens=60, **GREEDY).token_ids == greedy.token_ids


def test_a_stream_that_another_one_displaced_says_so(llm: LLM, greedy: Generation) -> None:
    first = llm.stream(PROMPT, **GREEDY)
    next(first)
    second = llm.stream("another prompt", max_tokens=10, **GREEDY)
    next(second)
    with pytest.raises(UsageError, match="another generation began"):
        list(first)
    assert len(list(second)) == 10
    assert llm.generate(PROMPT, max_tokens=60, **GREEDY).token_ids == greedy.token_ids


def test_a_longer_prompt_computes_only_what_is_new(llm: LLM) -> None:
    ids = llm.tokenize(PROMPT + " and went home again")
    llm.generate(ids[:5], max_tokens=0)
    found = llm.generate(ids, max_tokens=10, **GREEDY)
    assert (found.timings.prompt_tokens, found.timings.cached_tokens) == (len(ids), 5)
    again = llm.generate(ids, max_tokens=10, **GREEDY)
    assert again.timings.cached_tokens == len(ids) - 1
    llm.generate([3], max_tokens=0)
    cold = llm.generate(ids, max_tokens=10, **GREEDY)
    assert cold.timings.cached_tokens == 0
    assert found.token_ids == again.token_ids == cold.token_ids


def test_the_callers_time_is_not_counted(llm: LLM) -> None:
    began = time.perf_counter()
    for step in llm.stream([5, 6], max_tokens=4, **GREEDY):
        if step.token_id is not None:
            time.sleep(0.05)
    assert 0 < step.timings.generation_seconds <= time.perf_counter() - began - 4 * 0.05
