"""A file that is there whole or not at all.  Enters: a path and bytes; leaves: the file under that name, on the disk.

Bytes go to a temporary file beside the target, which gets the target's name at the end: neither an exception nor a kill
leaves anything under that name.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from ..errors import OutputExistsError, UsageError


class WholeFile:
    """Writes one file: `write`, then `flush` and `publish`; `discard` in any case at the end.

    path      the target
    part      the temporary file
    way_out   what the message says when the target is there; None: it is replaced
    """

    def __init__(self, path: str | os.PathLike[str], way_out: str | None):
        """Raises OutputExistsError when the target is there, UsageError when it cannot be written."""
        self.path, self.way_out = Path(path), way_out
        check_target(self.path, way_out)
        self.part = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}.part")
        with self.system():
            self._file = self.part.open("xb")

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        with self.system():
            self._file.write(data)

    def flush(self) -> None:
        """Put everything on the disk; nothing can be written any more."""
        with self.system():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def publish(self) -> None:
        """Give the file its name, unless another has got it meanwhile."""
        check_target(self.path, self.way_out)
        with self.system():
            self.part.replace(self.path)
        _sync_folder(self.path.parent)

    def discard(self) -> None:
        """Remove what has not got its name."""
        with contextlib.suppress(OSError):  # on a full disk, the bytes still buffered fail once more
            self._file.close()
        self.part.unlink(missing_ok=True)

    @contextlib.contextmanager
    def system(self) -> Iterator[None]:
        """Say in one line, with the target's name, what the system refuses."""
        try:
            yield
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be written: {error.strerror or error}") from error


def check_target(path: Path, way_out: str | None) -> None:
    """Raise UsageError for a folder, OutputExistsError, with the way out, for a file that is there."""
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; the name of a file is wanted")
    if way_out is not None and path.exists():
        raise OutputExistsError(f"{path}: exists already; {way_out}")


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable, where the system lets a folder be opened for that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
