"""A measuring process from outside.  Enters: requests; leaves: answers, or the reason why there is none."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, Self

from ...errors import printable

_PATIENCE = 1800  # seconds that an answer may take: the longest is a slow engine's way to a great depth
_END = 10  # seconds to end after standard input was closed


class PeerFailedError(Exception):
    """An engine raised, crashed or did not answer; the message is one line that says which."""


class Process:
    """A process of worker.py; use it in a `with`."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, close() closes it
        module = f"{__package__}.worker"
        self._process = subprocess.Popen(
            [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send a request and return its answer; raises PeerFailedError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerFailedError(self._end()) from None
        asked = time.monotonic()
        too_late = threading.Timer(_PATIENCE, self._process.kill)
        too_late.start()
        try:
            line = self._process.stdout.readline()
        finally:
            too_late.cancel()
        if not line.endswith(b"\n"):
            late = time.monotonic() - asked >= _PATIENCE
            raise PeerFailedError(f"no answer within {_PATIENCE} s" if late else self._end())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerFailedError(printable(answer["error"]))
        return answer

    def _end(self) -> str:
        """Return how the process ended, and the last line that it wrote to standard error."""
        code = self._process.wait(_END)
        try:
            how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        except ValueError:
            how = f"died of signal {-code}"
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return printable(f"{how}: {last}" if last else how)

    def close(self) -> None:
        """End the process, by force when it does not end by itself."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(_END)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
