"""Loading: what stays in memory, what is given back, and what progress tells."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf_models import Entries, Models, Tensors, opened, rewritten

from halfbyte.quant.gguf_reader import open_gguf
from halfbyte.runtime.engine.engine import Engine
from halfbyte.runtime.options import RuntimeOptions

WIDE, FEED_FORWARD, LAYERS = 2048, 8192, 4
LIMIT = 250_000_000  # beside the file and the KV cache

LOAD = """
import sys
from pathlib import Path
from halfbyte import LLM
with LLM(sys.argv[1], threads=2, context=1024) as llm:
    llm.generate("Once upon a time", max_tokens=4, temperature=0)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmRSS"].split()[0]) * 1024)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def large_gguf(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quarter of a gigabyte in Q8_0: large enough that a second copy of it would show."""

    def enlarge(entries: Entries) -> None:
        sizes = {"embedding_length": WIDE, "feed_forward_length": FEED_FORWARD} | dict.fromkeys(
            ("rope.dimension_count", "attention.key_length", "attention.value_length"), WIDE // 4
        )
        for name, size in sizes.items():
            if f"llama.{name}" in entries:
                entries[f"llama.{name}"] = (entries[f"llama.{name}"][0], size)

    def fill(tensors: Tensors) -> None:
        rng = np.random.default_rng(1)
        larger = {64: WIDE, 32: WIDE // 2, 96: FEED_FORWARD}  # the tiny model's width, keys and feed-forward
        for name, (shape, kind, _) in tensors.items():
            shape = tuple(larger.get(n, n) for n in shape)
            row = kind.quantize(rng.standard_normal((1, shape[-1])).astype(np.float32) / WIDE)
            tensors[name] = (shape, kind, np.tile(row.reshape(-1), int(np.prod(shape[:-1]))))

    target = tmp_path_factory.mktemp("large") / "large.gguf"
    return rewritten(models.file("q8_0", layers=LAYERS), target, metadata=enlarge, tensors=fill)


def cache_bytes(file: Path, context: int) -> int:
    with opened(file, context=context) as engine:
        model = engine.model
        return 2 * 2 * model.n_layers * model.n_kv_heads * model.head_dim * context


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's files")
def test_memory_after_load_is_file_cache_and_a_quarter_of_a_gigabyte(large_gguf: Path) -> None:
    size = large_gguf.stat().st_size
    assert size > 1.02 * LIMIT, "a second copy must not fit the limit"
    done = subprocess.run([sys.executable, "-c", LOAD, large_gguf], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    resident = int(done.stdout)
    print(f"file {size / 1e6:.0f} MB, resident {resident / 1e6:.0f} MB")
    assert resident <= size + cache_bytes(large_gguf, 1024) + LIMIT


def resident_of(file: Path) -> int:
    """Bytes of the mapped file that are in this process's memory."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            ours = line.endswith(str(file))
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's files")
def test_the_files_pages_are_given_back(large_gguf: Path) -> None:
    with opened(large_gguf, threads=2, context=64):
        assert resident_of(large_gguf) < 4 << 20


def test_progress_counts_the_bytes_of_the_matrices(models: Models) -> None:
    """From the first matrix to the last, without a step back; embeddings that are not multiplied are not loaded."""
    file, heard = models.file("q8_0", layers=3), []
    with open_gguf(file) as found:
        matrices = [v.nbytes for v in found.tensors.values() if len(v.shape) == 2 and v.name != "token_embd.weight"]
        Engine(found, RuntimeOptions(threads=2), lambda *what: heard.append(what)).close()
    told = [what[1:] for what in heard if what[0] == "loading weights"]
    done = [n for n, _ in told]
    assert len(told) == len(matrices) == 22
    assert {total for _, total in told} == {sum(matrices)}
    assert done == sorted(done)
    assert done[-1] == sum(matrices)
