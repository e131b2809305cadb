"""The paged KV cache under a running engine: sharing, copying, taking back, and what does not fit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from gguf_models import Models, logits, opened
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.errors import ContextLengthError
from halfbyte.runtime.engine.batch import Part
from halfbyte.runtime.engine.engine import Engine
from halfbyte.runtime.engine.kv_pages import PagePool, Sequence
from halfbyte.runtime.kernels.page_format import PAGE

CONTEXT = 640


@pytest.fixture(scope="module", params=["f16", "q8_0", "q4_0"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    models = Models(tmp_path_factory.mktemp("models"))
    with opened(models.file("q4_0"), context=CONTEXT, cache_type=request.param) as engine:
        yield engine


@pytest.fixture(autouse=True)
def all_pages_come_back(engine: Engine) -> Iterator[None]:
    assert engine._pages.free_pages == CONTEXT // PAGE
    yield
    assert engine._pages.free_pages == CONTEXT // PAGE


def tokens(n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 400, n).tolist()


@pytest.mark.parametrize("length", [1, 63, 64, 65, 150])
def test_forks_share_pages_and_copy_on_write(engine: Engine, length: int) -> None:
    """Three branches of one prompt, in one step and alone, do not see each other's tokens."""
    prompt, free = tokens(length, 0), engine._pages.free_pages
    trunk = engine.new_sequence()
    logits(engine, prompt, trunk)
    used = free - engine._pages.free_pages
    assert used == -(-length // PAGE)
    branches = [trunk.fork() for _ in range(3)]
    assert free - engine._pages.free_pages == used  # a fork alone takes none
    endings = [tokens(5, seed) for seed in (1, 2, 3)]
    want = [logits(engine, prompt + ending)[-5:] for ending in endings]
    for i in range(5):
        found = engine.step([Part(b, e[i : i + 1]) for b, e in zip(branches, endings, strict=True)])
        np.testing.assert_array_equal(found, [w[i] for w in want])
    own = -(-(length + 5) // PAGE) - length // PAGE  # of each branch; full pages are still there once
    assert free - engine._pages.free_pages == used + 3 * own
    np.testing.assert_array_equal(logits(engine, endings[0], trunk), want[0])
    for sequence in (trunk, *branches):
        sequence.close()


def test_a_fork_outlives_its_trunk(engine: Engine) -> None:
    prompt, ending = tokens(100, 4), tokens(40, 5)
    trunk = engine.new_sequence()
    logits(engine, prompt, trunk)
    branch = trunk.fork()
    trunk.close()
    other = engine.new_sequence()
    logits(engine, tokens(200, 6), other)  # takes the pages that the trunk alone held
    np.testing.assert_array_equal(logits(engine, ending, branch), logits(engine, prompt + ending)[-40:])
    branch.close()
    other.close()


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 128, 129])
def test_truncate_and_continue_equals_a_fresh_run(engine: Engine, length: int) -> None:
    ids, other = tokens(130, 7), tokens(90, 8)
    sequence = engine.new_sequence()
    logits(engine, ids, sequence)
    sequence.truncate(length)
    assert (len(sequence), sequence.tokens) == (length, ids[:length])
    np.testing.assert_array_equal(logits(engine, other, sequence), logits(engine, ids[:length] + other)[length:])
    sequence.truncate(10_000)
    assert len(sequence) == length + 90
    sequence.close()


def test_truncating_a_fork_leaves_the_trunk(engine: Engine) -> None:
    prompt = tokens(100, 9)
    trunk = engine.new_sequence()
    logits(engine, prompt, trunk)
    branch = trunk.fork()
    branch.truncate(70)
    logits(engine, tokens(20, 10), branch)
    np.testing.assert_array_equal(logits(engine, [5], trunk), logits(engine, [*prompt, 5])[-1:])
    trunk.close()
    branch.close()


def test_the_context_is_the_limit_of_a_sequence(engine: Engine) -> None:
    sequence = engine.new_sequence()
    logits(engine, tokens(CONTEXT - 1, 11), sequence)
    with pytest.raises(ContextLengthError, match=f"2 tokens after {CONTEXT - 1} do not fit the context of {CONTEXT}"):
        engine.step([Part(sequence, [1, 2])])
    assert len(sequence) == CONTEXT - 1
    engine.step([Part(sequence, [1])])  # the last place
    with pytest.raises(ContextLengthError, match=f"1 tokens after {CONTEXT} do not fit"):
        engine.step([Part(sequence, [1])])
    assert len(sequence) == CONTEXT
    sequence.close()


def test_a_step_that_does_not_fit_changes_no_sequence(engine: Engine) -> None:
    """The first part fits, the second does not: both stay as they were, and can go on."""
    first, second = engine.new_sequence(), engine.new_sequence()
    a, b = tokens(320, 12), tokens(300, 13)
    logits(engine, a, first)
    logits(engine, b, second)
    with pytest.raises(ContextLengthError, match=f"0 of {CONTEXT} positions are free"):
        engine.step([Part(second, tokens(20, 14)), Part(first, [1])])
    assert (first.tokens, second.tokens) == (a, b)
    found = logits(engine, [3], second)
    first.close()
    np.testing.assert_array_equal(found, logits(engine, [*b, 3])[-1:])
    second.close()


def test_no_page_for_a_copy(engine: Engine) -> None:
    """A fork's first token needs a page when the last one is shared and full pages are all taken."""
    trunk = engine.new_sequence()
    logits(engine, tokens(CONTEXT - 1, 15), trunk)
    branch = trunk.fork()
    with pytest.raises(ContextLengthError, match="positions are free"):
        engine.step([Part(branch, [1])])
    assert len(branch) == CONTEXT - 1
    branch.close()
    engine.step([Part(trunk, [1])])
    trunk.close()


class Model:
    """What the pool should do, by sets: which sequences hold which page."""

    def __init__(self) -> None:
        self.pool = PagePool(n_layers=1, n_kv_heads=1, head_dim=2, context=10 * PAGE, kv="f16")
        self.sequences = [Sequence(self.pool)]

    def check(self) -> None:
        held = [page for sequence in self.sequences for page in sequence._pages]
        assert len(set(held)) + self.pool.free_pages == self.pool.n_pages
        for sequence in self.sequences:
            assert len(sequence._pages) == -(-len(sequence) // PAGE)
            assert sequence.offsets[: len(sequence._pages)].tolist() == [
                page * self.pool.page_bytes for page in sequence._pages
            ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["extend", "truncate", "fork", "close"]), st.integers(0, 3), st.integers(0, 300))
    )
)
def test_pages_are_never_lost_or_held_twice(actions: list[tuple[str, int, int]]) -> None:
    """Any order of actions: each page is free or held, and no sequence writes to a page that another one holds."""
    model = Model()
    for action, index, n in actions:
        sequence = model.sequences[index % len(model.sequences)]
        if action == "extend":
            before = len(sequence)
            try:
                sequence.extend([0] * n)
            except ContextLengthError:
                assert len(sequence) == before
            else:
                written = set(sequence._pages[before // PAGE :]) if n else set()
                assert not any(written & set(s._pages) for s in model.sequences if s is not sequence)
        elif action == "truncate":
            sequence.truncate(n)
        elif action == "fork" and len(model.sequences) < 4:
            model.sequences.append(sequence.fork())
        elif action == "close" and len(model.sequences) > 1:
            sequence.close()
            model.sequences.remove(sequence)
        model.check()
