"""What takes long, told on standard error.  Enters: calls with what, done and total; leaves: a line that changes.

What is over within 0.3 s is not told.  In a terminal the line is overwritten and cleared at the end; elsewhere each
kind of work is told once.
"""

from __future__ import annotations

import sys
import time
from typing import Self

_PATIENCE = 0.3  # seconds
_BETWEEN = 0.1  # seconds from one change of the line to the next


class Progress:
    """A callable for `LLM(progress=...)` and `bench.speed.measure(progress=...)`; a `with` clears the line."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._began: dict[str, float] = {}
        self._told: set[str] = set()
        self._changed = 0.0
        self._width = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Tell that `done` of `total` parts of `what` are done."""
        now = time.monotonic()
        if now - self._began.setdefault(what, now) < _PATIENCE:
            return
        if self._terminal and now - self._changed > _BETWEEN:
            text = f"{what} {100 * done // max(1, total)} %"
            print("\r" + text.ljust(self._width), end="", file=sys.stderr, flush=True)
            self._width, self._changed = len(text), now
        elif not self._terminal and what not in self._told:
            self._told.add(what)
            print(f"{what} ...", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._width:
            print("\r" + " " * self._width, end="\r", file=sys.stderr, flush=True)
