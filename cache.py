"""The private cache folder.  Enters: bytes under a name and a digest; leaves: the same bytes, or None when in doubt.

Cached kernels are machine code, so the folder must belong to this user and be closed to others (mode 0700), and every
entry carries the SHA-256 of its content: a damaged entry reads as absent and is made anew.
`HALFBYTE_CACHE_DIR` names another folder; the default is the platform's user cache folder.  For a folder that cannot be
written, a temporary one with its content stands in until the process ends, with a `HalfbyteWarning`.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import threading
import warnings
from pathlib import Path

from .errors import HalfbyteWarning, UsageError

_DIGEST_BYTES = 32
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
    folder = root.joinpath(*parts)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
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


def read_entry(file: Path) -> bytes | None:
    """Return the content that `write_entry` stored, or None when it is absent, cut short or changed."""
    try:
        stored = file.read_bytes()
    except OSError:
        return None
    digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == digest else None


def write_entry(file: Path, content: bytes) -> None:
    """Store `content` under `file`: a temporary file beside it, then a rename, so that no reader sees half of it."""
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(hashlib.sha256(content).digest() + content)
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
