"""The kernel cache on disk: whatever lies in it, the model says the same; and it is kept small, whole and private."""

import os
import stat
import subprocess
import sys
import time
import warnings

import pytest
from damaged_cache import ENTRY, FOLDER, POSIX

from halfbyte.errors import HalfbyteWarning
from halfbyte.quant.gguf_reader import open_gguf
from halfbyte.runtime.engine.engine import Engine
from halfbyte.runtime.kernels.jit import Library, object_cache
from halfbyte.runtime.kernels.object_cache import ObjectCache
from halfbyte.runtime.kernels.sync import alone_kernel, lead_kernel, work_kernel
from halfbyte.runtime.kernels.targets import host_target
from halfbyte.runtime.options import RuntimeOptions


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder of this module's own; object_cache() makes a new ObjectCache of it whenever it is cleared."""
    folder = tmp_path_factory.mktemp("cache")
    folder.chmod(0o700)
    before = os.environ.get("HALFBYTE_CACHE_DIR")
    os.environ["HALFBYTE_CACHE_DIR"] = str(folder)
    object_cache.cache_clear()
    yield folder
    os.environ.pop("HALFBYTE_CACHE_DIR")
    if before is not None:
        os.environ["HALFBYTE_CACHE_DIR"] = before
    object_cache.cache_clear()


def start(model):
    """Load `model` as a new process does; return greedy tokens, and what was said."""
    object_cache.cache_clear()
    with warnings.catch_warnings(record=True) as caught, open_gguf(model) as file:
        warnings.simplefilter("always")
        engine = Engine(file, RuntimeOptions(threads=1, context=64), library=Library())
        sequence, tokens = engine.new_sequence(), [1, 5, 9]
        for _ in range(6):
            tokens.append(int(engine.feed(sequence, tokens[len(sequence) :]).argmax()))
        engine.close()
    return tokens, [str(w.message) for w in caught if issubclass(w.category, HalfbyteWarning)]


@pytest.fixture(scope="module")
def warm(cache, tiny_gguf):
    """The tokens of the tiny model, whose kernels are cached from now on, and the cache's folder for them."""
    tokens, said = start(tiny_gguf)
    assert said == []
    return tokens, object_cache(host_target()).folder


@pytest.mark.parametrize("kind", ENTRY)
def test_a_damaged_entry_is_told_once_and_made_anew(kind, warm, tiny_gguf):
    tokens, folder = warm
    file = min(folder.glob("hb_norm*.o"), key=lambda f: f.stat().st_size)
    whole = file.read_bytes()
    ENTRY[kind](file)
    found, said = start(tiny_gguf)
    assert found == tokens
    assert len(said) == 1
    assert file.name in said[0]
    assert said[0].endswith("; compiled anew")
    assert not file.is_symlink()
    assert file.read_bytes() == whole, "it is repaired"
    assert start(tiny_gguf) == (tokens, [])


@pytest.mark.parametrize("kind", FOLDER)
def test_a_damaged_folder_is_told_in_one_line_or_none(kind, tmp_path, monkeypatch):
    """Three small kernels; damaged_cache.py, run as a script, does this to whole models."""
    monkeypatch.setenv("HALFBYTE_CACHE_DIR", str(tmp_path / "cache"))
    kernels = [lead_kernel(), work_kernel(), alone_kernel()]
    object_cache.cache_clear()
    Library().load(kernels)
    folder = object_cache(host_target()).folder
    whole = {file.name: file.read_bytes() for file in folder.glob("hb_*.o")}
    damage, lines = FOLDER[kind]
    damage(folder)
    object_cache.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", HalfbyteWarning)
        library = Library()
        library.load(kernels)
    assert all(library.address(kernel) for kernel in kernels)
    assert len(caught) <= lines, [str(w.message) for w in caught]
    now = object_cache(host_target()).folder
    assert {name: (now / name).read_bytes() for name in whole} == whole
    object_cache.cache_clear()


def test_many_damaged_entries_are_told_in_one_line(warm, tiny_gguf):
    tokens, folder = warm
    files = sorted(folder.glob("hb_norm*.o")) + sorted(folder.glob("hb_rope*.o"))
    for file in files:
        file.write_bytes(b"")
    found, said = start(tiny_gguf)
    assert found == tokens
    assert len(said) == 1
    assert f"and {len(files) - 1} more" in said[0]


def test_damage_is_told_once_a_process(warm):
    folder = warm[1]
    cache = ObjectCache(folder.name)
    names = ["one", "two"]
    for name in names:
        (folder / f"{name}.o").write_text("damaged")
    with pytest.warns(HalfbyteWarning, match=names[0]):
        assert cache.read(names[:1]) == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.read(names[1:]) == {}
    for name in names:
        (folder / f"{name}.o").unlink()


def test_an_absent_entry_is_made_without_a_word(warm, tiny_gguf):
    tokens, folder = warm
    next(folder.glob("hb_rope*.o")).unlink()
    assert start(tiny_gguf) == (tokens, [])


COMPILE = """
import sys
from halfbyte.runtime.kernels.jit import Library
from halfbyte.runtime.kernels.sync import alone_kernel, lead_kernel, work_kernel
if sys.argv[1:]:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
library = Library()
library.load([lead_kernel(), work_kernel()])
library.load([alone_kernel()])
print("loaded")
"""


def compile_in_process(cache, *words, **kwargs):
    environment = os.environ | {"HALFBYTE_CACHE_DIR": str(cache)}
    return subprocess.Popen(
        [sys.executable, "-c", COMPILE, *words],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", **kwargs,
    )  # fmt: skip


def test_several_processes_compile_at_once(tmp_path):
    started = [compile_in_process(tmp_path / "cache") for _ in range(3)]
    assert [process.communicate() for process in started] == [("loaded\n", "")] * 3
    [folder] = (tmp_path / "cache/kernels").iterdir()
    assert len(list(folder.iterdir())) == 3, "entries, and no temporary files"
    if POSIX:
        for path in (tmp_path / "cache", folder.parent, folder):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700


@pytest.mark.skipif(not POSIX, reason="limits of a process")
@pytest.mark.parametrize(("limit", "what"), [("100", "File too large"), ("0", "cannot be made")])
def test_where_nothing_can_be_written_kernels_work_and_one_line_says_so(tmp_path, limit, what):
    """A limit on the size of files stands for the full disk; with 0 there is no temporary folder either."""
    cache = tmp_path / "cache" if limit != "0" else tmp_path / "file/cache"
    (tmp_path / "file").touch()
    out, said = compile_in_process(cache, limit).communicate()
    assert out == "loaded\n"
    assert said.count("HalfbyteWarning") == 1, said
    assert what in said
    assert "kernels are compiled at each start" in said
    assert not any(file.is_file() for file in cache.parent.rglob("cache/**/*")), "nothing half written stays"


def test_versions_that_nobody_used_for_a_month_go(cache, warm):
    kernels, day = cache / "kernels", 86400
    for name, days in (("used", 29), ("unused", 31)):
        (kernels / name).mkdir()
        (kernels / name / "k.o").write_bytes(b"code")
        os.utime(kernels / name, (time.time() - days * day,) * 2)
    mine = ObjectCache("mine")
    left = [mine.folder / "a.o.x.tmp", mine.folder / "b.o.x.tmp"]
    for file in left:
        file.touch()
    os.utime(left[0], (time.time() - 2 * day,) * 2)
    assert {f.name for f in kernels.iterdir()} >= {"used", "mine"}
    assert not (kernels / "unused").exists()
    assert left[0].exists(), "a folder in use is looked through once a day"
    os.utime(mine.folder, (time.time() - 2 * day,) * 2)
    ObjectCache("mine")
    assert [file.exists() for file in left] == [False, True]
    assert time.time() - mine.folder.stat().st_mtime < 60, "it is in use"


def test_compiling_ends_when_the_weights_cannot_be_loaded(tiny_gguf, cache, warm, monkeypatch):
    """Nobody waits for kernels of a load that was given up (Ctrl-C)."""
    from halfbyte.runtime.engine.weights import Weights

    folder = warm[1]
    for file in folder.glob("hb_*"):
        if not file.name.startswith(("hb_lead", "hb_work", "hb_alone", "hb_pack")):
            file.unlink()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Weights, "pack", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        start(tiny_gguf)
    assert len(list(folder.glob("hb_*"))) < 8, "all others were compiled"
    assert start(tiny_gguf) == (warm[0], [])
