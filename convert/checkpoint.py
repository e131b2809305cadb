"""A checkpoint folder.  Enters: a path; leaves: config.json, every tensor's shape, and rows of any tensor as float32.

Looks for, in this order: model.safetensors, its index with shards, and the same of pytorch_model (.bin, .pt).  The
first that is there is the checkpoint; nothing falls back to the next when it is damaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn, Protocol

import numpy as np

from ..errors import ModelFileError, UsageError, printable
from .jsonfile import Settings
from .safetensors_file import SafetensorsFile, StoredTensor

CONFIG = "config.json"
INDEXES = {
    "model.safetensors.index.json": (".safetensors",),
    "pytorch_model.bin.index.json": (".bin", ".pt"),
}
_SEARCH = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model.pt",
    "model.pt",
)


class TensorFile(Protocol):
    """What a file of tensors offers, whatever its format."""

    tensors: dict[str, StoredTensor]

    @property
    def path(self) -> Path: ...
    def rows(self, name: str, begin: int, end: int) -> np.ndarray: ...
    def release(self, name: str) -> None: ...
    def check_unchanged(self) -> None: ...
    def close(self) -> None: ...


class Checkpoint:
    """An open checkpoint; close it, or use it in a `with`.

    folder    where it lies
    config    config.json
    tensors   name -> type and shape, in the order of the files

    Raises UsageError when the folder or the weights are not there, ModelFileError when a file is damaged or the index
    disagrees with the shards.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            what = "is not a folder" if self.folder.exists() else "does not exist"
            raise UsageError(f"{self.folder}: {what}; name the folder of a Hugging Face checkpoint")
        if not (self.folder / CONFIG).exists():
            raise UsageError(f"{self.folder}: has no {CONFIG}; name the folder of a Hugging Face checkpoint")
        self.config = Settings.load(self.folder / CONFIG)
        self._files: list[TensorFile] = []
        try:
            self._holder = self._open_files()
        except BaseException:
            self.close()
            raise
        self.tensors: Mapping[str, StoredTensor] = {n: f.tensors[n] for n, f in self._holder.items()}
        if not self.tensors:
            raise ModelFileError(self._files[0].path, "holds no tensor")

    def _open_files(self) -> dict[str, TensorFile]:
        """Open every file and return tensor name -> the file that holds it."""
        start = next((self.folder / name for name in _SEARCH if (self.folder / name).exists()), None)
        if start is None:
            raise UsageError(f"{self.folder}: has no weights; one of {', '.join(_SEARCH)} is needed")
        if start.name in INDEXES:
            return self._open_shards(start)
        file = self._open(start)
        return dict.fromkeys(file.tensors, file)

    def _open(self, path: Path) -> TensorFile:
        file: TensorFile
        if path.suffix == ".safetensors":
            file = SafetensorsFile(path)
        else:
            from .torch_file import TorchFile

            file = TorchFile(path)
        self._files.append(file)
        return file

    def _open_shards(self, index: Path) -> dict[str, TensorFile]:
        weight_map = Settings.load(index).section("weight_map")
        for tensor, part in weight_map.values.items():
            if not _is_plain_name(part, INDEXES[index.name]):
                weight_map.fail(printable(tensor), f"is {printable(part)!r}; the plain name of a shard is allowed")
        parts = sorted(set(weight_map.values.values()))
        missing = [part for part in parts if not (self.folder / part).exists()]
        if missing:
            raise ModelFileError(index, f"names shards that are not there: {', '.join(missing)}")
        holder: dict[str, TensorFile] = {}
        for part in parts:
            file = self._open(self.folder / part)
            for name in file.tensors:
                if name in holder:
                    _disagree(index, name, f"is in {holder[name].path.name} and in {part}")
                if weight_map.values.get(name) != part:
                    said = printable(weight_map.values.get(name, "nowhere"))
                    _disagree(index, name, f"is in {part}; the index says {said}")
                holder[name] = file
        for name, part in weight_map.values.items():
            if name not in holder:
                _disagree(index, name, f"is not in {part}, where the index says")
        return holder

    def file_of(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        return self._holder[name].path

    def rows(self, name: str, begin: int, end: int) -> np.ndarray:
        """Return rows [begin, end) of a tensor as float32 [end - begin, n_cols]; a vector is one row.

        Raises UnsupportedError when the stored type is none of F32, F16 and BF16.
        """
        return self._holder[name].rows(name, begin, end)

    def release(self, name: str) -> None:
        """Give back what reading the tensor kept in memory."""
        self._holder[name].release(name)

    def paths(self) -> list[Path]:
        """Return the open files of weights."""
        return [file.path for file in self._files]

    def check_unchanged(self) -> None:
        """Raise ModelFileError when a file of weights was written to since it was opened."""
        for file in self._files:
            file.check_unchanged()

    def close(self) -> None:
        """Close every file."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_plain_name(part: object, suffixes: tuple[str, ...]) -> bool:
    """Return whether `part` names a file in the folder itself: an index comes from elsewhere and must not lead out."""
    return isinstance(part, str) and part.isprintable() and not set(part) & set('/\\:"') and part.endswith(suffixes)


def _disagree(index: Path, name: str, message: str) -> NoReturn:
    raise ModelFileError(index, message, place=f"tensor {printable(name)}")
