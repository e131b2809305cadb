"""What does not fit is refused before any of it is taken, with both numbers; what fits is not."""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from command_line import assert_clean_error, halfbyte

from halfbyte import LLM, convert_checkpoint
from halfbyte.errors import UsageError
from halfbyte.runtime import machine
from halfbyte.runtime.engine import engine as engine_module
from halfbyte.runtime.engine.memory import Arena, Memory, Tally


@pytest.fixture(scope="module")
def wide_cache_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose cache takes 16 KiB a position."""
    folder = tmp_path_factory.mktemp("wide")
    checkpoint = tiny.build(folder / "checkpoint", heads=4, kv_heads=4, head_dim=256, layers=4, context=4096)
    convert_checkpoint(checkpoint, folder / "wide.gguf", "q8_0")
    return folder / "wide.gguf"


def virtual_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * 4096


def test_a_huge_context_is_one_line(wide_cache_gguf: Path) -> None:
    done = halfbyte("run", wide_cache_gguf, "Hi", "-c", 1 << 24)
    assert_clean_error(done, 2, "not enough memory", "needed", "available", "-c", "256.00 GiB")
    fits = int(re.search(r"-c (\d+) would fit", done.stderr)[1])
    assert halfbyte("run", wide_cache_gguf, "Hi", "-n", 2, "-c", fits // 2).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's files")
def test_nothing_is_taken_before_the_refusal(wide_cache_gguf: Path) -> None:
    LLM(wide_cache_gguf, threads=2).close()  # what is loaded once
    before = virtual_bytes()
    with pytest.raises(UsageError, match="not enough memory"):
        LLM(wide_cache_gguf, threads=2, context=1 << 24)
    assert virtual_bytes() - before < 64 << 20


def need_of(file: Path, monkeypatch: pytest.MonkeyPatch, **options: int) -> int:
    """The bytes that an engine asks for."""
    asked = []
    monkeypatch.setattr(Tally, "check", lambda self, *rest: asked.append(self.total))
    LLM(file, threads=1, **options).close()
    monkeypatch.undo()
    return asked[0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's files")
def test_the_limit_of_a_cgroup_holds_to_the_byte(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that has what is needed, cached files counted as free, loads the model; a byte less does not."""
    need = need_of(tiny_gguf, monkeypatch)
    group = tmp_path / "sys/fs/cgroup/job"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("31 24 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/job\n")
    (group / "memory.current").write_text(str(10_000_000))
    (group / "memory.stat").write_text("active_file 4000000\ninactive_file 1000000\n")
    monkeypatch.setattr(engine_module, "available_memory", lambda: machine.available_memory(tmp_path))
    (group / "memory.max").write_text(str(5_000_000 + need))
    with LLM(tiny_gguf, threads=1) as llm:
        assert llm.generate("Once", max_tokens=2, temperature=0).text is not None
    (group / "memory.max").write_text(str(5_000_000 + need - 1))
    with pytest.raises(UsageError, match="not enough memory"):
        LLM(tiny_gguf, threads=1)


def test_every_map_of_an_engine_was_counted(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need, taken = need_of(tiny_gguf, monkeypatch, ubatch=100), []
    start = Memory.__init__

    def counted(self: Memory, nbytes: int, what: str) -> None:
        start(self, nbytes, what)
        taken.append(self.nbytes)

    monkeypatch.setattr(Memory, "__init__", counted)
    with LLM(tiny_gguf, threads=1, ubatch=100):
        assert sum(taken) == need


def test_an_arena_gives_each_its_own_bytes() -> None:
    """Parts lie side by side and are zero, and what finds no room is memory of its own."""
    arena = Arena(3 * mmap.PAGESIZE, "a test")
    parts = [arena(100, "a page"), arena(mmap.PAGESIZE + 1, "two pages"), arena(1, "no page is left")]
    assert [part.nbytes for part in parts] == [mmap.PAGESIZE, 2 * mmap.PAGESIZE, mmap.PAGESIZE]
    assert parts[1].address == parts[0].address + mmap.PAGESIZE
    for i, part in enumerate(parts):
        whole = part.array(np.uint8, (part.nbytes,))
        assert not whole.any() and whole.ctypes.data == part.address
        whole.fill(i + 1)
    assert [set(part.array(np.uint8, (part.nbytes,)).tolist()) for part in parts] == [{1}, {2}, {3}]


@pytest.mark.parametrize(
    ("available", "way_out"),
    [
        (1099 << 20, "-c 990 would fit"),
        (1050 << 20, "-c 500 would fit"),
        (1 << 30, "-c 240 would fit"),
        (1000 << 20, "a smaller -c and -ub could fit"),
        (910 << 20, "a smaller -c and -ub could fit"),
        (899 << 20, None),
    ],
)
def test_the_way_out(available: int, way_out: str | None) -> None:
    """900 MiB of weights, 100 of cache and 100 of buffers: which option helps, if any."""
    tally = Tally()
    tally.weights(900 << 20, "w")
    tally.cache(100 << 20, "k")
    tally.buffers(100 << 20, "b")
    tally.check(None, 1000, 64)
    tally.check(1100 << 20, 1000, 64)
    with pytest.raises(UsageError) as caught:
        tally.check(available, 1000, 64)
    message = str(caught.value)
    assert message.startswith(
        "not enough memory: 1.07 GiB needed (weights 900.0 MiB, KV cache of 1000 positions 100.0 MiB, "
        "batches of 64 100.0 MiB), "
    )
    assert message.endswith(f"available; {way_out}" if way_out else "available")
