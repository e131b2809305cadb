"""What runs on an emulated CPU: every kernel's tests, and stories.  Enters: a connection to run.py, and GGUF files;
leaves: messages, each a tuple that begins with its kind.

    ("targets", names)                               what is run here, the best first
    ("compiled", kernel, target, code)               object code that was made here
    ("compile", kernel, target)                      answered with object code
    ("test", target, type, name, passed, seconds)    of one test, in seconds of this CPU
    ("story", target, file, token ids, seconds)
    ("ended", pytest's status)                       the last one

LLVM under emulation takes thirty times as long, so run.py compiles for this CPU: its code is the same, byte for byte,
which is seen once.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from halfbyte import LLM
from halfbyte.runtime.kernels import jit
from halfbyte.runtime.kernels.jit import Kernel
from halfbyte.runtime.kernels.panels import pack_kernel
from halfbyte.runtime.kernels.target import Target
from halfbyte.runtime.kernels.targets import host_target, make_target, runnable

TESTS = Path(__file__).parents[1]
SELECTED = (
    "test_kernels.py", "test_kernels_k.py", "test_kernel_corners.py", "test_panels.py", "test_norms.py",
    "test_products_f32.py", "test_attention.py::test_every_head_size", "test_experts.py",
)  # fmt: skip
HEAD_SIZES = (8, 24, 64, 80, 136)  # those that every target's tests have
PROMPT, TOKENS = "Once upon a time", 24


class Elsewhere:
    """Compiles for this CPU at the other end of the connection."""

    def __init__(self, host: Connection):
        self._host, self._one_at_a_time = host, threading.Lock()

    def __call__(self, kernel: Kernel, target: Target) -> bytes:
        with self._one_at_a_time:
            self._host.send(("compile", kernel, target))
            return self._host.recv_bytes()


class Plugin:
    """Of pytest: chooses those tests that name one of `targets`, and tells of each."""

    def __init__(self, host: Connection, targets: list[str]):
        self._host, self._targets = host, targets
        self._spent = time.process_time()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if self._is_chosen(_parameters(item))]

    def _is_chosen(self, given: dict[str, Any]) -> bool:
        if given.get("bench", given.get("target")) not in self._targets:
            return False
        return "bench" in given or given.get("head_dim") in HEAD_SIZES

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report = (yield).get_result()
        given = _parameters(item)
        if call.when == "call" or report.failed:
            before, self._spent = self._spent, time.process_time()
            target = given.get("bench", given.get("target"))
            self._host.send(("test", target, given.get("name"), item.name, report.passed, self._spent - before))


def _parameters(item: pytest.Item) -> dict[str, Any]:
    return getattr(getattr(item, "callspec", None), "params", {})


def story(file: str) -> list[int]:
    with LLM(file, threads=2) as llm:
        return list(llm.generate(PROMPT, max_tokens=TOKENS, temperature=0).token_ids)


def main(connection: str, everything: str, *files: str) -> None:
    host = Connection(int(connection))
    targets = runnable() if everything == "True" else runnable()[:1]
    host.send(("targets", targets))
    best, kernel = make_target(targets[0]), pack_kernel("f32")
    host.send(("compiled", kernel, best, jit.object_code(kernel, best)))
    jit.object_code = Elsewhere(host)
    jit._start_helpers = lambda target, n_kernels: []
    status = pytest.main(
        [*(str(TESTS / name) for name in SELECTED), "-q", "--noconftest", "-p", "no:cacheprovider",
         "-o", "addopts="], plugins=[Plugin(host, targets)],
    )  # fmt: skip
    for name in targets:
        os.environ["HALFBYTE_ISA"] = name
        host_target.cache_clear()
        jit.host_library.cache_clear()
        for file in files:
            start = time.process_time()
            host.send(("story", name, file, story(file), time.process_time() - start))
    host.send(("ended", int(status)))


if __name__ == "__main__":
    main(*sys.argv[1:])
