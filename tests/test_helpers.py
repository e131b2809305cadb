"""Compiling in further processes: the same code as here, and whatever goes wrong with one costs time only."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from halfbyte.runtime.kernels import helpers, jit
from halfbyte.runtime.kernels.helpers import Helper
from halfbyte.runtime.kernels.jit import Library, cache_version, object_code
from halfbyte.runtime.kernels.panels import pack_kernel
from halfbyte.runtime.kernels.sync import alone_kernel, lead_kernel, work_kernel
from halfbyte.runtime.kernels.targets import host_target

KERNELS = [lead_kernel(), alone_kernel(), work_kernel(), *(pack_kernel(name) for name in ("f32", "q8_0", "q4_0"))]


@pytest.fixture
def helper():
    helper = Helper(host_target(), cache_version(host_target()))
    yield helper
    helper.close()


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HALFBYTE_CACHE_DIR", str(tmp_path / "cache"))
    jit.object_cache.cache_clear()
    yield tmp_path / "cache"
    jit.object_cache.cache_clear()


def entries(cache):
    return {file.name: file.read_bytes() for file in cache.rglob("*.o")}


def test_a_helpers_code_is_the_same_as_ours(helper):
    target = host_target()
    for kernel in KERNELS[2:4]:
        assert helper.compile(kernel) == object_code(kernel, target)


def test_a_helper_of_another_version_is_of_no_use():
    helper = Helper(host_target(), "another")
    assert helper.compile(KERNELS[0]) is None
    helper.close()


def test_a_helper_that_ended_is_of_no_use(helper):
    assert helper.compile(KERNELS[0])
    helper._process.kill()
    assert helper.compile(KERNELS[1]) is None


def test_what_cannot_be_sent_is_compiled_here(helper):
    assert helper.compile(jit.Kernel(lambda e: None)) is None
    assert helper.compile(KERNELS[0]), "it was not disturbed"


@pytest.mark.parametrize("executable", ["", "/bin/sh", "/nowhere/python3"])
def test_without_an_interpreter_there_is_no_helper(executable, monkeypatch):
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(jit, "default_threads", lambda: 4)
    assert jit._start_helpers(host_target(), 100) == []


@pytest.mark.parametrize("fate", ["works", "ends", "is another's", "hangs"])
def test_all_kernels_are_compiled_whatever_becomes_of_the_helpers(fate, empty_cache, monkeypatch):
    """And they are kept; each helper ends with the load."""
    started = []

    class Watched(Helper):
        def __init__(self, target, version):
            super().__init__(target, "another" if fate == "is another's" else version)
            started.append(self._process)
            if fate == "ends":
                self._process.kill()
            if fate == "hangs":
                os.kill(self._process.pid, signal.SIGSTOP)

    if fate == "hangs":
        if os.name != "posix":
            pytest.skip("stops a process")
        monkeypatch.setattr(helpers, "_PATIENCE", 0.5)
    monkeypatch.setattr(helpers, "Helper", Watched)
    monkeypatch.setattr(jit, "default_threads", lambda: 3)
    monkeypatch.setattr(jit, "_WORTH_A_HELPER", 3)
    told, library = [], Library()
    library.load(KERNELS, lambda done, total: told.append((done, total)))
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)
    assert told == [(done, len(KERNELS)) for done in range(len(KERNELS) + 1)]
    assert all(library.address(kernel) for kernel in KERNELS)
    assert len(entries(empty_cache)) == len(KERNELS)
    content = entries(empty_cache)[f"{KERNELS[3].name}.o"]
    assert content[32:] == object_code(KERNELS[3], host_target())


PARENT = """
import sys, time
from halfbyte.runtime.kernels.helpers import Helper
from halfbyte.runtime.kernels.jit import cache_version
from halfbyte.runtime.kernels.sync import lead_kernel
from halfbyte.runtime.kernels.targets import host_target
helper = Helper(host_target(), cache_version(host_target()))
assert helper.compile(lead_kernel())
print(helper._process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="looks at processes in /proc")
def test_a_helper_ends_when_its_parent_was_killed():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, encoding="utf-8") as parent:
        words = Path(f"/proc/{int(parent.stdout.readline())}/cmdline")
        assert b"serve" in words.read_bytes()
        parent.kill()
    for _ in range(200):
        if not words.exists() or b"serve" not in words.read_bytes():  # gone, or nobody waited for it yet
            return
        time.sleep(0.05)
    pytest.fail("it is still there")


def test_a_models_kernels_can_be_sent(tiny_gguf):
    """Each of them as it is: a helper is asked for what the parent asks for."""
    import pickle

    from halfbyte import LLM

    with LLM(tiny_gguf) as llm:
        kernels = llm.engine._builder.kernels()
    assert len(kernels) > 5
    assert pickle.loads(pickle.dumps(kernels)) == kernels
