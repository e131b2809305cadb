"""Compiling in further processes.  Enters: kernels, one at a time; leaves: the object code of each.

llvmlite lets one call at a time into LLVM, so the threads of a process compile on one core.  A helper is this module in
an interpreter of its own: it reads pickled kernels from its standard input and writes their code to its output, until
the input ends, as it does when the parent has died.  Helpers only save time: whatever goes wrong with one, its kernels
are compiled by the parent.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .jit import Kernel
    from .target import Target

_PROGRAM = f"import sys; sys.path[:] = sys.argv[1:]; from {__name__} import serve; serve()"
_LENGTH = struct.Struct("<Q")  # of the object code that follows
_PATIENCE = 60.0  # seconds, after which a helper is given up


class Helper:
    """One process; used by one thread at a time.  Raises OSError where it cannot be started."""

    def __init__(self, target: Target, version: str):
        """version: of the sources, the library and the CPU (jit.py); a helper that finds another does nothing."""
        if "python" not in Path(sys.executable or "").name.lower():
            raise OSError("this process is not an interpreter that could be started once more")
        isolated = ["-I"] if sys.flags.isolated else []
        self._process = subprocess.Popen(
            [sys.executable, *isolated, "-c", _PROGRAM, *map(str, sys.path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        self._greeting = pickle.dumps((target, version))

    def compile(self, kernel: Kernel) -> bytes | None:
        """Return the object code of `kernel`; None when this helper is of no use (any more)."""
        hangs = Timer(_PATIENCE, self._process.kill)
        hangs.start()
        try:
            self._to.write(self._greeting + pickle.dumps(kernel))
            self._to.flush()
            self._greeting = b""
            (length,) = _LENGTH.unpack(self._from.read(_LENGTH.size))
            code = self._from.read(length)
            return code if len(code) == length else None
        except (OSError, ValueError, struct.error, pickle.PicklingError, AttributeError, TypeError):
            return None
        finally:
            hangs.cancel()

    def close(self) -> None:
        """End the process, in the middle of a kernel too."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._to, self._from):
            with contextlib.suppress(OSError):
                pipe.close()


def serve() -> None:
    """Be a helper: compile what standard input asks for."""
    from .jit import cache_version, object_code

    source, out = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no object code
    try:
        target, version = pickle.load(source)
        if cache_version(target) != version:
            return
        while True:
            code = object_code(pickle.load(source), target)
            out.write(_LENGTH.pack(len(code)) + code)
            out.flush()
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
