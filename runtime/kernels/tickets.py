"""How threads share the tasks of a step.  Enters: how many there are; leaves: to each thread that asks the number of
another one.

A step has a few ticket counters (sync.py), all zero when it begins.
"""

from __future__ import annotations

from .emit import Emitter
from .values import I64, Value

COUNTERS = 8  # int64
# Bytes: each on a cache line of its own, which a thread's draws from its own region leave with its core.  On one line
# for all, models of 135M parameters generated 0 to 4 % slower (Zen 5, seven runs), 1B less than 1 %.
COUNTER_STEP = 64
TICKET_BYTES = COUNTERS * COUNTER_STEP


class Tickets:
    """Draws tasks 0..count-1, in `regions` (at most COUNTERS, and no more than threads) runs of neighbours.

    A thread draws from a region of its own, in order, and then what is left of the others: so what it reads lies
    together.  With one region all threads draw in turns.
    """

    def __init__(self, e: Emitter, count: Value, regions: Value):
        _, thread, _, self._counters = e.args
        self._e, self._count, self._regions = e, count, regions
        self._size = (count + regions - 1) // regions
        self._region, self._left = e.var(thread % regions), e.var(e.select(count > 0, regions, 0))
        self._drawn = e.var(count)

    @property
    def number(self) -> Value:
        """The task that was drawn last; `count` when none was left."""
        return self._drawn.value

    def draw(self) -> None:
        e = self._e
        self._drawn.set(self._count)
        with e.repeat_while() as go_on_if:
            go_on_if(self._left.value > 0)
            counter, ticket = self._counters + self._region.value * COUNTER_STEP, e.var(self._size)
            is_own = self._left.value.equals(self._regions)
            with e.when(is_own | (e.atomic_load(counter, I64) < self._size)):  # to look is cheaper than to draw
                ticket.set(e.atomic_add(counter, e.i64(1)))
            number = self._region.value * self._size + ticket.value
            with e.when((ticket.value < self._size) & (number < self._count)):
                self._drawn.set(number)
            go_on_if(self.number.equals(self._count))
            self._left.set(self._left.value - 1)
            self._region.set((self._region.value + 1) % self._regions)
