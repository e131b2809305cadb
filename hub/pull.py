"""From the hub to the store.  Enters: a name; leaves: a model in the store, complete and with the hub's digests."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError, printable
from .download import Repository, fetch, is_offline, list_repository
from .names import CHECKPOINT, Choice, ModelName, RemoteFile, choose, parse_name
from .store import MAIN, PulledModel, StoredFile, find, note_revision, now, partial_folder, publish, staged

Progress = Callable[[str, int, int], None]  # (what is being done, bytes done, bytes in all)


@dataclass(frozen=True)
class Pulled:
    """A model that is there now; `is_new` when it was not before."""

    model: PulledModel
    is_new: bool


def pull(word: str, offline: bool = False, progress: Progress | None = None, revision: str | None = None) -> Pulled:
    """Bring the model called `word` (OWNER/REPO[:KIND], see names.py) into the store.

    offline   ask nobody: the model is there or it is an error
    progress  called as bytes arrive
    revision  a branch, tag or commit of the repository, in place of main; a name stands for what was pulled last
    What an earlier call received is not received again.  Raises UsageError (no name, not there, gated, no such
    quantization, no room) or BrokenTransfer; nothing has the model's name then.
    """
    name = parse_name(word)
    if name is None:
        raise UsageError(f"{printable(word)!r} is no name of a model; OWNER/REPO or OWNER/REPO:QUANTIZATION is wanted")
    if offline or is_offline():
        return Pulled(_held(name, revision), is_new=False)
    repository = list_repository(name.repo, revision)
    choice = choose(name, repository.files)
    full = ModelName(name.repo, choice.kind)
    partial = partial_folder(full)
    with _written(partial), _locked(partial):
        model = find(str(full))
        if model and [file.digest for file in model.files] == [file.digest for file in choice.files]:
            return Pulled(note_revision(model, revision), is_new=False)
        _download(repository, choice, full, partial, progress)
        return Pulled(_publish(repository, choice, full, partial, revision), is_new=True)


def _held(name: ModelName, revision: str | None) -> PulledModel:
    """Return what is here of a name, the checkpoint where its type is not; raises UsageError without."""
    held = [model for word in (str(name), f"{name.repo}:{CHECKPOINT}") if (model := find(word))]
    for model in held:
        if revision in (None, model.revision, model.commit):
            return model
    here = f"; what is here is {held[0].revision}, commit {held[0].commit}" if held else ""
    asked = f"{name} at {printable(revision)}" if revision else f"{name}"
    raise UsageError(f"{asked}: is not on this machine, and offline nothing can be pulled{here}")


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Make the folder; say in one line what the system refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UsageError(f"{error.filename or folder}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Let one process at a time work on a model; the next one finds what this one did."""
    from huggingface_hub.utils import WeakFileLock

    with WeakFileLock(partial.with_name(f"{partial.name}.lock")):
        partial.mkdir(exist_ok=True)
        yield


def _download(
    repository: Repository, choice: Choice, name: ModelName, partial: Path, progress: Progress | None
) -> None:
    """Bring all files into `partial`, each under its digest."""
    wanted = {_arriving(file) for file in choice.files}
    for stale in partial.iterdir():
        if stale.name.removesuffix(".part") not in wanted:  # of another commit
            stale.unlink()
    total = sum(file.nbytes for file in choice.files)
    held = sum(file.stat().st_size for file in partial.iterdir())
    free = shutil.disk_usage(partial).free
    if total - held > free:
        raise UsageError(f"{name}: takes {total - held} bytes more; {free} are free in {partial.parent.parent}")
    done = 0
    for file in choice.files:
        target = partial / _arriving(file)
        if not target.exists():
            fetch(repository, file, target, _teller(progress, f"pulling {name}", done, total))
        done += file.nbytes


def _teller(progress: Progress | None, what: str, done: int, total: int) -> Callable[[int], None]:
    return lambda received: progress(what, done + received, total) if progress else None


def _publish(
    repository: Repository, choice: Choice, name: ModelName, partial: Path, revision: str | None
) -> PulledModel:
    """Give the files their names and the folder its own."""
    with staged(name) as folder:
        files = tuple(StoredFile(file.base, file.nbytes, file.digest) for file in choice.files)
        model = PulledModel(
            repository.repo, choice.kind, repository.origin, repository.commit, now(), files, folder, revision or MAIN
        )
        model.content.mkdir(exist_ok=True)
        for file in choice.files:
            place = model.content / file.base
            place.parent.mkdir(exist_ok=True)
            (partial / _arriving(file)).replace(place)
        model = publish(model)
    partial.rmdir()
    return model


def _arriving(file: RemoteFile) -> str:
    """Return the name that a file has until all are there: its content is part of it."""
    return f"{file.digest}-{file.base.replace('/', '-')}"
