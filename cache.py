"""The private cache folder.  Enters: bytes under a name and a digest; leaves: the same bytes, or None when in doubt.

Cached kernels are machine code, so the folder must belong to this user and be closed to others (mode 0700), and every
entry carries the SHA-256 of its content: a damaged entry reads as absent and is made anew.
`HALFBYTE_CACHE_DIR` names another folder; the default is the platform's user cache folder.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from .errors import UsageError

_DIGEST_BYTES = 32


def cache_folder(*parts: str) -> Path:
    """Return the private folder <cache>/<parts...>, made when missing.

    Raises UsageError when the cache folder belongs to someone else or others may write to it.
    """
    named = os.environ.get("HALFBYTE_CACHE_DIR")
    if named:
        root = Path(named)
    else:
        import platformdirs

        root = Path(platformdirs.user_cache_dir("halfbyte", appauthor=False))
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(root)
        folder = root.joinpath(*parts)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cache folder {root}: {error.strerror}; name another with HALFBYTE_CACHE_DIR") from error
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
