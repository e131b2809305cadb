"""Models on this machine that were pulled.  Enters: names; leaves: paths, the list, and what is removed.

A model is a folder OWNER/REPO/KIND with its files and a manifest; the folder gets that name when all of it is there,
so a name never leads to half a model.  Downloads that are not complete lie under `.partial`.
`HALFBYTE_MODELS_DIR` names another folder; the default is `models` in the platform's folder of user data.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import HalfbyteWarning, UsageError
from .names import CHECKPOINT, DEFAULT_KIND, ModelName, parse_name

MANIFEST = "halfbyte-model.json"
MAIN = "main"
"""The branch that the hub gives where none is asked for."""
_PARTIAL = ".partial"


@dataclass(frozen=True)
class StoredFile:
    """A file of a model: its name, size, and the digest that the hub states ("" of what was converted here)."""

    name: str
    nbytes: int
    digest: str


@dataclass(frozen=True)
class PulledModel:
    """A model in the store.

    repo, kind  its name is REPO:KIND
    origin      the hub's address
    commit      of the repository
    pulled      date and time, ISO 8601
    files       first the one that stands for the model
    folder      that of the model
    revision    the branch, tag or commit that was asked for last
    """

    repo: str
    kind: str
    origin: str
    commit: str
    pulled: str
    files: tuple[StoredFile, ...]
    folder: Path
    revision: str = MAIN

    @property
    def name(self) -> str:
        return f"{self.repo}:{self.kind}"

    @property
    def path(self) -> Path:
        """What a command reads: a GGUF file (of several parts the first), or the folder of a checkpoint."""
        return self.content if self.kind == CHECKPOINT else self.content / self.files[0].name

    @property
    def content(self) -> Path:
        """Where the files lie: a checkpoint has a folder of the model's name, which a conversion takes over."""
        return self.folder / self.repo.partition("/")[2] if self.kind == CHECKPOINT else self.folder

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)


def models_folder() -> Path:
    """Return the folder of all models, which need not be there."""
    named = os.environ.get("HALFBYTE_MODELS_DIR")
    if named:
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_data_dir("halfbyte", appauthor=False)) / "models"


def model_folder(name: ModelName) -> Path:
    """Return the folder that a complete model of this name has."""
    return models_folder().joinpath(*name.repo.split("/"), name.kind or DEFAULT_KIND)


def partial_folder(name: ModelName) -> Path:
    """Return the folder for what is there of a download that is not complete."""
    return models_folder() / _PARTIAL / "--".join([*name.repo.split("/"), name.kind or DEFAULT_KIND])


def now() -> str:
    """Return the date and time as a manifest has it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def staged(name: ModelName) -> Iterator[Path]:
    """Give an empty folder on the store's disk in which a model is put together; what is left of it goes away."""
    place = partial_folder(name)
    place.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=place.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(model: PulledModel) -> PulledModel:
    """Give the folder of a complete model its name, in place of what had it, and return the model there."""
    target = model_folder(ModelName(model.repo, model.kind))
    _write_manifest(model, MANIFEST)
    target.parent.mkdir(parents=True, exist_ok=True)
    _put_aside(target)
    model.folder.chmod(0o755)
    model.folder.replace(target)
    return replace(model, folder=target)


def note_revision(model: PulledModel, revision: str | None) -> PulledModel:
    """Write down that a model's files are those of `revision` too (None: main), and return it so."""
    if model.revision == (revision or MAIN):
        return model
    model = replace(model, revision=revision or MAIN)
    _write_manifest(model, f"{MANIFEST}.new").replace(model.folder / MANIFEST)
    return model


def _write_manifest(model: PulledModel, name: str) -> Path:
    values = {key: value for key, value in asdict(model).items() if key != "folder"}
    path = model.folder / name
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
    return path


def _put_aside(folder: Path) -> None:
    """Remove a model's folder, its name first."""
    aside = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.replace(aside)
        shutil.rmtree(aside)


def pulled_models() -> list[PulledModel]:
    """Return all models, by name; a folder whose manifest cannot be read is told as a HalfbyteWarning."""
    found = []
    for manifest in sorted(models_folder().glob(f"[!.]*/*/[!.]*/{MANIFEST}")):
        try:
            found.append(_load(manifest))
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{manifest}: cannot be read ({error}); pull the model again", HalfbyteWarning, stacklevel=2)
    return sorted(found, key=lambda model: model.name.lower())


def _load(manifest: Path) -> PulledModel:
    values: dict[str, Any] = json.loads(manifest.read_text("utf-8"))
    files = tuple(StoredFile(str(f["name"]), int(f["nbytes"]), str(f["digest"])) for f in values.pop("files"))
    if not files:
        raise ValueError("it names no files")
    return PulledModel(**values, files=files, folder=manifest.parent)


def find(word: str, default: str = DEFAULT_KIND) -> PulledModel | None:
    """Return the model called `word`, or None.

    default  the kind meant by OWNER/REPO alone; when it is not there, the only GGUF file that is, or the checkpoint
    Raises UsageError, with the names, when OWNER/REPO alone could be several.
    """
    name = parse_name(word)
    if name is None:
        return None
    held = [model for model in pulled_models() if model.repo.lower() == name.repo.lower()]
    wanted = (name.kind or default).lower().removesuffix(".gguf")
    exact = [model for model in held if model.kind.lower() == wanted]
    if exact or name.kind is not None or not held:
        return exact[0] if exact else None
    several = [model for model in held if model.kind != CHECKPOINT] or held
    if len(several) > 1:
        raise UsageError(f"{word}: which one? there are {', '.join(model.name for model in several)}")
    return several[0]


def find_path(word: str, default: str = DEFAULT_KIND) -> str:
    """Return `word` where it is the path of something, else the path of the pulled model of that name.

    What is neither stays as it is: whoever opens it says that there is no such file.
    """
    if Path(word).exists():
        return word
    model = find(word, default)
    return str(model.path) if model else word


def remove(model: PulledModel) -> None:
    """Delete a model, and the folders that are empty then."""
    _put_aside(model.folder)
    for folder in (model.folder.parent, model.folder.parent.parent):
        if any(folder.iterdir()):
            break
        folder.rmdir()
