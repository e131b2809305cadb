"""The thread pool: every task of every step once and in order, whoever runs, sleeps or is held up; and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from halfbyte.errors import UsageError
from halfbyte.runtime.engine.threads import ThreadPool
from halfbyte.runtime.kernels.emit import Emitter
from halfbyte.runtime.kernels.jit import Kernel, Library, host_library
from halfbyte.runtime.kernels.records import Record
from halfbyte.runtime.kernels.tickets import COUNTERS, Tickets
from halfbyte.runtime.kernels.values import I64

MIX = Record("n_tasks", "regions", "source", "target", "size", "factor", "work")
SIZES = (1, 2, 3, 5, 64, 257)


def mix(e: Emitter) -> None:
    """Program step, a task i: target[i] = target[i] * 3 + source[i * factor % size] + 1, after `work` idle turns.

    A task that is left out, done twice, or done before the step in front of it has ended changes the result.
    """
    a = MIX.read(e, e.args[0])
    tickets = Tickets(e, a.n_tasks, e.min(a.regions, e.args[2]))
    with e.repeat_while() as go_on_if:
        tickets.draw()
        i = tickets.number
        go_on_if(i < a.n_tasks)
        with e.loop(0, a.work):
            e.target.pause(e)
        old, more = e.load(a.target + i * 8, I64), e.load(a.source + i * a.factor % a.size * 8, I64)
        e.store(old * 3 + more + 1, a.target + i * 8)


class Program:
    """Steps over two arrays of 257 numbers, and the same in NumPy."""

    def __init__(self, library: Library, seed: int, n_steps: int, work: int = 0):
        rng = np.random.default_rng(seed)
        self.arrays = rng.integers(0, 100, (2, SIZES[-1]))
        self.wanted = self.arrays.copy()
        self.shapes = [(int(rng.choice(SIZES)), int(rng.integers(1, 50))) for _ in range(n_steps)]
        self.records = [
            MIX.make(
                n_tasks=n, regions=int(rng.integers(1, COUNTERS + 1)), source=self.arrays[i % 2].ctypes.data,
                target=self.arrays[1 - i % 2].ctypes.data, size=SIZES[-1], factor=factor,
                work=int(rng.integers(0, work + 1)),
            )
            for i, (n, factor) in enumerate(self.shapes)
        ]  # fmt: skip
        kernel = library.address(Kernel(mix))
        self.table = np.array([[kernel, r.ctypes.data] for r in self.records], np.int64).reshape(-1, 2)

    def run(self, pool: ThreadPool, alone: bool = False) -> None:
        pool.run(self.table, alone)
        for i, (n, factor) in enumerate(self.shapes):
            source, target, at = self.wanted[i % 2], self.wanted[1 - i % 2], np.arange(n)
            target[:n] = target[:n] * 3 + source[at * factor % SIZES[-1]] + 1

    def check(self) -> None:
        np.testing.assert_array_equal(self.arrays, self.wanted)


@pytest.fixture(scope="module")
def library() -> Library:
    return host_library()


@pytest.fixture
def neighbours() -> Iterator[None]:
    """As many processes that do nothing but compute as there are cores."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    yield
    for process in busy:
        process.kill()
        process.wait()


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 7, 16])
def test_short_programs(library: Library, threads: int) -> None:
    """Hundreds of programs of none to six steps on one pool, with pauses in which its threads sleep, some alone."""
    pool, rng = ThreadPool(library, threads), np.random.default_rng(threads)
    programs = [Program(library, seed, seed % 7) for seed in range(70)]
    for turn in range(1500):
        programs[int(rng.integers(len(programs)))].run(pool, alone=bool(rng.random() < 0.2))
        if turn % 100 == 0:
            time.sleep(0.01)  # long enough to fall asleep
    pool.close()
    for program in programs:
        program.check()


@pytest.mark.parametrize("threads", [2, 3, 8, 24])
def test_long_programs(library: Library, threads: int) -> None:
    """Thousands of steps, also on many more threads than there are cores."""
    pool, program = ThreadPool(library, threads), Program(library, threads, 3000, work=40)
    for _ in range(3):
        program.run(pool)
    pool.close()
    program.check()


@pytest.mark.parametrize("threads", [2, 5])
def test_beside_busy_neighbours(library: Library, threads: int, neighbours: None) -> None:
    pool, program = ThreadPool(library, threads), Program(library, 100 + threads, 500, work=100)
    for _ in range(6):
        program.run(pool)
    pool.close()
    program.check()


def test_two_pools_at_once(library: Library) -> None:
    """From two Python threads, and from one thread in turns."""
    pools = [ThreadPool(library, 2), ThreadPool(library, 3)]
    programs = [Program(library, 200 + i, 400, work=30) for i in range(2)]

    def repeat(i: int) -> None:
        for _ in range(20):
            programs[i].run(pools[i])

    users = [threading.Thread(target=repeat, args=(i,)) for i in range(2)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    for i in (0, 1) * 20:
        programs[i].run(pools[i])
    for pool, program in zip(pools, programs, strict=True):
        pool.close()
        program.check()


def test_random_lives(library: Library) -> None:
    """Pools of any size that are made, used a little or not at all, and closed while their threads spin or sleep."""
    rng = np.random.default_rng(9)
    for seed in range(60):
        pool, program = ThreadPool(library, int(rng.integers(1, 9))), Program(library, seed, int(rng.integers(0, 40)))
        for _ in range(int(rng.integers(0, 4))):
            program.run(pool)
        if rng.random() < 0.3:
            time.sleep(float(rng.random()) * 0.004)
        pool.close()
        pool.close()
        program.check()
        with pytest.raises(ValueError, match="closed"):
            program.run(pool)
    assert not [t for t in threading.enumerate() if t.name.startswith("halfbyte-")]


def test_one_thread_of_many_does_all_where_the_others_cannot_run(library: Library) -> None:
    """All threads pinned to one core: a program ends although no two ever run at the same time."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system cannot pin a thread")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})  # threads inherit it
        pool, program = ThreadPool(library, 6), Program(library, 5, 1000)
        for _ in range(5):
            program.run(pool)
        pool.close()
    finally:
        os.sched_setaffinity(0, before)
    program.check()


def test_an_idle_pool_uses_no_cpu(library: Library) -> None:
    pool, program = ThreadPool(library, 4), Program(library, 6, 50)
    program.run(pool)
    time.sleep(0.1)
    start = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - start < 0.1
    pool.close()
    program.check()


def test_more_threads_than_the_system_gives(library: Library) -> None:
    """UsageError that says how many there are; those that were started have ended."""
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name == "halfbyte-3":
            raise RuntimeError("can't start new thread")
        start(self)

    threading.Thread.start = refuse  # type: ignore[method-assign]
    try:
        with pytest.raises(UsageError, match="gives 3 of 8 threads"):
            ThreadPool(library, 8)
    finally:
        threading.Thread.start = start  # type: ignore[method-assign]
    assert not [t for t in threading.enumerate() if t.name.startswith("halfbyte-")]


ENDLESS = """
import sys
sys.path[:0] = {path!r}
import test_threads as t
library = t.host_library()
pool, program = t.ThreadPool(library, 3), t.Program(library, 1, 200, work=200)
print("running", flush=True)
while True:
    program.run(pool)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_interrupted_while_it_computes() -> None:
    """Ctrl-C ends the process at once, its threads with it."""
    source = ENDLESS.format(path=[str(Path(__file__).parent)])
    process = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"running\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in errors
    assert process.returncode in (1, -signal.SIGINT, 130)
