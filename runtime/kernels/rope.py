"""Positions into queries and keys, keys and values into pages.  Enters: float32 query, key and value rows; leaves: the
queries rotated in place, the keys and values in their pages (pages.py)."""

from __future__ import annotations

import math

from .elementwise import tasks
from .emit import Emitter
from .jit import Kernel
from .pages import PAGE_FORMATS
from .records import Fields, Record
from .values import F32, I64, Value, vec

TASK_HEADS = 8  # heads that one task rotates, at least

# rotary angles: cosine and sine float32 [row, n_rot/2]; per row the byte offset of its page's start in the layer's
# key and value pools (page, int64) and its place in the page (slot, int64).  Pools: page_bytes a page of all KV heads.
ROPE = Record(
    "n_rows", "query", "query_stride", "key", "value", "key_stride", "n_heads", "n_kv_heads", "cosine", "sine",
    "pages", "slots", "keys", "values",
)  # fmt: skip


def vector_width(lanes: int, columns: int) -> int:
    """The widest vector, at most `lanes`, that divides `columns` (columns even)."""
    return min(lanes, columns & -columns)


def rope_store(e: Emitter, head_dim: int, n_rot: int, halves: bool, kv: str, first: int) -> None:
    """Program step: rotate query and key heads in place, write keys and values to their pages.  Record: ROPE.

    n_rot columns of a head, from `first` on, rotate (Su et al. 2021), none where that is 0.  Keys and values may be the
    same rows: values are what they were before.  Pairs are neighbours (2i, 2i+1),
    as in GGUF's llama files, or of `halves` (i, i + n_rot/2), as in GPT-NeoX.  A task is one head of one row, which
    asks for the next row's (512 rows of 32 and 8 heads take a third less time so, Zen 5).
    """
    a, pages = ROPE.read(e, e.args[0]), PAGE_FORMATS[kv](head_dim)
    heads, n_rows = a.n_heads + a.n_kv_heads, e.load(a.n_rows, I64)
    with tasks(e, n_rows * heads, TASK_HEADS) as task:
        row, head = task // heads, task % heads
        has_next = row + 1 < n_rows
        angles = row * (n_rot * 2)
        with e.when(head < a.n_heads):
            query = a.query + row * a.query_stride + head * (4 * head_dim)
            e.prefetch(query + e.select(has_next, a.query_stride, 0), 4 * head_dim)
            _rotate(e, a, query + 4 * first, angles, n_rot, halves)
            if pages.rotated:
                hadamard(e, query, head_dim)
        with e.when(head >= a.n_heads):
            kv_head = head - a.n_heads
            at = row * a.key_stride + kv_head * (4 * head_dim)
            key, value = a.key + at, a.value + at
            for place in (key, value):
                e.prefetch(place + e.select(has_next, a.key_stride, 0), 4 * head_dim)
            page = e.load(a.pages + row * 8, I64) + kv_head * pages.head_bytes
            slot = e.load(a.slots + row * 8, I64)
            pages.store_value(e, value, a.values + page, slot)
            _rotate(e, a, key + 4 * first, angles, n_rot, halves)
            if pages.rotated:
                hadamard(e, key, head_dim)
            pages.store_key(e, key, a.keys + page, slot)


def _rotate(e: Emitter, a: Fields, head: Value, angles: Value, n_rot: int, halves: bool) -> None:
    if not n_rot:
        return
    pairs = vector_width(e.target.lanes, n_rot // 2)
    even, odd = list(range(0, 2 * pairs, 2)), list(range(1, 2 * pairs, 2))
    together = [i // 2 + pairs * (i % 2) for i in range(2 * pairs)]
    with e.loop(0, n_rot // 2, pairs) as i:
        if halves:
            low, high = head + i * 4, head + i * 4 + 2 * n_rot
            x0, x1 = e.load(low, vec(F32, pairs)), e.load(high, vec(F32, pairs))
        else:
            low, high = head + i * 8, head + i * 8 + 4
            x = e.load(low, vec(F32, 2 * pairs))
            x0, x1 = x.pick(even), x.pick(odd)
        c, s = (e.load(t + angles + i * 4, vec(F32, pairs)) for t in (a.cosine, a.sine))
        y0, y1 = x0 * c - x1 * s, x0 * s + x1 * c
        if halves or pairs == 1:  # an odd number of pairs goes one by one
            e.store(y0, low)
            e.store(y1, high)
        else:
            e.store(y0.pick(together, y1), low)


def hadamard(e: Emitter, row: Value, head_dim: int) -> None:
    """Multiply the float32 [head_dim] at `row` by a Hadamard matrix over the root of its size, in place.

    The size is the largest power of two that divides head_dim, at most 256; the matrix is Sylvester's, so it is its
    own inverse, and products of queries with keys stay what they were.  It spreads a column that is far larger than the
    others, beside which a scale per block rounds those away (Ashkboos et al. 2024, QuaRot).
    """
    size = min(256, head_dim & -head_dim)
    lanes = min(e.target.lanes, size)
    for first in range(0, head_dim, size):
        places = [row + 4 * c for c in range(first, first + size, lanes)]
        x = [e.load(at, vec(F32, lanes)) for at in places]
        reach = 1
        while reach < lanes:
            sign = e.const(x[0].type, [-1.0 if i & reach else 1.0 for i in range(lanes)])
            x = [e.fma(v, sign, v.pick([i ^ reach for i in range(lanes)])) for v in x]
            reach *= 2
        step = 1
        while step < len(x):
            x = [x[i] + x[i + step] if not i & step else x[i - step] - x[i] for i in range(len(x))]
            step *= 2
        for v, at in zip(x, places, strict=True):
            e.store(v * (1.0 / math.sqrt(size)), at)


def rope_kernel(head_dim: int, n_rot: int, halves: bool, kv: str, first: int = 0) -> Kernel:
    return Kernel(rope_store, (head_dim, n_rot, halves, kv, first))
