"""Engines measured in turns.  Enters: a model, engines, what to measure; leaves: a `Series` for each figure and engine.

All engines of a group (same threads, same number of sequences) are loaded at once, each in its process, and idle but
one.  Each figure is taken A B A B: one run of each engine, then the machine's own limits, and again; a first round
warms up and does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..speed import Test
from .base import FIRST_PROMPT, Files
from .processes import PeerFailedError, Process

STARTS = {"load": "load", "first_token": "first token", "resident": "memory when loaded"}
"""What each start of an engine tells: key of the worker's answer -> figure."""
PEAK = "peak memory"

Progress = Callable[[str, int, int, str], None]  # (what, done, total, which)


@dataclass(frozen=True)
class Case(Test):
    """A test of `bench speed` with `batch` sequences decoded at once."""

    batch: int = 1

    @property
    def name(self) -> str:
        """As llama-bench's, with the number of sequences where there are several."""
        return super().name + (f" x {self.batch}" if self.batch > 1 else "")

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return super().tokens * self.batch


@dataclass
class Series:
    """What turns gave.

    threads  that computed
    figure   what was measured: the case's name, one of STARTS, PEAK
    engine   name in ENGINES
    values   tokens per second, seconds or bytes, a turn each
    failed   why there are no (more) values, None where there are all
    case     of a figure that is a speed
    limits   for a speed: what the machine reached in the same turns, bytes per second read and operations per second
    facts    what the engine told of itself: weight_bytes, cache_bytes (base.Peer)
    """

    threads: int
    figure: str
    engine: str
    values: list[float] = field(default_factory=list)
    failed: str | None = None
    case: Case | None = None
    limits: list[dict[str, float]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether all turns gave a value."""
        return bool(self.values) and not self.failed


def cases(
    prompts: Sequence[int], generations: Sequence[int], depths: Sequence[int], batches: Sequence[int]
) -> list[Case]:
    """Return the cases: every size at every depth, and several sequences at once at the smallest depth only."""
    found = [
        case
        for depth in sorted(set(depths))
        for case in (*(Case(n, 0, depth) for n in prompts), *(Case(0, n, depth) for n in generations if 1 in batches))
        if case.tokens
    ]
    return found + [Case(0, n, min(depths), batch) for batch in batches if batch > 1 for n in generations if n]


def order_of_starts(engines: Sequence[str], turn: int) -> list[str]:
    """Return the engines in the order in which they start: in every other turn all but the first the other way round.

    An engine gets the memory that the one before it gave back; a virtual machine may have to ask its host for other
    memory, which takes long (a 1B model is loaded in 0.2 s or in 1).  So of three engines each follows each as often.
    """
    first, *others = engines
    return [first, *(others if turn % 2 == 0 else others[::-1])]


def measure(
    files: Files,
    engines: Sequence[str],
    wanted: Sequence[Case],
    threads: Sequence[int],
    turns: int,
    progress: Progress,
) -> Iterator[Series]:
    """Yield the series of each number of threads, figure and engine; engines that fail have the reason in theirs."""
    batches = sorted({case.batch for case in wanted})
    groups = [
        _Group(files, engines, [c for c in wanted if c.batch == batch], n, turns, starts=batch == batches[0])
        for n in threads
        for batch in batches
    ]
    total, done = sum(group.steps for group in groups), 0
    for group in groups:
        yield from group.run(partial(_tell, progress, f"comparing on {files.model.name}", done, total))
        done += group.steps


def _tell(progress: Progress, what: str, before: int, total: int, step: int, which: str) -> None:
    progress(what, before + step, total, which)


class _Group:
    """Cases with the same number of sequences, on the same number of threads.

    starts   whether engines are started for every turn, and their starts are figures
    """

    def __init__(
        self, files: Files, engines: Sequence[str], wanted: Sequence[Case], threads: int, turns: int, starts: bool
    ):
        self._files, self._engines, self._cases, self._threads = files, engines, wanted, threads
        self._rounds = turns + 1  # the first warms up
        self._starts = starts
        self._processes: dict[str, Process] = {}
        self._failed: dict[str, str] = {}
        self._facts: dict[str, dict[str, Any]] = {}

    @property
    def steps(self) -> int:
        """How many times `run` tells that something was done."""
        return ((self._rounds if self._starts else 1) + self._rounds * len(self._cases)) * len(self._engines)

    def run(self, tell: Callable[[int, str], None]) -> Iterator[Series]:
        """Start the engines, measure, end them."""
        self._done, self._tell = 0, tell
        try:
            with Process() as machine:
                machine.ask("machine", threads=self._threads)
                yield from self._start()
                for case in self._cases:
                    yield from self._measure(case, machine)
                if self._starts:
                    yield from self._peaks()
        finally:
            for process in self._processes.values():
                process.close()

    def _ask(self, name: str, which: str, do: str, **request: Any) -> dict[str, Any] | None:
        """Return what engine `name` answers; None when it failed, whose process has ended then."""
        try:
            answer = self._processes[name].ask(do, **request)
        except PeerFailedError as error:
            self._failed[name] = str(error)
            self._processes.pop(name).close()
            answer = None
        self._told(which)
        return answer

    def _told(self, which: str) -> None:
        self._done += 1
        self._tell(self._done, which)

    def _start(self) -> Iterator[Series]:
        """Start every engine, several times where that is measured; the processes of the last time stay."""
        found = {
            engine: [Series(self._threads, figure, engine) for figure in STARTS.values()] for engine in self._engines
        }
        context = max([FIRST_PROMPT, *(case.n_depth + case.n_prompt + case.n_gen for case in self._cases)])
        request = {
            "model": str(self._files.model),
            "checkpoint": str(self._files.checkpoint) if self._files.checkpoint else None,
            "threads": self._threads,
            "context": context,
            "sequences": self._cases[0].batch,
        }
        rounds = self._rounds if self._starts else 1
        for turn in range(rounds):
            for engine in order_of_starts(self._engines, turn):
                which = f"{engine}, {self._threads} threads, load"
                if engine in self._failed:
                    self._told(which)
                    continue
                self._processes[engine] = Process()
                answer = self._ask(engine, which, "load", engine=engine, **request)
                if answer is None:
                    continue
                self._facts[engine] = {key: answer[key] for key in ("weight_bytes", "cache_bytes")}
                for series, key in zip(found[engine], STARTS, strict=True):
                    if turn and answer[key] is not None:
                        series.values.append(answer[key])
                if turn < rounds - 1:
                    self._processes.pop(engine).close()
        for engine in self._engines if self._starts else ():
            for series in found[engine]:
                series.failed = self._failed.get(engine)
                yield series

    def _measure(self, case: Case, machine: Process) -> Iterator[Series]:
        """Measure one case in turns."""
        limits: list[dict[str, float]] = []
        found = {
            engine: Series(
                self._threads, case.name, engine, case=case, limits=limits, facts=self._facts.get(engine, {})
            )
            for engine in self._engines
        }
        sizes = {"n_prompt": case.n_prompt, "n_gen": case.n_gen, "n_depth": case.n_depth, "sequences": case.batch}
        for turn in range(self._rounds):
            for engine, series in found.items():
                which = f"{engine}, {self._threads} threads, {case.name}"
                if engine in self._failed:
                    self._told(which)
                    continue
                answer = self._ask(engine, which, "measure", **sizes, warm=turn == 0)
                if answer is not None and turn:
                    series.values.append(answer["rate"])
            if turn:
                limits.append(machine.ask("limits"))
        for engine, series in found.items():
            series.failed = self._failed.get(engine)
            yield series

    def _peaks(self) -> Iterator[Series]:
        """Ask every process how much memory it has held."""
        for engine in self._engines:
            series = Series(self._threads, PEAK, engine, failed=self._failed.get(engine))
            if engine in self._processes:
                peak = self._processes[engine].ask("memory")["peak"]
                series.values += [peak] if peak is not None else []
            yield series
