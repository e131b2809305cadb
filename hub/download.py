"""The hub's protocol, through huggingface_hub.  Enters: a repository's name; leaves: its files, listed and fetched.

The library brings the session (proxies, HF_ENDPOINT, HF_TOKEN or the token of `hf auth login`) and the errors.  The
transfer is our own: since version 2 the library throws a download away that did not end.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import HalfbyteError, UsageError, printable
from .names import RemoteFile

PAUSES = (0.5, 2.0)
"""Seconds before a broken transfer is tried again; a transfer that brought something starts over with the first."""
_TIMEOUT = 30  # seconds without a byte
_PASSING = (429, 500, 502, 503, 504)  # answers that may be others a little later
_HASHED = 1 << 20


class BrokenTransfer(HalfbyteError):
    """The connection broke or the disk filled; what was received is kept (exit code 2)."""


@dataclass(frozen=True)
class Repository:
    """What the hub says of a repository at a revision: the commit that it is, and the files of that commit."""

    repo: str
    origin: str
    commit: str
    files: tuple[RemoteFile, ...]


def endpoint() -> str:
    """Return the hub's address: HF_ENDPOINT, or https://huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE forbids to ask the hub, by the values that huggingface_hub takes as yes."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def list_repository(repo: str, revision: str | None = None) -> Repository:
    """Ask the hub for the files of `repo`, OWNER/REPO; raises UsageError when it cannot be had, with the reason.

    revision  a branch, tag or commit; None: the hub's default, main
    """
    with _explained(repo):
        from huggingface_hub import HfApi

        asked = HfApi(endpoint=endpoint(), library_name="halfbyte")
        info = asked.model_info(repo, revision=revision, files_metadata=True)
    if info.sha is None or info.siblings is None:
        raise UsageError(f"{repo}: {endpoint()} answers without a commit or without files; it does not speak as a hub")
    files = []
    for found in info.siblings:
        digest = found.lfs.sha256 if found.lfs else found.blob_id
        if found.size is not None and digest and _is_harmless(found.rfilename):
            files.append(RemoteFile(found.rfilename, found.size, digest))
    return Repository(repo, endpoint(), info.sha, tuple(files))


def _is_harmless(name: str) -> bool:
    """Return whether a name from the hub can be that of a file: no way out of a folder, nothing that acts."""
    parts = name.split("/")
    return name.isprintable() and not set(name) & set('\\:"') and not any(part in ("", ".", "..") for part in parts)


def fetch(repository: Repository, file: RemoteFile, target: Path, received: Callable[[int], None]) -> None:
    """Bring `file` to `target`, which gets its name when the bytes have the digest that the hub states.

    received  called with the bytes that are there of this file
    What was received stays in `target`.part, where the next call goes on.  Raises BrokenTransfer when the connection
    breaks again and again, UsageError when the hub refuses, or when the bytes are not those that it states.
    """
    part = target.with_name(f"{target.name}.part")
    pauses = iter(PAUSES)
    while True:
        before = part.stat().st_size if part.exists() else 0
        if before > file.nbytes:
            part.unlink()
            before = 0
        try:
            _transfer(repository, file, part, received)
            break
        except BrokenTransfer:
            now = part.stat().st_size if part.exists() else 0
            if now > before:
                pauses = iter(PAUSES)
            pause = next(pauses, None)
            if pause is None:
                raise
            time.sleep(pause)
    if _digest(part, file) != file.digest.lower():
        part.unlink()
        raise UsageError(f"{repository.repo}: {file.name} arrived with other bytes than the hub states; pull it again")
    part.replace(target)


def _transfer(repository: Repository, file: RemoteFile, part: Path, received: Callable[[int], None]) -> None:
    """Append what is missing of `file` to `part`."""
    with _explained(repository.repo, file.name):
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        url = hf_hub_url(repository.repo, file.name, revision=repository.commit, endpoint=repository.origin)
        headers = build_hf_headers(library_name="halfbyte") | {"Accept-Encoding": "identity"}
        with part.open("ab") as out:
            there = out.tell()
            received(there)
            if there == file.nbytes:
                return
            if there:
                headers["Range"] = f"bytes={there}-"
            with get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT, follow_redirects=True) as response:
                hf_raise_for_status(response)
                if there and not _continues(response, there):
                    out.truncate(0)
                    there = 0
                for chunk in response.iter_bytes():
                    there += len(chunk)
                    if there > file.nbytes:
                        raise UsageError(f"{repository.repo}: {file.name} is longer than {file.nbytes} bytes")
                    out.write(chunk)
                    received(there)
            out.flush()
            os.fsync(out.fileno())
    if there < file.nbytes:
        raise BrokenTransfer(f"{repository.repo}: {file.name} ended after {there} of {file.nbytes} bytes")


def _continues(response: Any, there: int) -> bool:
    """Return whether an answer is the rest of the file from byte `there` on."""
    return response.status_code == 206 and str(response.headers.get("Content-Range", "")).startswith(f"bytes {there}-")


def _digest(part: Path, file: RemoteFile) -> str:
    """Return SHA-256 of a large file; of a small one what git calls it: SHA-1 of "blob <size>\\0" and the content."""
    is_git = len(file.digest) == 40
    digest = hashlib.sha1(f"blob {file.nbytes}\0".encode(), usedforsecurity=False) if is_git else hashlib.sha256()
    with part.open("rb") as content:
        while chunk := content.read(_HASHED):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def _explained(repo: str, file: str | None = None) -> Iterator[None]:
    """Turn what the library raises into one line: what was asked for, what happened, what helps."""
    import huggingface_hub.errors as hub  # it knows which HTTP client it uses

    what = f"{repo}: {file}" if file else repo
    try:
        yield
    except hub.HFValidationError as error:
        raise UsageError(f"{what}: is no name of a repository: {_line(error)}") from error
    except hub.GatedRepoError as error:
        page = f"{endpoint()}/{repo}"
        raise UsageError(f"{what}: is gated: accept its terms at {page} and set HF_TOKEN to your token") from error
    except hub.RepositoryNotFoundError as error:
        message = f"{what}: no such model at {endpoint()}, or a private one that HF_TOKEN does not open"
        raise UsageError(message) from error
    except hub.RevisionNotFoundError as error:
        raise UsageError(f"{what}: has no such branch, tag or commit at {endpoint()}") from error
    except hub.EntryNotFoundError as error:
        raise UsageError(f"{what}: is not in the repository any more; pull the model again") from error
    except hub.OfflineModeIsEnabled as error:
        raise UsageError(f"{what}: HF_HUB_OFFLINE is set, and the model is not on this machine") from error
    except hub.HfHubHTTPError as error:
        kind = BrokenTransfer if error.response.status_code in _PASSING else UsageError
        raise kind(f"{what}: {endpoint()} answers {_line(error)}") from error
    except hub.HTTPError as error:  # the client's own: no connection, or one that broke
        raise BrokenTransfer(f"{what}: no connection to {endpoint()}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return printable(next(iter(str(error).strip().splitlines()), type(error).__name__), 200)
