"""What runs on an emulated CPU: every kernel's tests, and stories.  Enters: a connection to run.py, and GGUF files;
leaves: messages, each a tuple that begins with its kind.

    ("targets", names)                               what this CPU runs, the best first
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
from halfbyte.runtime.kernels.jit import Kernel, Library, host_library, optimized
from halfbyte.runtime.kernels.panels import pack_kernel
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

    def __call__(self, library: Library, kernel: Kernel) -> bytes:
        with self._one_at_a_time:
            self._host.send(("compile", kernel, library.target))
            return self._host.recv_bytes()


class Plugin:
    """Of pytest: chooses tests of those that name a target, and tells of each.

    whole: targets that run all of them; the others run the products of all types.
    """

    def __init__(self, host: Connection, whole: list[str]):
        self._host, self._whole = host, whole
        self._spent = time.process_time()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if self._chosen(item.name.partition("[")[0], _parameters(item))]

    def _chosen(self, name: str, given: dict[str, Any]) -> bool:
        if "head_dim" in given:
            return given["head_dim"] in HEAD_SIZES and given["target"] in self._whole
        return "bench" in given and (given["bench"] in self._whole or name == "test_matmul")

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
    targets = runnable()
    host.send(("targets", targets))
    best, kernel = make_target(targets[0]), pack_kernel("f32")
    module, machine = optimized(kernel, best)
    host.send(("compiled", kernel, best, machine.emit_object(module)))
    elsewhere = Elsewhere(host)
    Library._object_code = lambda library, kernel: elsewhere(library, kernel)
    status = pytest.main(
        [*(str(TESTS / name) for name in SELECTED), "-q", "--noconftest", "-p", "no:cacheprovider",
         "-o", "addopts="], plugins=[Plugin(host, targets if everything == "True" else targets[:1])],
    )  # fmt: skip
    for name in targets:
        os.environ["HALFBYTE_ISA"] = name
        host_target.cache_clear()
        host_library.cache_clear()
        for file in files:
            start = time.process_time()
            host.send(("story", name, file, story(file), time.process_time() - start))
    host.send(("ended", int(status)))


if __name__ == "__main__":
    main(*sys.argv[1:])
