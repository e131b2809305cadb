"""Compiled loops of quant/: nothing imports Numba early, and kept machine code is used only when it is sound."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from halfbyte.quant import jit
from halfbyte.quant.formats import FORMATS, loops

VALUES = np.random.default_rng(0).standard_normal((1024, 1)).astype(np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache folder, and nothing compiled in this process yet."""
    pytest.importorskip("numba")
    monkeypatch.setenv("HALFBYTE_CACHE_DIR", str(tmp_path / "cache"))
    jit.compiled.cache_clear()
    yield tmp_path / "cache/quant"
    jit.compiled.cache_clear()


def entry_after_use(folder: Path) -> Path:
    """Quantize, check the result, and return the one entry that is there now."""
    jit.compiled.cache_clear()
    format = FORMATS["bf16"]
    np.testing.assert_array_equal(format.quantize_compiled(VALUES), format.quantize_blocks(VALUES))
    (entry,) = folder.iterdir()
    return entry


def test_code_is_kept_and_used_again(folder):
    entry = entry_after_use(folder)
    before = entry.stat().st_mtime_ns
    assert entry.stat().st_mode & 0o077 == 0
    assert entry_after_use(folder).stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign"])
def test_a_damaged_entry_is_made_anew(folder, damage):
    entry = entry_after_use(folder)
    sound = entry.read_bytes()
    middle = len(sound) // 2
    flipped = sound[:middle] + bytes([sound[middle] ^ 1]) + sound[middle + 1 :]
    entry.write_bytes({"cut": sound[:100], "flipped": flipped, "foreign": b""}[damage])
    assert entry_after_use(folder) == entry
    assert len(entry.read_bytes()) > 1000


def test_an_edit_in_any_source_counts(tmp_path, monkeypatch):
    copy = tmp_path / "quant"
    shutil.copytree(Path(jit.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    digests = set()
    monkeypatch.setattr(jit, "__file__", str(copy / "jit.py"))
    for edited in (None, "jit.py", "formats/loops.py", "formats/block32.py"):
        if edited:
            with (copy / edited).open("a") as out:
                out.write("# edited\n")
        jit._sources_digest.cache_clear()
        digests.add(jit._sources_digest())
    jit._sources_digest.cache_clear()
    assert len(digests) == 4


def test_helpers_are_found():
    assert {helper.__name__ for helper in jit._helpers(loops.q5_1_quantize)} == {
        "_range",
        "_key",
        "_inverse",
        "_code",
        "_store",
    }


def test_importing_quant_does_not_import_numba():
    code = (
        "import sys, halfbyte.quant.gguf_writer, halfbyte.quant.recipe, halfbyte.quant.formats\n"
        "print([name for name in ('numba', 'llvmlite', 'gguf', 'torch') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
