"""One regular file of a checkpoint.  Enters: a path; leaves: exactly the bytes asked for, or one clear error.

Plain reads rather than a memory map: a file that is cut while it is read gives an error instead of a SIGBUS, and pages
that were read do not count as the converter's memory.
"""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

from ..errors import ModelFileError, UsageError

LFS_POINTER = b"version https://git-lfs"


class SourceFile:
    """An open file of the checkpoint; close it, or use it in a `with`.

    Raises UsageError when it cannot be opened, ModelFileError when it is no regular file, empty, or only the git-lfs
    pointer to the real one.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        # O_NONBLOCK: a pipe without a writer must not block for ever.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            self._handle = os.open(path, flags)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror or error}") from error
        try:
            found = os.fstat(self._handle)
            if not stat.S_ISREG(found.st_mode):
                raise ModelFileError(path, "is not a regular file")
            self._opened_as = (found.st_size, found.st_mtime_ns)
            self.size = found.st_size
            if self.size == 0:
                raise ModelFileError(path, "is empty")
            if self.read(0, min(self.size, len(LFS_POINTER))) == LFS_POINTER:
                raise ModelFileError(path, "is a git-lfs pointer: the file itself was not downloaded")
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, count: int) -> bytearray:
        """Return `count` bytes from byte `offset` on; ModelFileError when the file ends before or cannot be read."""
        content = bytearray(count)
        view, done = memoryview(content), 0
        try:
            while done < count:
                got = self._read_into(view[done:], offset + done)
                if got == 0:
                    message = f"ended while it was read: {count} bytes wanted, {done} there"
                    raise ModelFileError(self.path, message, offset=offset)
                done += got
        except OSError as error:
            raise ModelFileError(self.path, f"cannot be read: {error.strerror or error}", offset=offset) from error
        return content

    def _read_into(self, view: memoryview, offset: int) -> int:
        """Read from byte `offset` into `view` and return the count; threads may call it together."""
        if hasattr(os, "preadv"):
            return os.preadv(self._handle, [view], offset)
        with self._lock:
            os.lseek(self._handle, offset, os.SEEK_SET)
            got = os.read(self._handle, len(view))
        view[: len(got)] = got
        return len(got)

    def check_unchanged(self) -> None:
        """Raise ModelFileError when the file was written to since it was opened."""
        found = os.fstat(self._handle)
        if (found.st_size, found.st_mtime_ns) != self._opened_as:
            raise ModelFileError(self.path, "changed while it was being converted")

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> SourceFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_whole(path: Path, limit: int) -> bytes:
    """Return all of the file's bytes; ModelFileError when there are more than `limit`."""
    with SourceFile(path) as file:
        if file.size > limit:
            raise ModelFileError(path, f"has {file.size} bytes; at most {limit} are allowed")
        return bytes(file.read(0, file.size))
