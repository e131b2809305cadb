"""Samplers against sorted loops in float64, the draw against its own probabilities, and bad options."""

import itertools
import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import tiny_vocab
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.errors import HalfbyteError, ModelFileError, UsageError
from halfbyte.quant.gguf_reader import open_gguf
from halfbyte.runtime.sampling import NonFiniteLogitsError, Sampler, SamplingParams, chain
from halfbyte.runtime.sampling.params import recommended
from halfbyte.runtime.steps import Timings

# ---------------------------------------------------------------------------------------------------------------------
# the oracle: llama.cpp's rules on lists of (id, logit), written as plainly as they read


def probabilities(rows):
    """[(id, logit)] -> {id: probability}."""
    top = max(logit for _, logit in rows)
    weights = {i: math.exp(logit - top) for i, logit in rows}
    total = math.fsum(weights.values())
    return {i: weight / total for i, weight in weights.items()}


def falling(rows):
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def plain_penalties(rows, history, last_n, repeat, frequency, presence):
    recent = list(history)[-last_n:] if last_n > 0 else list(history)
    out = []
    for i, logit in rows:
        count = recent.count(i)
        if count:
            logit = logit / repeat if logit > 0 else logit * repeat
            logit -= count * frequency + presence
        out.append((i, logit))
    return out


def plain_top_k(rows, k):
    return falling(rows)[:k] if k > 0 else rows


def plain_top_p(rows, p):
    if p >= 1:
        return rows
    chances, total, kept = probabilities(rows), 0.0, []
    for row in falling(rows):
        kept.append(row)
        total += chances[row[0]]
        if total >= p:
            break
    return kept


def plain_min_p(rows, p):
    chances = probabilities(rows)
    least = p * max(chances.values())
    return [row for row in rows if chances[row[0]] >= least] if p > 0 else rows


def plain_chain(logits, history, params):
    rows = [(i, float(logit)) for i, logit in enumerate(logits)]
    if params.repeat_last_n:
        given = params.repeat_penalty, params.frequency_penalty, params.presence_penalty
        rows = plain_penalties(rows, history, params.repeat_last_n, *given)
        rows = [(i, float(np.float32(logit))) for i, logit in rows]
    rows = plain_min_p(plain_top_p(plain_top_k(rows, params.top_k), params.top_p), params.min_p)
    return probabilities([(i, logit / params.temperature) for i, logit in rows])


def as_rows(candidates):
    return [(candidates.id_at(k), float(logit)) for k, logit in enumerate(candidates.logits)]


def ids_of(rows):
    return sorted(i for i, _ in rows)


# few distinct values, so that ties are common; more than one guess of a partition's border is then right
some_logits = st.lists(st.integers(-30, 30).map(lambda x: x / 4), min_size=1, max_size=50).map(
    lambda values: np.array(values, np.float32)
)


@settings(max_examples=100, deadline=None)
@given(logits=some_logits, k=st.integers(0, 60))
def test_top_k(logits, k):
    kept = chain.top_k(chain.Candidates(None, logits), k)
    assert as_rows(kept) == sorted(plain_top_k(list(enumerate(logits.tolist())), k))


@settings(max_examples=100, deadline=None)
@given(logits=some_logits, p=st.floats(0, 1))
def test_top_p(logits, p):
    rows = list(enumerate(logits.tolist()))
    kept = chain.top_p(chain.Candidates(None, logits), p)
    expected = plain_top_p(rows, p)
    # where the sum meets p to the last bit, the order of the additions decides about one token more or less
    assert abs(len(ids_of(as_rows(kept))) - len(expected)) <= 1
    chances = probabilities(rows)
    reached = [sum(chances[i] for i, _ in falling(rows)[:n]) for n in range(1, len(rows) + 1)]
    if all(abs(total - p) > 1e-12 for total in reached):
        assert as_rows(kept) == sorted(expected)


@settings(max_examples=100, deadline=None)
@given(logits=some_logits, p=st.floats(0, 1))
def test_min_p(logits, p):
    rows = list(enumerate(logits.tolist()))
    kept = ids_of(as_rows(chain.min_p(chain.Candidates(None, logits), p)))
    ratios = {i: math.exp(logit - max(logits.tolist())) for i, logit in rows}
    if all(abs(ratio - p) > 1e-12 for ratio in ratios.values()):
        assert kept == ids_of(plain_min_p(rows, p))
    assert set(np.flatnonzero(logits == logits.max())) <= set(kept), "the most likely ones always stay"


@settings(max_examples=100, deadline=None)
@given(
    logits=some_logits,
    history=st.lists(st.integers(0, 59), max_size=30),
    last_n=st.sampled_from([-1, 1, 5, 100]),
    repeat=st.sampled_from([0.5, 1.0, 1.3]),
    frequency=st.sampled_from([-0.5, 0.0, 0.7]),
    presence=st.sampled_from([0.0, 0.25]),
)
def test_penalties(logits, history, last_n, repeat, frequency, presence):
    before = logits.copy()
    found = chain.penalties(logits, history, last_n, repeat, frequency, presence)
    expected = plain_penalties(list(enumerate(logits.tolist())), history, last_n, repeat, frequency, presence)
    np.testing.assert_allclose(found, [logit for _, logit in expected], rtol=1e-6)
    np.testing.assert_array_equal(logits, before)


def test_temperature():
    found = chain.temperature(chain.Candidates(None, np.array([1, 3, 2], np.float32)), 0.5)
    np.testing.assert_array_equal(found.logits, [-4, 0, -2])
    tiny = chain.temperature(chain.Candidates(None, np.array([1, 3, 2], np.float32)), 5e-324)
    assert chain.greedy(tiny) == 1 and chain.dist(tiny, np.random.default_rng(0)) == 1


@settings(max_examples=60, deadline=None)
@given(
    logits=some_logits,
    history=st.lists(st.integers(0, 49), max_size=20),
    options=st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0.05, 0.8, 1.5]),
            "top_k": st.sampled_from([0, 1, 5, 40]),
            "top_p": st.sampled_from([0.0, 0.53, 0.951, 1.0]),
            "min_p": st.sampled_from([0.0, 0.0513, 0.51]),
            "repeat_penalty": st.sampled_from([1.0, 1.21]),
            "presence_penalty": st.sampled_from([0.0, 0.31]),
            "repeat_last_n": st.sampled_from([-1, 0, 7]),
        }
    ),
    seed=st.integers(0, 2**40),
)
def test_the_chain_draws_only_what_the_rules_leave(logits, history, options, seed):
    params = SamplingParams(seed=seed, **options)
    allowed = plain_chain(logits, history, params)
    sampler = Sampler(params, logits.size)
    for _ in range(20):
        assert allowed[sampler.pick(logits, history)] > 0


def test_defaults_draw_with_the_chain_s_probabilities():
    """Chi-square over 6000 draws at a seed; 1e-4 of all seeds would fail a right sampler."""
    random = np.random.default_rng(5)
    logits = (random.normal(size=300) * 2).astype(np.float32)
    params = SamplingParams(seed=11, repeat_penalty=1.1, repeat_last_n=8)
    history = list(range(0, 300, 7))
    expected = plain_chain(logits, history, params)
    sampler, draws = Sampler(params, 300), 6000
    counts = np.bincount([sampler.pick(logits, history) for _ in range(draws)], minlength=300)
    assert set(np.flatnonzero(counts)) <= set(expected)
    statistic = sum((counts[i] - draws * p) ** 2 / (draws * p) for i, p in expected.items())
    freedom = len(expected) - 1
    assert freedom >= 10
    # Wilson and Hilferty: (chi2 / n) ^ (1/3) is nearly normal
    normal = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert normal < 3.72


def test_the_whole_vocabulary():
    """128256 tokens: the same tokens as the plain rules keep, with and without top_k."""
    logits = (np.random.default_rng(1).normal(size=128_256) * 3).astype(np.float32)
    for options in ({}, {"top_k": 0}, {"top_k": 0, "top_p": 1.0}, {"top_k": 0, "min_p": 0.0, "top_p": 0.5}):
        params = SamplingParams(**options)
        kept = chain.top_k(chain.Candidates(None, logits), params.top_k)
        kept = chain.min_p(chain.top_p(kept, params.top_p), params.min_p)
        assert ids_of(as_rows(kept)) == sorted(plain_chain(logits, [], params))


@pytest.mark.parametrize("n", [(1 << 15) - 1, 1 << 15, 50_257, 128_256])
@pytest.mark.parametrize("steps", [1, 40, 0], ids=["all equal", "many equal", "hardly any equal"])
def test_top_k_and_top_p_of_many_logits_with_ties(n, steps):
    """Long vocabularies are narrowed down before they are sorted; among equals the first ids stay."""
    logits = np.random.default_rng(n).normal(size=n) * 3
    logits = (np.round(logits * steps / 40) if steps else logits).astype(np.float32) * (steps != 1)
    order = np.lexsort((np.arange(n), -logits))
    for k in (1, 2, 40, 1024, 1025, n // 2, n - 1):
        np.testing.assert_array_equal(chain.top_k(chain.Candidates(None, logits), k).ids, np.sort(order[:k]))
    weights = np.exp(logits[order].astype(np.float64) - logits.max())
    reached = np.cumsum(weights) / math.fsum(weights)
    for p in (0.0, 0.1, 0.501, 0.95, 0.9999):
        count = int(np.searchsorted(reached, p)) + 1
        if abs(reached[count - 1] - p) > 1e-9 < abs(reached[max(count - 2, 0)] - p):
            kept = chain.top_p(chain.Candidates(None, logits), p)
            np.testing.assert_array_equal(kept.ids, np.sort(order[:count]))


def test_greedy_takes_the_first_of_equal_logits():
    logits = np.array([1, 5, 5, 2], np.float32)
    for temperature in (0, 0.0, -1.0):
        assert Sampler(SamplingParams(temperature=temperature), 4).pick(logits, []) == 1
    assert Sampler(SamplingParams(temperature=0, repeat_penalty=2.0), 4).pick(logits, [1]) == 2, "penalties come first"


def test_seeds():
    logits = np.zeros(1000, np.float32)
    params = SamplingParams(seed=3, top_k=0, top_p=1, min_p=0)

    def draw(sampler):
        return [sampler.pick(logits, []) for _ in range(8)]

    assert draw(Sampler(params, 1000)) == draw(Sampler(params, 1000))
    assert draw(Sampler(params, 1000)) != draw(Sampler(SamplingParams(seed=4, top_k=0, top_p=1, min_p=0), 1000))
    random = SamplingParams(top_k=0, top_p=1, min_p=0)
    one, other = Sampler(random, 1000), Sampler(random, 1000)
    assert draw(one) != draw(other)
    again = Sampler(SamplingParams(seed=one.seed, top_k=0, top_p=1, min_p=0), 1000)
    assert draw(again) == draw(Sampler(SamplingParams(seed=one.seed, top_k=0, top_p=1, min_p=0), 1000))


def test_ignore_eos():
    logits = np.array([9, 1, 8, 0], np.float32)
    greedy = SamplingParams(temperature=0, ignore_eos=True)
    assert Sampler(greedy, 4, end_ids={0, 2}).pick(logits, []) == 1
    assert Sampler(SamplingParams(temperature=0), 4, end_ids={0, 2}).pick(logits, []) == 0
    drawn = Sampler(SamplingParams(ignore_eos=True, top_p=1, min_p=0, temperature=50, seed=1), 4, end_ids={0, 2})
    assert {drawn.pick(logits, []) for _ in range(200)} == {1, 3}
    assert logits[0] == 9
    with pytest.raises(UsageError, match="ignore_eos leaves none of the 2 tokens"):
        Sampler(greedy, 2, end_ids={0, 1})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0, 0.8])
def test_logits_that_are_not_finite(bad, temperature):
    logits = np.zeros(100, np.float32)
    logits[[17, 40]] = bad
    with pytest.raises(NonFiniteLogitsError, match=rf"2 logits of 100 .* first {bad} for token 17") as caught:
        Sampler(SamplingParams(temperature=temperature), 100).pick(logits, [])
    assert isinstance(caught.value, HalfbyteError)


def test_extreme_logits():
    logits = np.array([3e38, -3e38, 3e38], np.float32)
    params = SamplingParams(seed=1, min_p=0, repeat_penalty=1.5)
    assert Sampler(params, 3).pick(logits, [1]) in (0, 2)
    raised = SamplingParams(seed=1, repeat_penalty=0.01)
    assert Sampler(raised, 3).pick(logits, [2]) in (0, 2), "a penalty below 1 does not lead past float32"
    with pytest.raises(ValueError, match=r"\(3,\), not \(4,\)"):
        Sampler(params, 4).pick(logits, [])


# ---------------------------------------------------------------------------------------------------------------------
# options


def test_defaults_are_llama_cpps():
    assert {option.name: option.default for option in fields(SamplingParams)} == {
        "max_tokens": -1, "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.0,
        "frequency_penalty": 0.0, "presence_penalty": 0.0, "repeat_last_n": 64, "seed": -1, "stop": (),
        "ignore_eos": False,
    }  # fmt: skip
    for option in fields(SamplingParams):
        assert option.metadata["help"] and all(flag.startswith("-") for flag in option.metadata["flags"])


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("temperature", math.nan, "a finite number"),
        ("temperature", math.inf, "a finite number"),
        ("temperature", "0.5", "a finite number"),
        ("temperature", True, "a finite number"),
        ("top_k", -1, "an integer from 0"),
        ("top_k", 1.5, "an integer from 0"),
        ("top_p", 1.0001, "a finite number from 0 to 1"),
        ("top_p", -0.1, "a finite number from 0 to 1"),
        ("min_p", 2, "a finite number from 0 to 1"),
        ("repeat_penalty", 0, "a finite number above 0 to 1000"),
        ("repeat_penalty", math.inf, "a finite number above 0"),
        ("frequency_penalty", 1e9, "a finite number from -1000 to 1000"),
        ("repeat_last_n", -2, "an integer from -1"),
        ("max_tokens", -2, "an integer from -1"),
        ("seed", -2, "an integer from -1"),
        ("seed", 10**5000, "an integer from -1"),
        ("top_p", 10**5000, "a finite number from 0 to 1"),
        ("stop", 3, "a text or a list of texts"),
        ("stop", ["a", ""], "texts that are not empty"),
        ("ignore_eos", 1, "true or false"),
    ],
    ids=itertools.count(),
)
def test_values_out_of_range(name, value, allowed):
    with pytest.raises(UsageError) as caught:
        SamplingParams(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name} ") and allowed in message and "\n" not in message and len(message) < 250


def test_values_are_converted():
    params = SamplingParams(temperature=1, top_k=np.int64(3), top_p=np.float32(0.5), stop="END")
    assert type(params.temperature) is float and type(params.top_k) is int and type(params.top_p) is float
    assert params.stop == ("END",) and SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert hash(params) == hash(SamplingParams(temperature=1.0, top_k=3, top_p=0.5, stop=("END",)))


def test_timings():
    timings = Timings(prompt_tokens=100, cached_tokens=60, prompt_seconds=0.5, generated_tokens=9, generation_seconds=3)
    assert timings.prompt_per_second == 80 and timings.generation_per_second == 3
    assert Timings().prompt_per_second == Timings().generation_per_second == 0


def test_what_a_file_recommends(tmp_path: Path) -> None:
    keys = {"general.sampling.temp": 0.5, "general.sampling.top_k": 7, "general.sampling.penalty_repeat": 1.25}
    with open_gguf(tiny_vocab.write(tmp_path / "m.gguf", keys)) as file:
        assert recommended(file) == {"temperature": 0.5, "top_k": 7, "repeat_penalty": 1.25}
    with (
        open_gguf(tiny_vocab.write(tmp_path / "bad.gguf", {"general.sampling.top_p": 1.5})) as file,
        pytest.raises(ModelFileError, match=r"bad.gguf.*general.sampling.top_p.*1.5; allowed: .* to 1"),
    ):
        recommended(file)
