"""Attention.  Enters: float32 query, key and value rows; leaves: float32 rows, one head after the other.

Keys and values live in pages of 64 positions as float16 or float32 (engine/kv_pages.py).  One page of one KV head
holds the keys as [head_dim][64] (so a vector of positions is one load) and the values as [64][head_dim].  A task is
one tile of consecutive rows of a sequence by one KV head; the query heads that share it read each key and value once.
Softmax is computed online, 4 vectors of positions at a time (Milakov and Gimelshein 2018; Dao et al. 2022), in order
of position, so a row's result does not depend on which rows share its tile.
"""

from __future__ import annotations

import math
from typing import Any

from .elementwise import tasks
from .emit import F16, F32, I32, I64, Emitter, Value, Variable, vec
from .jit import Kernel
from .records import Fields, Record

PAGE = 64  # positions of one page
KV_TYPES = {"f16": F16, "f32": F32}  # what a page's elements may be
TASK_HEADS = 8  # heads that one task rotates, at least
VECTORS = 4  # vectors of positions whose scores are in registers at once

# rotary angles: cosine and sine float32 [row, n_rot/2]; per row the byte offset of its page's start in the layer's
# key and value pools (page, int64) and its place in the page (slot, int64).  Pools: page_bytes a page of all KV heads.
ROPE = Record(
    "n_rows", "query", "query_stride", "key", "value", "key_stride", "n_heads", "n_kv_heads", "cosine", "sine",
    "pages", "slots", "keys", "values",
)  # fmt: skip
# tiles int64 [n_tiles, 4]: first row, rows, position of the first row, address of the sequence's int64 page offsets.
ATTENTION = Record(
    "n_tiles", "tiles", "query", "query_stride", "n_kv_heads", "keys", "values", "out", "out_stride", "scale",
)  # fmt: skip
TILE = Record("row", "rows", "position", "pages")


def vector_width(lanes: int, columns: int) -> int:
    """The widest vector, at most `lanes`, that divides `columns` (columns even)."""
    return min(lanes, columns & -columns)


def element_bytes(kv: str) -> int:
    """Bytes of one element of a page."""
    return 2 if kv == "f16" else 4


def rope_store(e: Emitter, head_dim: int, n_rot: int, kv: str) -> None:
    """Program step: rotate query and key heads in place, write keys and values to their pages.  Record: ROPE.

    Pairs are neighbours (2i, 2i+1), the first n_rot columns of a head rotate (Su et al. 2021, as GGUF llama files
    are permuted).  A task is one head of one row.
    """
    a, size, stored = ROPE.read(e, e.args[0]), element_bytes(kv), KV_TYPES[kv]
    heads = a.n_heads + a.n_kv_heads
    with tasks(e, e.load(a.n_rows, I64) * heads, TASK_HEADS) as task:
        row, head = task // heads, task % heads
        angles = row * (n_rot * 2)
        with e.when(head < a.n_heads):
            _rotate(e, a, a.query + row * a.query_stride + head * (4 * head_dim), angles, n_rot)
        with e.when(head >= a.n_heads):
            kv_head = head - a.n_heads
            at = row * a.key_stride + kv_head * (4 * head_dim)
            _rotate(e, a, a.key + at, angles, n_rot)
            page = e.load(a.pages + row * 8, I64) + kv_head * (size * PAGE * head_dim)
            slot = e.load(a.slots + row * 8, I64)
            width = vector_width(e.target.lanes, head_dim)
            with e.loop(0, head_dim, width) as d:
                key = e.load(a.key + at + d * 4, vec(F32, width)).to(stored)
                for i in range(width):
                    e.store(key[i], a.keys + page + (d + i) * (size * PAGE) + slot * size)
                value = e.load(a.value + at + d * 4, vec(F32, width)).to(stored)
                e.store(value, a.values + page + slot * (size * head_dim) + d * size)


def _rotate(e: Emitter, a: Fields, head: Value, angles: Value, n_rot: int) -> None:
    pairs = vector_width(e.target.lanes, n_rot // 2)
    even, odd = list(range(0, 2 * pairs, 2)), list(range(1, 2 * pairs, 2))
    together = [i // 2 + pairs * (i % 2) for i in range(2 * pairs)]
    with e.loop(0, n_rot // 2, pairs) as i:
        x = e.load(head + i * 8, vec(F32, 2 * pairs))
        x0, x1 = x.pick(even), x.pick(odd)
        c, s = (e.load(t + angles + i * 4, vec(F32, pairs)) for t in (a.cosine, a.sine))
        y0, y1 = x0 * c - x1 * s, x0 * s + x1 * c
        if pairs == 1:  # an odd number of pairs goes one by one
            e.store(y0, head + i * 8)
            e.store(y1, head + i * 8 + 4)
        else:
            e.store(y0.pick(together, y1), head + i * 8)


def attention(e: Emitter, head_dim: int, group: int, kv: str) -> None:
    """Program step.  group: query heads of one KV head.  Record: ATTENTION."""
    a = ATTENTION.read(e, e.args[0])
    ticket = e.args[3]
    tasks = e.load(a.n_tiles, I64) * a.n_kv_heads
    together = query_rows(group)
    scores, sums = e.scratch(4 * together * VECTORS * e.target.lanes), e.scratch(4 * together * head_dim)
    with e.repeat_while() as go_on_if:
        task = e.atomic_add(ticket, e.i64(1))
        go_on_if(task < tasks)
        tile = TILE.read(e, a.tiles + task // a.n_kv_heads * (8 * TILE.size))
        head = task % a.n_kv_heads
        queries = tile.rows * group  # query q of the tile: row q // group, query head q % group of this KV head
        q = e.var(e.i64(0))
        for n in dict.fromkeys((together, 1)):
            with e.repeat_while() as go_on_if_full:
                go_on_if_full(q.value + n <= queries)
                _queries(e, a, tile, head, q.value, n, group, head_dim, kv, scores, sums)
                q.set(q.value + n)


def query_rows(group: int) -> int:
    """Query vectors that one pass over the keys serves: a whole group where it fits the registers."""
    return group if 2 <= group <= 6 else 4


def _queries(
    e: Emitter, a: Fields, tile: Fields, head: Value, first: Value, n: int, group: int, head_dim: int,
    kv: str, scores: Value, sums: Value,
) -> None:  # fmt: skip
    """Queries first..first+n-1 of the tile against all positions they may see."""
    lanes, size, stored = e.target.lanes, element_bytes(kv), KV_TYPES[kv]
    span = VECTORS * lanes  # positions at a time
    column = head * (4 * head_dim * group)
    rows = [tile.row + (first + i) // group for i in range(n)]
    heads = [(first + i) % group * (4 * head_dim) + column for i in range(n)]
    last = [tile.position + (first + i) // group for i in range(n)]  # the last position that query i may see
    query = [a.query + rows[i] * a.query_stride + heads[i] for i in range(n)]
    width = vector_width(lanes, head_dim)
    for i in range(n):
        for d in range(0, head_dim, width):
            e.store(e.zero(vec(F32, width)), sums + 4 * (i * head_dim + d))
    top = [e.var(e.const(F32, -1e30)) for _ in range(n)]
    weight = [e.var(e.const(F32, 0.0)) for _ in range(n)]
    with e.loop(0, last[-1] + 1, span) as position:
        page = e.load(tile.pages + position // PAGE * 8, I64) + head * (size * PAGE * head_dim)
        slot = position % PAGE
        dots = _dots(e, a.keys + page + slot * size, stored, query, head_dim)
        _softmax(e, dots, head_dim, a.float32("scale"), last, position, top, weight, scores, sums)
        seen = e.min(last[-1] + 1 - position, span)
        _weighted_values(e, a.values + page + slot * (size * head_dim), stored, n, head_dim, seen, scores, sums)
    for i in range(n):
        inverse = (1.0 / weight[i].value).splat(width)
        for d in range(0, head_dim, width):
            total = e.load(sums + 4 * (i * head_dim + d), vec(F32, width))
            e.store(total * inverse, a.out + rows[i] * a.out_stride + heads[i] + 4 * d)


def _dots(e: Emitter, keys: Value, stored: Any, query: list[Value], head_dim: int) -> list[list[Value]]:
    """Dot products of each query with one span of positions: [query][vector of positions]."""
    n, lanes, size = len(query), e.target.lanes, 2 if stored == F16 else 4
    dots = [[e.var(e.zero(vec(F32, lanes))) for _ in range(VECTORS)] for _ in range(n)]
    with e.loop(0, head_dim) as d:
        at = keys + d * (size * PAGE)
        key = [e.load(at + size * lanes * v, vec(stored, lanes)).to(F32) for v in range(VECTORS)]
        for i in range(n):
            x = e.broadcast(query[i] + d * 4, F32, lanes)
            for v in range(VECTORS):
                dots[i][v].set(e.fma(key[v], x, dots[i][v].value))
    return [[dot.value for dot in of_query] for of_query in dots]


def _softmax(
    e: Emitter, dots: list[list[Value]], head_dim: int, scale: Value, last: list[Value], position: Value,
    top: list[Variable], weight: list[Variable], scores: Value, sums: Value,
) -> None:  # fmt: skip
    """exp(scale * dot - top) of one span of positions -> scores; rescales what was summed under an older top."""
    n, lanes = len(dots), e.target.lanes
    lane = e.const(vec(I32, lanes), list(range(lanes)))
    width = vector_width(lanes, head_dim)
    for i in range(n):
        limit = (last[i] - position).to(I32).splat(lanes)
        scaled = [dot * scale.splat(lanes) for dot in dots[i]]
        scaled = [e.select((lane + lanes * v) <= limit, s, e.const(s.type, -1e30)) for v, s in enumerate(scaled)]
        highest = scaled[0]
        for s in scaled[1:]:
            highest = e.max(highest, s)
        before = top[i].value
        now = e.max(before, e.largest(highest))
        top[i].set(now)
        shares = [e.exp(s - now.splat(lanes)) for s in scaled]
        total = shares[0]
        for s in shares[1:]:
            total = total + s
        for v, s in enumerate(shares):
            e.store(s, scores + 4 * lanes * (i * VECTORS + v))
        shrink = e.exp(before - now)
        weight[i].set(e.fma(weight[i].value, shrink, e.sum(total)))
        with e.when(before < now):
            for d in range(0, head_dim, width):
                at = sums + 4 * (i * head_dim + d)
                e.store(e.load(at, vec(F32, width)) * shrink.splat(width), at)


def _weighted_values(
    e: Emitter, values: Value, stored: Any, n: int, head_dim: int, seen: Value, scores: Value, sums: Value
) -> None:
    """sums[i] += sum over the first `seen` positions of scores[i] * value, a few vectors of columns at a time."""
    lanes, size = e.target.lanes, 2 if stored == F16 else 4
    width = vector_width(lanes, head_dim)
    per_pass = max(1, min(head_dim // width, (24 if lanes >= 16 else 12) // (n + 1)))
    d = 0
    while d < head_dim:
        columns = list(range(d, min(d + per_pass * width, head_dim), width))
        totals = [[e.var(e.load(sums + 4 * (i * head_dim + c), vec(F32, width))) for c in columns] for i in range(n)]
        with e.loop(0, seen) as p:
            value = [e.load(values + p * (size * head_dim) + size * c, vec(stored, width)).to(F32) for c in columns]
            for i in range(n):
                share = e.broadcast(scores + p * 4 + 4 * lanes * VECTORS * i, F32, width)
                for total, v in zip(totals[i], value, strict=True):
                    total.set(e.fma(v, share, total.value))
        for i in range(n):
            for c, total in zip(columns, totals[i], strict=True):
                e.store(total.value, sums + 4 * (i * head_dim + c))
        d += per_pass * width


def rope_kernel(head_dim: int, n_rot: int, kv: str) -> Kernel:
    return Kernel(rope_store, (head_dim, n_rot, kv))


def attention_kernel(head_dim: int, group: int, kv: str) -> Kernel:
    return Kernel(attention, (head_dim, group, kv))


def attention_scale(head_dim: int) -> float:
    """1 / sqrt(head_dim)."""
    return 1.0 / math.sqrt(head_dim)
