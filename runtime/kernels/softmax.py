"""Softmax computed online (Milakov and Gimelshein 2018; Dao et al. 2022).  Enters: scores of one page of positions, as
logarithms to base 2; leaves: weights, and a state per query that later pages and other chunks join.

The state of a query: the top (a score that no later one exceeds by much), the sum of weights for each lane, and the
weighted sum of values.
"""

from __future__ import annotations

import functools
import operator

from .emit import Emitter
from .page_format import PAGE, pieces
from .values import F32, Value, vec

HIDDEN = -3e30  # the score of a position that a query may not see: its weight is 0 under every top
LOWEST = -1e30  # the top before the first score
SLACK = 8.0  # a score may exceed the top so much before all sums are brought to a new one: weights stay under 2**8


def exp2(e: Emitter, x: Value) -> Value:
    """2**x for float32 x <= SLACK, relative error below 2e-7; 0, or less than 2**-124, for x < -125; NaN stays.

    x = n + r with |r| <= 1/2; a polynomial of degree 5 for 2**r whose largest relative error is least, 1 at r = 0.
    """
    n = e.round(x)
    r = x - n
    p = e.const(x.type, 1.326472725e-3)
    for c in (9.671512786e-3, 5.550733744e-2, 2.402224208e-1, 6.931469776e-1, 1.0):
        p = e.fma(p, r, e.const(x.type, c))
    return e.target.scaled(e, p, n)


class State:
    """Where the states of queries lie and what is in one: float32 top, [lanes] weights, [head_dim] sums."""

    def __init__(self, e: Emitter, head_dim: int):
        self.e, self.lanes = e, e.target.lanes
        self.columns = pieces(0, head_dim, self.lanes)
        self.weights, self.sums = 64, 64 + max(64, 4 * self.lanes)
        self.nbytes = state_bytes(self.lanes, head_dim)

    def clear(self, state: Value) -> None:
        """No position seen yet."""
        self.e.store(self.e.const(F32, LOWEST), state)
        self.e.store(self.e.zero(vec(F32, self.lanes)), state + self.weights)
        for column, width in self.columns:
            self.e.store(self.e.zero(vec(F32, width)), state + self.sums + 4 * column)

    def shrink(self, state: Value, by: Value) -> None:
        """Bring weights and sums to a new top, 1 / `by` times as high."""
        for offset, width in [(self.weights, self.lanes)] + [(self.sums + 4 * c, w) for c, w in self.columns]:
            at = state + offset
            self.e.store(self.e.load(at, vec(F32, width)) * by.splat(width), at)

    def merge(self, into: Value, state: Value) -> None:
        """Join the positions of `state` to those of `into`."""
        e = self.e
        ours, theirs = e.load(into, F32), e.load(state, F32)
        top = e.max(ours, theirs)
        keep, take = exp2(e, ours - top), exp2(e, theirs - top)
        e.store(top, into)
        for offset, width in [(self.weights, self.lanes)] + [(self.sums + 4 * c, w) for c, w in self.columns]:
            mine, more = e.load(into + offset, vec(F32, width)), e.load(state + offset, vec(F32, width))
            e.store(e.fma(more, take.splat(width), mine * keep.splat(width)), into + offset)

    def finish(self, state: Value, out: Value, sink: Value | None = None) -> None:
        """Write the weighted mean of the values, float32 [head_dim], to `out`.

        sink: one more score, which only takes part in the sum of weights.
        """
        e = self.e
        total = e.sum(e.load(state + self.weights, vec(F32, self.lanes)))
        if sink is None:
            inverse = 1.0 / total
        else:
            top = e.load(state, F32)
            highest = e.max(top, sink)
            share = exp2(e, top - highest)
            inverse = share / (total * share + exp2(e, sink - highest))
        for column, width in self.columns:
            e.store(e.load(state + self.sums + 4 * column, vec(F32, width)) * inverse.splat(width), out + 4 * column)


def state_bytes(lanes: int, head_dim: int) -> int:
    """Bytes of one query's state, a whole number of cache lines."""
    return 64 + max(64, 4 * lanes) + -(-4 * head_dim // 64) * 64


def weigh(e: Emitter, layout: State, states: Value, n: int, scores: Value) -> None:
    """scores [n][64] -> weights under each query's top, counted in its state; a new top where the old is exceeded."""
    lanes, span = e.target.lanes, min(PAGE, 4 * e.target.lanes)
    state = [states + i * layout.nbytes for i in range(n)]

    def places(position: Value, i: int) -> list[Value]:
        return [scores + position * 4 + 4 * (i * PAGE + v) for v in range(0, span, lanes)]

    highest = [e.var(e.const(vec(F32, lanes), HIDDEN)) for _ in range(n)]
    with e.loop(0, PAGE, span) as position:
        for i in range(n):
            for at in places(position, i):
                highest[i].set(e.max(highest[i].value, e.load(at, vec(F32, lanes))))
    over = [h.value > (e.load(at, F32) + SLACK).splat(lanes) for h, at in zip(highest, state, strict=True)]
    with e.when(e.any(functools.reduce(operator.or_, over))):  # rare: few scores exceed all before by so much
        for i in range(n):
            before, now = e.load(state[i], F32), e.largest(highest[i].value)
            now = e.select(now > before + SLACK, now, before)
            e.store(now, state[i])
            layout.shrink(state[i], exp2(e, before - now))
    with e.loop(0, PAGE, span) as position:
        for i in range(n):
            top, at = e.load(state[i], F32).splat(lanes), state[i] + layout.weights
            total = e.load(at, vec(F32, lanes))
            for place in places(position, i):
                share = exp2(e, e.load(place, vec(F32, lanes)) - top)
                e.store(share, place)
                total = total + share
            e.store(total, at)
