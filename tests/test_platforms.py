"""Other systems: every module is imported, and files, cores and the cache are used, as on Windows and on macOS.

A process of its own loses what such a system has not: POSIX-only modules, functions of os, and constants of mmap.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What CPython's documentation marks as not available there.
ABSENT_MODULES = {
    "win32": ("fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"),
    "darwin": ("spwd",),
}
ABSENT_IN_OS = {
    "win32": (
        "chown chroot fchdir fchmod fchown fork forkpty geteuid getgid getloadavg getpgid getuid killpg lchown mkfifo "
        "mknod posix_fadvise posix_fallocate posix_spawn pread preadv pwrite pwritev sched_getaffinity "
        "sched_setaffinity sched_yield sendfile setpgid setsid setuid statvfs sysconf uname wait3 wait4 "
        "O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_SYNC"
    ),
    "darwin": (
        "memfd_create posix_fadvise posix_fallocate sched_getaffinity sched_setaffinity splice copy_file_range "
        "O_DIRECT O_PATH"
    ),
}
ABSENT_IN_MMAP = {
    "win32": "MADV_DONTNEED MADV_HUGEPAGE MAP_ANONYMOUS MAP_ANON MAP_PRIVATE MAP_SHARED PROT_READ PROT_WRITE",
    "darwin": "MADV_HUGEPAGE MAP_POPULATE",
}

ABSENT_IN_SIGNAL = {
    "win32": "SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2 SIGWINCH SIGXFSZ",
    "darwin": "SIGPOLL SIGPWR SIGRTMIN SIGRTMAX SIGSTKFLT",
}

FAKE = """
import sys
system, modules, of_os, of_mmap = sys.argv[1], *(words.split() for words in sys.argv[2:5])

# The interpreter's own and the libraries' parts are of this machine: they are imported before it changes.
import ctypes, mmap, os, pathlib, subprocess, tempfile, multiprocessing, concurrent.futures, asyncio, platform, shutil
import numpy, llvmlite.binding, platformdirs
for name in ("gguf", "huggingface_hub", "jinja2", "numba", "prompt_toolkit.history", "rich.progress", "safetensors"):
    try:
        __import__(name)
    except ImportError:
        pass
for name in modules:
    sys.modules[name] = None
for name in of_os:
    if hasattr(os, name):
        delattr(os, name)
for name in of_mmap:
    if hasattr(mmap, name):
        delattr(mmap, name)
"""

IMPORT_ALL = """
import importlib, pkgutil
sys.platform = system
import halfbyte
names = [m.name for m in pkgutil.walk_packages(halfbyte.__path__, "halfbyte.")
         if not m.name.startswith(("halfbyte.tests", "halfbyte.training", "halfbyte.build"))]
assert len(names) > 150, len(names)
failed = {}
for name in names:
    try:
        importlib.import_module(name)
    except Exception as error:
        if not isinstance(error, ModuleNotFoundError) or error.name in modules:
            failed[name] = repr(error)
assert not failed, failed
print(len(names))
"""

USE = """
from halfbyte.cache import cache_folder, read_entry, write_entry
folder = cache_folder("kernels", "here")
write_entry(folder / "entry", b"content")
assert read_entry(folder / "entry") == b"content"
from halfbyte.runtime.machine import this_machine
machine = this_machine()
assert 1 <= machine.default_threads <= machine.logical_cores
from halfbyte.runtime.engine.memory import Memory
assert Memory(1 << 22, "a test").address
from pathlib import Path
from halfbyte.quant.whole_file import WholeFile
out = WholeFile(folder / "whole", "choose another name")
out.write(b"whole")
out.flush()
out.publish()
assert (folder / "whole").read_bytes() == b"whole"
from halfbyte.hub.store import find_path, models_folder
assert find_path("owner/name") == "owner/name"
assert models_folder() == Path(os.environ["HALFBYTE_MODELS_DIR"])
from halfbyte.commands.doctor import _facts
assert _facts()["kernel_cache"]
from halfbyte.convert.source import read_whole
(folder / "file").write_bytes(b"some bytes")
assert read_whole(folder / "file", 100) == b"some bytes"
from halfbyte import LLM
with LLM(sys.argv[5], threads=2, context=32) as llm:  # compiled here, by helpers too
    print(llm.generate("the", max_tokens=4, temperature=0).text)
"""


def sources():
    """The package's files."""
    return [f for f in sorted(ROOT.rglob("*.py")) if f.relative_to(ROOT).parts[0] not in ("tests", "training", ".venv")]


def lacking(text, system):
    """What `text` uses that `system` lacks and that it does not ask for: (line, name).

    Whoever asks writes hasattr or getattr with the name in the same file, or hasattr of a name that comes with it in
    the same line; a module is imported in a try.
    """
    absent = {"os": ABSENT_IN_OS, "mmap": ABSENT_IN_MMAP, "signal": ABSENT_IN_SIGNAL}
    tree = ast.parse(text)
    tried = {id(part) for node in ast.walk(tree) if isinstance(node, ast.Try) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in absent:
            module, name = node.value.id, node.attr
            asked = any(f'{ask}({module}, "{name}"' in text for ask in ("hasattr", "getattr"))
            asked |= f"hasattr({module}, " in text.splitlines()[node.lineno - 1]
            if name in absent[module][system].split() and not asked:
                yield node.lineno, f"{module}.{name}"
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in tried:
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from ((node.lineno, name) for name in names if name in ABSENT_MODULES[system])


def process(script, system, *words, cache):
    """Run `script` in a process that lacks what `system` lacks; return what it printed."""
    absent = (" ".join(ABSENT_MODULES[system]), ABSENT_IN_OS[system], ABSENT_IN_MMAP[system])
    done = subprocess.run(
        [sys.executable, "-c", FAKE + script, system, *absent, *map(str, words)],
        env=os.environ | {"HALFBYTE_CACHE_DIR": str(cache), "HALFBYTE_MODELS_DIR": str(cache / "models")},
        capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_what_a_system_lacks_is_asked_for_before_it_is_used(system):
    found = {file: list(lacking(file.read_text("utf-8"), system)) for file in sources()}
    assert len(found) > 200
    assert not {file: names for file, names in found.items() if names}


def test_use_without_asking_is_found():
    """The check above, checked."""
    assert list(lacking("import os\nos.getuid()", "win32")) == [(2, "os.getuid")]
    assert list(lacking("import os\nos.getuid()", "darwin")) == []
    assert list(lacking('import os\nif hasattr(os, "getuid"): os.getuid()', "win32")) == []
    assert list(lacking("import fcntl", "win32")) == [(1, "fcntl")]
    assert list(lacking("import signal\nsignal.SIGKILL", "win32")) == [(2, "signal.SIGKILL")]


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_every_module_is_imported(system, tmp_path):
    process(IMPORT_ALL, system, cache=tmp_path / "cache")


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_files_cores_and_a_model_are_used(system, tmp_path, tiny_gguf):
    """The name of the system stays this one's: LLVM makes code for this machine, and its files are read."""
    from halfbyte import LLM

    with LLM(tiny_gguf, threads=2, context=32) as llm:
        expected = llm.generate("the", max_tokens=4, temperature=0).text
    assert process(USE, system, tiny_gguf, cache=tmp_path / "cache").rstrip("\n") == expected.rstrip("\n")
