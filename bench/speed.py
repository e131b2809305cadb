"""How fast a model reads prompts and generates.  Enters: a model file and test sizes; leaves: llama-bench's records.

As in llama-bench: random tokens, one warm-up, no sampling and no text in the measured time; `pp512` feeds 512 tokens
at once, `tg128` 128 tokens one after the other, `@ d1024` after 1024 tokens that are already in the KV cache.  An
encoder reads whole texts: `pp512` is a text of 512 tokens, and the other tests it has none of.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from ..runtime.engine.batch import Part
from ..runtime.llm import LLM
from ..runtime.machine import cpu_name
from .report import count_text, markdown, mean_and_deviation, size_text

if TYPE_CHECKING:
    from ..runtime.engine.engine import Engine, Progress

_COLUMNS = ("model", "size", "params", "backend", "threads", "test", "t/s", "GB/s")
_RIGHT = (False, True, True, False, True, True, True, True)


@dataclasses.dataclass(frozen=True)
class Test:
    """Feed `n_prompt` tokens at once, or `n_gen` one by one (the other is 0), behind `n_depth` cached ones."""

    n_prompt: int
    n_gen: int
    n_depth: int

    @property
    def name(self) -> str:
        """The name that llama-bench gives it."""
        depth = f" @ d{self.n_depth}" if self.n_depth else ""
        return (f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}") + depth

    @property
    def tokens(self) -> int:
        """Tokens that are measured."""
        return self.n_prompt + self.n_gen


def tests(prompts: Sequence[int], generations: Sequence[int], depths: Sequence[int]) -> list[Test]:
    """Return a test for every depth and every size that is not 0; raises UsageError when that is none."""
    found = [
        test
        for depth in depths
        for test in (*(Test(n, 0, depth) for n in prompts), *(Test(0, n, depth) for n in generations))
        if test.tokens
    ]
    if not found:
        raise UsageError("there is nothing to measure: both -p and -n are 0")
    return found


def measure(
    path: str | Path,
    wanted: Sequence[Test],
    threads: Sequence[int],
    repetitions: int,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """Yield the record of each test, with llama-bench's field names; times in nanoseconds, sizes in bytes.

    threads     numbers of threads to take in turn; 0: the default
    progress    hears of loading, and of each repetition
    options     further fields of RuntimeOptions

    Raises what opening the model raises, and UsageError for a test that an encoder has not.
    """
    context = max(test.n_depth + test.tokens for test in wanted)
    for n_threads in threads:
        with LLM(path, threads=n_threads, context=context, progress=progress, **options) as llm:
            if not llm.engine.model.causal and any(test.n_gen or test.n_depth for test in wanted):
                raise UsageError(f"{path} is an encoder, which reads whole texts and generates none: -n 0 and -d 0")
            for test in wanted:
                yield _record(Path(path), llm, test, repetitions, progress)


def _record(path: Path, llm: LLM, test: Test, repetitions: int, progress: Progress | None) -> dict[str, Any]:
    started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    samples = []
    for done, nanoseconds in enumerate(_samples(llm.engine, test, repetitions)):
        if done:  # the first is the warm-up
            samples.append(nanoseconds)
        if progress:
            progress(test.name, done, repetitions)
    rates = [test.tokens * 1e9 / ns for ns in samples]
    mean_ns, deviation_ns = mean_and_deviation(samples)
    mean_rate, deviation_rate = mean_and_deviation(rates)
    return {
        "cpu_info": cpu_name(),
        "backends": "CPU",
        "instruction_set": llm.engine.library.target.name,
        "model_filename": str(path),
        "model_type": model_type(llm),
        "model_size": llm.model.size_bytes,
        "model_n_params": llm.model.n_params,
        "n_batch": llm.engine.n_ubatch,
        "n_ubatch": llm.engine.n_ubatch,
        "n_threads": llm.engine.n_threads,
        "type_k": llm.engine.cache_type,
        "type_v": llm.engine.cache_type,
        "n_prompt": test.n_prompt,
        "n_gen": test.n_gen,
        "n_depth": test.n_depth,
        "test_time": started,
        "avg_ns": round(mean_ns),
        "stddev_ns": round(deviation_ns),
        "avg_ts": mean_rate,
        "stddev_ts": deviation_rate,
        "samples_ns": samples,
        "samples_ts": rates,
        "read_bytes_per_second": bytes_read(llm.engine, test) * 1e9 / mean_ns,
    }


def _samples(engine: Engine, test: Test, repetitions: int) -> Iterator[int]:
    """Yield the nanoseconds that each of 1 + `repetitions` runs of the test took."""
    random, causal = np.random.default_rng(0), engine.model.causal

    def tokens(n: int) -> list[int]:
        return random.integers(0, engine.model.n_vocab, n).tolist()

    sequence = engine.new_sequence()
    if test.n_depth:
        engine.feed(sequence, tokens(test.n_depth))
    for _ in range(1 + repetitions):
        ids = tokens(test.tokens)
        start = time.perf_counter_ns()
        if not causal:
            engine.embed([Part(sequence, ids, len(ids))])
        elif test.n_prompt:
            engine.feed(sequence, ids)
        else:
            for token in ids:
                engine.feed(sequence, [token])
        yield time.perf_counter_ns() - start
        sequence.truncate(test.n_depth)
    sequence.close()


def bytes_read(engine: Engine, test: Test) -> int:
    """Return the least bytes that one run of the test reads: in each pass all weights, and keys and values once."""
    step = engine.n_ubatch if test.n_prompt else 1
    ends = [min(first + step, test.tokens) for first in range(0, test.tokens, step)]
    model = engine.model
    position = round(2 * engine.cache_bytes * model.n_layers * model.n_kv_heads * model.head_dim)
    return len(ends) * engine.bytes_per_token + position * sum(test.n_depth + end for end in ends)


def model_type(llm: LLM) -> str:
    """Return the first column of llama-bench's table: architecture, number of parameters, type."""
    return f"{llm.model.architecture} {count_text(llm.model.n_params).replace(' ', '')} {llm.model.type_label}"


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return the records as llama-bench's Markdown table, with the memory read per second as one more column."""
    rows = [
        (
            record["model_type"],
            size_text(record["model_size"]),
            count_text(record["model_n_params"]),
            record["backends"],
            str(record["n_threads"]),
            Test(record["n_prompt"], record["n_gen"], record["n_depth"]).name,
            f"{record['avg_ts']:.2f} ± {record['stddev_ts']:.2f}",
            f"{record['read_bytes_per_second'] / 1e9:.1f}",
        )
        for record in records
    ]
    return markdown(_COLUMNS, rows, _RIGHT)
