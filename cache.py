"""The private cache folder.  Enters: bytes under a name; leaves: the same bytes, or `DamagedEntry` when in doubt.

Cached kernels are machine code, so the folder must belong to this user and be closed to others (mode 0700), and every
entry carries the SHA-256 of its name and content: what is damaged, or was another entry, is made anew.
`HALFBYTE_CACHE_DIR` names another folder; the default is the platform's user cache folder.  For a folder that cannot be
written, a temporary one with its content stands in until the process ends, with a `HalfbyteWarning`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import operator
import os
import shutil
import stat
import tempfile
import threading
import warnings
from pathlib import Path

from .errors import HalfbyteWarning, UsageError

TEMPORARY = ".tmp"  # how the names of entries end that are being written
_DIGEST_BYTES = 32
_LARGEST = 64 << 20  # bytes; no entry comes near
_one_at_a_time = threading.Lock()
_stand_ins: dict[Path, Path] = {}  # the folder that cannot be written, the one in its place


def cache_folder(*parts: str) -> Path:
    """Return the private folder <cache>/<parts...>, made when missing; it can be written.

    Raises UsageError when the cache folder belongs to someone else or others may write to it.
    """
    root = _root()
    try:
        return _private_folder(root, parts)
    except OSError as error:
        reason = "a file is in its place" if isinstance(error, FileExistsError) else error.strerror
        with _one_at_a_time:
            if root not in _stand_ins:
                _stand_ins[root] = _stand_in(root, reason)
            folder = _private_folder(_stand_ins[root], parts)
            if not any(folder.iterdir()):
                _copy_files(root.joinpath(*parts), folder)  # a cache made beforehand may be read-only
        return folder


def is_temporary(path: Path) -> bool:
    """Whether `path` goes away when this process ends: it lies in a folder that stands in for the cache."""
    return any(path.is_relative_to(folder) for folder in _stand_ins.values())


def _root() -> Path:
    named = os.environ.get("HALFBYTE_CACHE_DIR")
    if named:
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_cache_dir("halfbyte", appauthor=False))


def _private_folder(root: Path, parts: tuple[str, ...]) -> Path:
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(root)
    folder = root
    for part in parts:  # one by one: `parents` would leave those between as open as the umask does
        folder /= part
        folder.mkdir(mode=0o700, exist_ok=True)
        _check_private(folder)
    with tempfile.TemporaryFile(dir=folder):  # what the mode says is not all: file systems may be read-only
        pass
    return folder


def _copy_files(source: Path, folder: Path) -> None:
    with contextlib.suppress(OSError):
        for file in source.iterdir():
            if file.is_file():
                shutil.copy(file, folder)


def _stand_in(root: Path, reason: str | None) -> Path:
    """Return a temporary folder for this process in place of `root`."""
    folder = Path(tempfile.mkdtemp(prefix="halfbyte-"))  # for this user only, as the cache is
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    message = f"cache folder {root}: {reason}; a temporary folder stands in (HALFBYTE_CACHE_DIR names another)"
    warnings.warn(message, HalfbyteWarning, stacklevel=3)
    return folder


def _check_private(folder: Path) -> None:
    if not hasattr(os, "getuid"):  # Windows: the user's profile is private by its access list
        return
    found = folder.stat()
    if found.st_uid != os.getuid():
        raise UsageError(
            f"cache folder {folder} belongs to user {found.st_uid}, not to {os.getuid()}; "
            "name another with HALFBYTE_CACHE_DIR"
        )
    if stat.S_IMODE(found.st_mode) & 0o022:
        raise UsageError(
            f"cache folder {folder} has mode {stat.S_IMODE(found.st_mode):o}: others may write to it; "
            "make it 700 or name another with HALFBYTE_CACHE_DIR"
        )


class DamagedEntry(Exception):
    """What lies under an entry's name is not what `write_entry` stored there; says why."""


def read_entry(file: Path) -> bytes | None:
    """Return the content that `write_entry` stored under `file`, None when nothing is there.

    Raises DamagedEntry for all else: cut short, changed, too large, another entry's, a link, no file, another user's.
    """
    try:
        stored = _read_own(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedEntry(f"cannot be read: {error.strerror}") from None
    digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
    if _digest(file, content) != digest:
        raise DamagedEntry("its digest is another")
    return content


def _read_own(file: Path) -> bytes:
    """Return what a regular file of this user holds; no link is followed, and a pipe is not waited for."""
    flags = (getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
    handle = os.open(file, functools.reduce(operator.or_, flags, os.O_RDONLY))
    with os.fdopen(handle, "rb") as opened:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise DamagedEntry("is not a file")
        if hasattr(os, "getuid") and found.st_uid != os.getuid():
            raise DamagedEntry(f"belongs to user {found.st_uid}")
        if found.st_size > _LARGEST:
            raise DamagedEntry(f"has {found.st_size} bytes")
        return opened.read(_LARGEST)


def _digest(file: Path, content: bytes) -> bytes:
    """The digest of an entry: the name of its folder and its own are part of it."""
    return hashlib.sha256(f"{file.parent.name}/{file.name}\0".encode() + content).digest()


def write_entry(file: Path, content: bytes) -> None:
    """Store `content` under `file`, in place of whatever is there.

    A temporary file beside it, then a rename: no reader sees half of it, and of several writers the last one stays.
    Raises OSError when the folder cannot be written.
    """
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=TEMPORARY)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(_digest(file, content) + content)
        if file.is_dir() and not file.is_symlink():  # a rename takes the place of all but these
            shutil.rmtree(file)
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
