"""What takes long, told on standard error.  Enters: calls with what, done and total; leaves: a line that changes.

What is over within 0.3 s is not told.  In a terminal the line is overwritten and cleared at the end; elsewhere each
kind of work is told once.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Self

_PATIENCE = 0.3  # seconds
_BETWEEN = 0.1  # seconds from one change of the line to the next
_BAR = 20  # characters


class Progress:
    """A callable for the `progress` of `LLM`, `bench.speed` and `bench.accuracy`; a `with` clears the line."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._began: dict[str, float] = {}
        self._told: set[str] = set()
        self._changed = 0.0
        self._width = 0

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """Tell that `done` of `total` parts of `what` are done; note: how it goes."""
        now = time.monotonic()
        seconds = now - self._began.setdefault(what, now)
        if seconds < _PATIENCE:
            return
        if self._terminal and now - self._changed > _BETWEEN:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            text = _line(what, done, max(1, total), note, seconds)[: columns - 1]
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


def _line(what: str, done: int, total: int, note: str, seconds: float) -> str:
    """Return the line: a bar, what `note` says, and the time left if it goes on as in the `seconds` so far."""
    bar = "#" * (_BAR * done // total)
    said = [note] if note else []
    if done:
        minutes, rest = divmod(round(seconds / done * (total - done)), 60)
        said.append(f"{minutes}:{rest:02} left")
    return f"{what} {100 * done // total} % [{bar:.<{_BAR}}] {', '.join(said)}"
