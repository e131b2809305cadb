"""Attention over pages of every type, against float64 and against itself cut otherwise."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any

import numpy as np
import pytest
from attention_layer import Layer, hadamard
from kernel_bench import RUNNABLE, address

from halfbyte.runtime.engine import batch
from halfbyte.runtime.engine.batch import N_ITEMS
from halfbyte.runtime.kernels import rope
from halfbyte.runtime.kernels.attention import CHUNK
from halfbyte.runtime.kernels.jit import Kernel, Library
from halfbyte.runtime.kernels.page_format import PAGE, pieces
from halfbyte.runtime.kernels.pages import PAGE_FORMATS
from halfbyte.runtime.kernels.targets import make_target

KV = list(PAGE_FORMATS)
GROUPS = [4, 1, 3, 7, 2, 8, 5, 6, 9]
# Every head size on the best instruction set, with page types and groups in turn; some on the others.
SIZES = [
    (target, 8 * k, GROUPS[k % len(GROUPS)], KV[(k + t) % len(KV)])
    for t, target in enumerate(RUNNABLE)
    for k in (range(1, 33) if t == 0 else (1, 3, 8, 10, 17))
]
WINDOWS: list[dict[str, Any]] = [
    {},
    {"window": 1},
    {"window": 70},
    {"window": 300},
    {"slopes": np.array([0.5, 0.01, 0.002, 0.1], np.float32)},
    {"window": 100, "slopes": np.array([0.3, 0.0, 0.02, 0.1], np.float32)},
]

CAPS: list[dict[str, Any]] = [
    {"cap": 0.5},
    {"sinks": np.array([-3.0, 0.0, 2.5, 90.0], np.float32)},
    {"window": 130, "cap": 2.0, "sinks": np.array([1.0, 30.0, -1e3, 4.0], np.float32)},
]


@pytest.fixture(scope="module")
def libraries() -> dict[str, Library]:
    return {name: Library(make_target(name)) for name in RUNNABLE}


TOLERANCE = 5e-6  # float32 rounding of sums of some hundred numbers of size 1


@pytest.mark.parametrize(("target", "head_dim", "group", "kv"), SIZES, ids=lambda x: str(x))
def test_every_head_size(libraries: dict[str, Library], target: str, head_dim: int, group: int, kv: str) -> None:
    """A prompt in uneven parts, then rows one by one: as float64, on every instruction set."""
    layer = Layer(libraries[target], head_dim, group, kv, n_kv_heads=1)
    tokens = layer.random(135, seed=head_dim)
    sequence = layer.sequence()
    found = [layer.feed(tokens[:130], 77, sequence), layer.feed(tokens[130:], 1, sequence)]
    layer.close()
    np.testing.assert_allclose(np.concatenate(found), layer.expected(tokens), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("options", WINDOWS, ids=lambda o: " ".join(o) + str(o.get("window", "")) or "plain")
def test_windows_and_slopes(libraries: dict[str, Library], kv: str, options: dict[str, Any]) -> None:
    """As float64 over several chunks, and the same bits whatever the parts: 512 rows at once, 1, or some."""
    layer = Layer(libraries[RUNNABLE[0]], 32, 2, kv, max_rows=512, **options)
    tokens = layer.random(2 * CHUNK + 90, seed=3)
    whole = layer.feed(tokens, 512)
    np.testing.assert_allclose(whole, layer.expected(tokens), atol=TOLERANCE, rtol=0)
    sequence = layer.sequence()
    parts = [layer.feed(tokens[:500], 113, sequence), layer.feed(tokens[500:], 1, sequence)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    layer.close()


@pytest.mark.parametrize("options", CAPS, ids=lambda o: " ".join(o))
def test_caps_and_sinks(libraries: dict[str, Library], options: dict[str, Any]) -> None:
    test_windows_and_slopes(libraries, "f16", options)


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("target", RUNNABLE)
def test_rows_split_over_threads_give_the_same_bits(libraries: dict[str, Library], target: str, kv: str) -> None:
    """One KV head: few threads take whole rows, many take parts of their positions."""
    tokens = found = None
    for threads, items in ((1, 4), (3, 4)):
        layer = Layer(libraries[target], 16, 3, kv, n_kv_heads=1, threads=threads, context=2400)
        tokens = tokens or layer.random(4 * CHUNK - 40, seed=4)
        sequence = layer.sequence()
        layer.feed(tokens[:-20], 200, sequence)
        rows = layer.feed(tokens[-20:], 1, sequence)
        assert layer.inputs.counts[N_ITEMS] == items
        for _ in range(3):  # the counters are as they were
            sequence.truncate(len(tokens) - 20)
            np.testing.assert_array_equal(layer.feed(tokens[-20:], 1, sequence), rows)
        if found is not None:
            np.testing.assert_array_equal(rows, found)
        found = rows
        whole = layer.feed(tokens, 200)[-20:]
        np.testing.assert_array_equal(whole, found)
        layer.close()


@pytest.mark.parametrize("kv", KV)
def test_a_batch_gives_the_same_bits(libraries: dict[str, Library], kv: str) -> None:
    """Rows of several sequences in one step, prompts beside single rows, as each sequence alone."""
    layer = Layer(libraries[RUNNABLE[0]], 24, 2, kv, context=2048)
    lengths = (300, 70, 129, 520)
    prompts = [layer.random(n + 3, seed=n) for n in lengths]
    want = [layer.feed(prompt, 100)[-3:] for prompt in prompts]
    sequences = [layer.sequence() for _ in prompts]
    for sequence, prompt in zip(sequences, prompts, strict=True):
        layer.feed(prompt[:-3], 150, sequence)
    other = layer.random(90, seed=1)
    beside = layer.sequence()
    for i in range(3):
        parts = [(s, p[len(p) - 3 + i : len(p) - 2 + i]) for s, p in zip(sequences, prompts, strict=True)]
        found = layer.step([(beside, other[30 * i : 30 * i + 30]), *parts])
        np.testing.assert_array_equal(np.concatenate(found[1:]), [w[i] for w in want])
    layer.close()


@pytest.mark.skipif(os.name != "posix", reason="mprotect ends readable memory")
@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("window", [0, 90])
def test_only_visible_positions_are_read(libraries: dict[str, Library], kv: str, window: int) -> None:
    """Whatever else the pool holds, NaN among it, is never part of a result; pages end where memory ends."""
    layer = Layer(libraries[RUNNABLE[0]], 32, 2, kv, window=window, context=512)
    tokens = layer.random(330, seed=6)
    want = layer.feed(tokens, 66)
    memory = [GuardedMemory(layer.pool.n_pages * layer.pool.page_bytes) for _ in range(2)]
    layer.pool.layers = [(memory[0].address, memory[1].address)]
    layer.close()
    layer.build()
    sequence = layer.sequence()
    found = []
    for first in range(0, 330, 66):
        for m in memory:
            pages = m.bytes.reshape(layer.pool.n_pages, -1)
            held = sequence._pages[max(0, first - window + 1) // PAGE if window else 0 :]
            pages[[p for p in range(layer.pool.n_pages) if p not in held]] = 0xFF
        found.append(layer.feed(tokens[first : first + 66], 66 if first else 1, sequence))
    np.testing.assert_array_equal(np.concatenate(found), want)
    layer.close()


class GuardedMemory:
    """Bytes whose last one is the last of readable memory."""

    def __init__(self, nbytes: int):
        room = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._map = mmap.mmap(-1, room + mmap.PAGESIZE)
        everything = np.frombuffer(self._map, np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        assert not libc.mprotect(ctypes.c_void_p(address(everything) + room), ctypes.c_size_t(mmap.PAGESIZE), 0)
        self.bytes = everything[room - nbytes : room]
        self.address = address(self.bytes)


@pytest.mark.parametrize("kv", KV)
def test_sharp_scores(libraries: dict[str, Library], kv: str) -> None:
    """Scores of thousands, rising and falling: no overflow, no row without weight."""
    layer = Layer(libraries[RUNNABLE[0]], 32, 2, kv)
    tokens = layer.random(400, seed=7, sharp=1.0)
    tokens.queries *= np.linspace(4000, 0, 400, dtype=np.float32)[:, None, None]
    tokens.keys *= np.linspace(0.1, 3, 400, dtype=np.float32)[:, None, None]
    found = layer.feed(tokens, 100)
    assert np.isfinite(found).all()
    error = np.abs(found - layer.expected(tokens))
    assert np.quantile(error, 0.9) < 1e-3  # scores of 10000 have 1e-3 of float32 rounding
    layer.close()


@pytest.mark.parametrize("head_dim", [8, 24, 64, 80, 256])
@pytest.mark.parametrize("target", RUNNABLE)
def test_hadamard_rotation(libraries: dict[str, Library], target: str, head_dim: int) -> None:
    x = np.random.default_rng(8).standard_normal(head_dim).astype(np.float32)
    y = x.copy()
    libraries[target].function(Kernel(_turn, (head_dim,)))(address(y), 0, 0, 0)
    np.testing.assert_allclose(y, hadamard(x.astype(np.float64)), atol=1e-6)


def _turn(e: Any, head_dim: int) -> None:
    rope.hadamard(e, e.args[0], head_dim)


def test_bytes_of_a_page() -> None:
    """34 and 18 bytes per 32 numbers, as GGUF's blocks."""
    per_block = {kv: PAGE_FORMATS[kv](64).head_bytes * 32 / (64 * PAGE) for kv in KV}
    assert per_block == {"f16": 64, "f32": 128, "q8_0": 34, "q4_0": 18}


@pytest.mark.parametrize("length", range(1, 70))
def test_pieces_cover_all_columns(length: int) -> None:
    found = pieces(5, length, 16)
    assert [c for column, width in found for c in range(column, column + width)] == list(range(5, 5 + length))
    assert all(width in (1, 2, 4, 8, 16) for _, width in found)


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("window", [0, 1, 65, 300])
def test_encoders_see_both_sides(libraries: dict[str, Library], kv: str, window: int) -> None:
    """As float64, sequences of several lengths in one step; and each alone gives the same bits."""
    for threads, n_kv_heads, group in ((1, 2, 1), (3, 1, 3)):
        layer = Layer(
            libraries[RUNNABLE[0]], 32, group, kv, n_kv_heads=n_kv_heads, threads=threads, window=window, causal=False,
            max_rows=800, context=2048,
        )  # fmt: skip
        prompts = [layer.random(n, seed=n) for n in (1, 64, 600, 129, 2)]
        together = layer.step([(layer.sequence(), prompt) for prompt in prompts])
        for rows, prompt in zip(together, prompts, strict=True):
            np.testing.assert_allclose(rows, layer.expected(prompt), atol=TOLERANCE, rtol=0)
            np.testing.assert_array_equal(layer.feed(prompt, 800), rows)
        layer.close()


@pytest.mark.parametrize("window", [0, 300])
def test_rows_of_an_encoder_split_by_position(
    libraries: dict[str, Library], window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many tasks as hundreds of threads would want: the same bits as whole tiles, whatever a step before left."""
    found = []
    for tasks in (4, 1200):
        monkeypatch.setattr(batch, "TASKS_PER_THREAD", tasks)
        layer = Layer(
            libraries[RUNNABLE[0]], 16, 1, "f32", n_kv_heads=1, window=window, causal=False, context=2400, max_rows=530
        )
        layer.feed(layer.random(300, seed=8), 530)
        found.append(layer.feed(layer.random(530, seed=9), 530))
        is_split = layer.inputs.items[: layer.inputs.counts[N_ITEMS], -1] >= 0
        assert is_split.any() == (tasks > 4)
        layer.close()
    np.testing.assert_array_equal(found[0], found[1])
