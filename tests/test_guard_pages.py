"""No kernel reads or writes a byte beyond its buffers, and none writes to what it only reads (guarded_kernels.py)."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from architectures import BY_NAME, build
from gguf_models import MATRICES, Models
from guarded import GuardedHeap
from kernel_bench import RUNNABLE, address

from halfbyte import convert_checkpoint

if os.name != "posix":
    pytest.skip("guard pages are made with mprotect", allow_module_level=True)

PROGRAM = Path(__file__).with_name("guarded_kernels.py")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Models whose matrices fill neither panels nor tiles, of float, of integer and of mixed types; one of experts."""
    models = Models(tmp_path_factory.mktemp("models"))
    folder = tmp_path_factory.mktemp("experts")
    convert_checkpoint(build(folder / "checkpoint", BY_NAME["deepseek2-lite"]), folder / "latent-q8_0.gguf", "q8_0")
    finer = dict.fromkeys(MATRICES, "q4_k") | dict.fromkeys(["v_proj", "down_proj", "lm_head"], "q6_k")
    return [
        models.file("f16", hidden=35, heads=5, kv_heads=1, head_dim=8, ffn=51),
        models.file("q5_1", attention_bias=True, vocab=421),
        models.mixed(finer, hidden=256, ffn=256, layers=1),
        folder / "latent-q8_0.gguf",
    ]


def run(target: str, files: list[Path]) -> tuple[int, list[str]]:
    """Return how many cases passed, and what went wrong in which; a process that died is followed by another."""
    passed, wrong, last = 0, [], ""
    while True:
        words = [sys.executable, str(PROGRAM), target, last, *map(str, files)]
        done = subprocess.run(words, capture_output=True, encoding="utf-8", timeout=600, check=False)
        case = ""
        for line in done.stdout.splitlines():
            kind, _, rest = line.partition(" ")
            if kind == "begin":
                case = last = rest
            elif kind == "failed":
                wrong.append(f"{case}: {rest}")
            passed += kind == "passed"
        if done.returncode >= 0:
            assert done.returncode == 0, done.stderr
            return passed, wrong
        wrong.append(f"{case}: died of {signal.Signals(-done.returncode).name}")


@pytest.mark.parametrize("target", RUNNABLE)
def test_every_kernel_stays_in_its_buffers(target: str, files: list[Path]) -> None:
    passed, wrong = run(target, files)
    assert not wrong, "\n".join(wrong)
    assert passed == 3 * (16 + 13 + 16 + 3 * 4 + 13 + 2 + 2 + 1 + 2 * len(files))


def test_the_guards_hold() -> None:
    """A byte too far is fatal, or is found; so is a write to what was frozen."""
    program = (
        "import ctypes, sys; import numpy as np; from guarded import GuardedHeap; from kernel_bench import address\n"
        "heap = GuardedHeap(sys.argv[1]); array = heap.place(np.zeros(100, np.uint8))\n"
        "if sys.argv[2] == 'write': heap.freeze(array)\n"
        "at = address(array) + {'after': 100, 'before': -1, 'write': 50}[sys.argv[2]]\n"
        "ctypes.memset(at, 1, 1) if sys.argv[2] == 'write' else ctypes.string_at(at, 1)\n"
    )
    for side, place, dies in (
        ("end", "after", True), ("end", "before", False), ("start", "before", True), ("start", "after", False),
        ("end", "write", True),
    ):  # fmt: skip
        words = [sys.executable, "-c", program, side, place]
        done = subprocess.run(words, capture_output=True, cwd=PROGRAM.parent, check=False)
        assert (done.returncode in (-signal.SIGSEGV, -signal.SIGBUS)) == dies, (side, place, done.stderr)


def test_a_write_on_the_other_side_is_found() -> None:
    for side, beyond in (("end", -1), ("start", 100), ("odd", -1), ("odd", 100)):
        heap = GuardedHeap(side)
        array = heap.place(np.zeros(100, np.uint8))
        heap.check()
        ctypes.memset(address(array) + beyond, 1, 1)
        with pytest.raises(AssertionError, match="were written"):
            heap.check()
