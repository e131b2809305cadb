"""Compiled kernels on disk.  Enters: names, and object code to keep; leaves: the object code that was kept, checked.

One folder is one version of the kernels on one CPU (jit.py names it).  Trouble costs time and never a result: what is
damaged is compiled anew, and what cannot be written is compiled at each start, each with one line of notice.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

from ...cache import TEMPORARY, DamagedEntry, cache_folder, read_entry, write_entry
from ...errors import HalfbyteWarning

_DAY = 86400.0  # seconds
_UNUSED = 30 * _DAY  # after so long without a start that used it, a version's folder goes
_SUFFIX = ".o"


class ObjectCache:
    """The folder <cache>/kernels/<version>; `folder` is None where nothing can be kept at all.

    Several processes may use it at once: entries are replaced whole, and all write the same.
    Raises UsageError when the cache folder is not private.
    """

    def __init__(self, version: str):
        self.folder: Path | None = None
        self._told = False
        try:
            self.folder = cache_folder("kernels", version)
            _upkeep(self.folder)
        except OSError as error:
            self._give_up("cannot be made", error)

    def has(self, name: str) -> bool:
        """Whether something is kept under `name`, whole or not."""
        return self.folder is not None and (self.folder / f"{name}{_SUFFIX}").exists()

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return what is kept under `names`, by name; what is absent or damaged is left out, and told of once."""
        found: dict[str, bytes] = {}
        damaged: list[str] = []
        if self.folder is None:
            return found
        for name in names:
            file = self.folder / f"{name}{_SUFFIX}"
            try:
                content = read_entry(file)
            except DamagedEntry as damage:
                damaged.append(f"{file.name} {damage}")
                continue
            if content is not None:
                found[name] = content
        if damaged and not self._told:
            self._told = True
            more = f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""
            message = f"kernel cache {self.folder}: {damaged[0]}{more}; compiled anew"
            warnings.warn(message, HalfbyteWarning, stacklevel=2)
        return found

    def write(self, name: str, code: bytes) -> None:
        """Keep `code` under `name`; after a first failure nothing is tried any more."""
        if self.folder is None:
            return
        try:
            write_entry(self.folder / f"{name}{_SUFFIX}", code)
        except OSError as error:
            self._give_up(str(self.folder), error)

    def sizes(self) -> list[int]:
        """Return the bytes of each entry."""
        return [file.stat().st_size for file in self.folder.glob(f"*{_SUFFIX}")] if self.folder else []

    def _give_up(self, what: str, error: OSError) -> None:
        self.folder = None
        message = f"kernel cache {what}: {error.strerror}; kernels are compiled at each start"
        warnings.warn(message, HalfbyteWarning, stacklevel=3)


def _upkeep(folder: Path) -> None:
    """Once a day, and when `folder` is new: note that it is used, and remove what nobody uses any more.

    The time of a folder's last change is that of its last use.
    """
    now = time.time()
    if now - folder.stat().st_mtime < _DAY and any(folder.iterdir()):
        return
    with contextlib.suppress(OSError):  # another process may be at it
        folder.touch()
        for left in folder.glob(f"*{TEMPORARY}"):  # by a process that was killed
            if now - left.lstat().st_mtime > _DAY:
                left.unlink()
        for other in folder.parent.iterdir():
            if other != folder and not other.is_symlink() and now - other.lstat().st_mtime > _UNUSED:
                shutil.rmtree(other, ignore_errors=True)
