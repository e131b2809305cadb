"""The measuring process: python -m halfbyte.bench.peers.worker.  Enters: requests, a JSON object a line, on standard
input; leaves: an answer a line on standard output, {"error": ...} where the request fails.

    {"do": "load", "engine": "llama.cpp", "model": ..., "checkpoint": ..., "threads": 2, "context": 640, "sequences": 1}
    {"do": "measure", "n_prompt": 512, "n_gen": 0, "n_depth": 0, "sequences": 1, "warm": false}
    {"do": "memory"}
    {"do": "machine", "threads": 2}
    {"do": "limits"}

It holds one engine, or what measures the machine, and computes nothing from an answer to the next request.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..limits import Limits
from .base import FIRST_PROMPT, Files, Peer
from .engines import ENGINES

_SECONDS = 0.3  # a run that takes less is repeated
_WARM = 2  # generated tokens of a warm-up
_QUIET = 0.05  # seconds before an answer: threads of llama.cpp and torch spin for up to 10 ms after their work
_SEED = 0


class Worker:
    """One engine and the tokens that it is fed: the same for every engine, by sequence and position."""

    def __init__(self) -> None:
        self._peer: Peer | None = None
        self._limits: Limits | None = None
        self._ids = np.zeros((0, 0), np.int64)  # [sequences, positions]
        self._length = 0

    def load(
        self, engine: str, model: str, checkpoint: str | None, threads: int, context: int, sequences: int
    ) -> dict[str, Any]:
        """Load the engine and feed a first prompt; seconds of both, counted after its library was imported."""
        files = Files(Path(model), Path(checkpoint) if checkpoint else None)
        adapter = ENGINES[engine].adapter_class()
        start = time.perf_counter()
        self._peer = peer = adapter.load(files, threads, context, sequences)
        loaded = time.perf_counter()
        self._ids = np.random.default_rng(_SEED).integers(0, peer.n_vocab, (sequences, context))
        peer.feed(self._ids[0, :FIRST_PROMPT].tolist())
        first_token = time.perf_counter()
        peer.truncate(0)
        return {
            "load": loaded - start,
            "first_token": first_token - start,
            "resident": _memory("VmRSS"),
            "weight_bytes": peer.weight_bytes,
            "cache_bytes": peer.cache_bytes,
        }

    def measure(self, n_prompt: int, n_gen: int, n_depth: int, sequences: int, warm: bool) -> dict[str, float]:
        """Feed the prompt at once, or generate token by token, behind `n_depth` tokens; return tokens per second."""
        assert self._peer is not None, "load comes first"
        peer = self._peer
        if self._length > n_depth:
            peer.truncate(n_depth)
        elif self._length < n_depth:
            peer.feed(*self._ids[:sequences, self._length : n_depth].tolist())
        self._length = n_depth
        n_gen = min(n_gen, _WARM) if warm else n_gen
        rows = self._ids[:sequences, n_depth : n_depth + n_prompt + n_gen]
        steps = [rows.tolist()] if n_prompt else [column[:, None].tolist() for column in rows.T]
        seconds = 0.0
        tokens = 0
        while seconds < _SECONDS and not (warm and tokens):
            start = time.perf_counter()
            for step in steps:
                peer.feed(*step)
            seconds += time.perf_counter() - start
            tokens += rows.size
            peer.truncate(n_depth)
        return {"rate": tokens / seconds}

    def memory(self) -> dict[str, int | None]:
        """Return the most memory that this process has held, in bytes."""
        return {"peak": _memory("VmHWM")}

    def machine(self, threads: int) -> dict[str, Any]:
        """Get ready to measure the machine."""
        self._limits = Limits(threads)
        return {}

    def limits(self) -> dict[str, float]:
        """Return bytes per second of a plain read, and integer operations per second.

        What is read for as long as a run takes, as runs are measured: where other machines share the memory, the best
        of three short reads is 3.5 % more (the middle of 40 turns), which no run of that length reaches.
        """
        assert self._limits is not None, "machine comes first"
        reads = [self._limits.read()]
        start = time.perf_counter()
        while time.perf_counter() - start < _SECONDS:
            reads.append(self._limits.read())
        return {"read": statistics.harmonic_mean(reads[1:]), "operations": self._limits.integer_operations()}

    def close(self) -> None:
        """End all threads."""
        for open_one in (self._peer, self._limits):
            if open_one is not None:
                open_one.close()


def _memory(field: str) -> int | None:
    """Return "VmRSS" (held now) or "VmHWM" (the peak) of this process in bytes; None where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
    except (OSError, StopIteration):
        return None


def main() -> int:
    """Answer requests until standard input ends."""
    # What engines print must not get between the answers: standard output becomes standard error for them.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        worker = Worker()
        actions: dict[str, Callable[..., dict[str, Any]]] = {
            "load": worker.load,
            "measure": worker.measure,
            "memory": worker.memory,
            "machine": worker.machine,
            "limits": worker.limits,
        }
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = actions[request.pop("do")](**request)
            except Exception as error:  # any engine may raise anything; the others go on
                answer = {"error": f"{type(error).__name__}: {error}"}
            time.sleep(_QUIET)
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
        worker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
