"""Names of models, and what a repository offers under them.  Enters: a word, a list of files; leaves: the files meant.

A name is OWNER/REPO[:KIND].  KIND is a quantization as it stands in the names of GGUF files (Q4_K_M, IQ2_XXS,
UD-Q4_K_XL, BF16), one file's name, or SAFETENSORS for a checkpoint.  Without it, it is Q4_K_M, as in llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import UsageError, printable

DEFAULT_KIND = "Q4_K_M"
CHECKPOINT = "SAFETENSORS"

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?:(?:https?://)?(?:hf\.co|huggingface\.co)/)?({_PART}/{_PART})(?::([A-Za-z0-9._-]+))?")
_QUANTIZATION = re.compile(
    r"(?<![A-Za-z0-9])((?:UD-)?(?:I?Q[1-8](?:_[0-9KSMLXN]{1,3}){1,3}|TQ[12]_0|BF16|F16|FP16|F32|FP32|NVFP4|MXFP4(?:_MOE)?))"
    r"(?![A-Za-z0-9_])",
    re.IGNORECASE,
)
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})$")
_NO_MODEL = ("mmproj", "imatrix")  # files of images' projectors and of statistics begin with or hold these words
_TOKENIZER = ("tokenizer", "special_tokens_map", "added_tokens", "vocab", "merges", "spiece", "chat_template")
_CONFIGS = ("config.json", "generation_config.json", "preprocessor_config.json", "modules.json")
_POOLING = re.compile(r"\d+_Pooling/config\.json")  # of sentence-transformers, which modules.json names
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True)
class ModelName:
    """A parsed name: `repo` is OWNER/REPO, `kind` what stands after the colon."""

    repo: str
    kind: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}:{self.kind}" if self.kind else self.repo


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository.

    name      its path in the repository
    nbytes    its size
    digest    SHA-256 of a large file, git's SHA-1 of a small one, in hexadecimal
    """

    name: str
    nbytes: int
    digest: str

    @property
    def base(self) -> str:
        """The name that it gets on this machine: without folders, but for the one that says how a text is embedded."""
        return self.name if _POOLING.fullmatch(self.name) else self.name.rpartition("/")[2]


@dataclass(frozen=True)
class Choice:
    """What is to be downloaded: the kind that it is listed as, and its files, a model's first part first."""

    kind: str
    files: tuple[RemoteFile, ...]


def parse_name(word: str) -> ModelName | None:
    """Return the name that `word` is, or None when it is none; hf.co/ and https://huggingface.co/ may stand before."""
    match = _NAME.fullmatch(word)
    return ModelName(match[1], match[2]) if match and ".." not in match[1] else None


def quantization(file: str) -> str | None:
    """Return the quantization in a GGUF file's name, or in that of its folder; None where there is none."""
    folder, _, base = file.rpartition("/")
    found = _QUANTIZATION.findall(_SPLIT.sub("", base.removesuffix(".gguf"))) or _QUANTIZATION.findall(folder)
    return found[-1].upper() if found else None


def choose(name: ModelName, files: Iterable[RemoteFile]) -> Choice:
    """Return what `name` means among the files of its repository.

    A quantization that no GGUF file has, or none at all, can also mean the checkpoint, which is to be converted then.
    Raises UsageError, with what there is, when nothing or more than one thing is meant, or parts are missing.
    """
    held = list(files)
    groups = _gguf_groups(held)
    by_kind: dict[str, list[str]] = {}
    for stem in groups:
        by_kind.setdefault(quantization(stem) or stem, []).append(stem)
    wanted = name.kind.upper() if name.kind else None
    checkpoint = _checkpoint_files(held)
    if wanted != CHECKPOINT:
        of_file = [stem for stem in groups if f"{stem.rpartition('/')[2]}.gguf".upper() == wanted]
        stems = of_file or by_kind.get(wanted or DEFAULT_KIND, [])
        if not stems and wanted is None and len(groups) == 1 and not checkpoint:
            stems = list(groups)
        if len(stems) == 1:
            stem = stems[0]
            kind = stem.rpartition("/")[2] if of_file else quantization(stem)
            return Choice(kind or stem.rpartition("/")[2], _complete(name, stem, groups[stem]))
        if stems:
            raise UsageError(f"{name}: fits {_listed(f'{stem}.gguf' for stem in stems)}; name the file after the colon")
    if checkpoint and (wanted is None or wanted == CHECKPOINT or _is_recipe(wanted)):
        return Choice(CHECKPOINT, checkpoint)
    there = [*sorted(by_kind), *([CHECKPOINT] if checkpoint else [])]
    if not there:
        raise UsageError(f"{name}: has neither GGUF files nor a checkpoint in safetensors")
    missing = f"has no {printable(wanted or DEFAULT_KIND)}"
    raise UsageError(f"{name}: {missing}; there are: {_listed(there)} (for example {name.repo}:{there[0]})")


def _is_recipe(kind: str) -> bool:
    """Return whether a checkpoint can be converted to `kind`."""
    from ..quant.recipe import ALIASES, RECIPES  # names are parsed at each start; this is for `pull`

    return kind.lower() in {*RECIPES, *ALIASES}


def _gguf_groups(files: list[RemoteFile]) -> dict[str, list[RemoteFile]]:
    """Return path without ".gguf" and part number -> the parts."""
    groups: dict[str, list[RemoteFile]] = {}
    for file in files:
        if file.name.lower().endswith(".gguf") and not any(word in file.base.lower() for word in _NO_MODEL):
            groups.setdefault(_SPLIT.sub("", file.name[: -len(".gguf")]), []).append(file)
    return groups


def _complete(name: ModelName, stem: str, parts: list[RemoteFile]) -> tuple[RemoteFile, ...]:
    """Return the parts in order; UsageError when they are not all of them."""
    parts = sorted(parts, key=lambda part: part.name)
    numbers = [match.groups() for part in parts if (match := _SPLIT.search(part.name[: -len(".gguf")]))]
    if len(parts) == 1 and not numbers:
        return tuple(parts)
    count = numbers[0][1] if numbers else "?"
    if [part for part, _ in numbers] != [f"{i:05}" for i in range(1, len(parts) + 1)] or count != f"{len(parts):05}":
        raise UsageError(f"{name}: of {stem}.gguf the repository has {_listed(part.base for part in parts)}, not all")
    return tuple(parts)


def _checkpoint_files(files: list[RemoteFile]) -> tuple[RemoteFile, ...]:
    """Return the files of a checkpoint that a conversion reads; none when there is no config.json or no safetensors."""
    here = {file.name: file for file in files if "/" not in file.name or _POOLING.fullmatch(file.name)}
    weights = ["model.safetensors"] if "model.safetensors" in here else []
    if not weights and _INDEX in here:
        weights = [_INDEX, *sorted(name for name in here if _SHARD.fullmatch(name))]
    if not weights or "config.json" not in here:
        return ()
    others = [name for name in here if name in _CONFIGS or name.startswith(_TOKENIZER) or "/" in name]
    return tuple(here[name] for name in [*others, *weights])


def _listed(words: Iterable[str], limit: int = 40) -> str:
    held = [printable(word) for word in words]
    return ", ".join(held[:limit]) + (f" and {len(held) - limit} more" if len(held) > limit else "")
