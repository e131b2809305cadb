"""The whole comparison of one model.  Enters: files and what to measure; leaves: a `Comparison`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import UnsupportedError, UsageError
from ...quant.gguf_reader import open_gguf
from ...quant.recipe import RECIPES
from ...runtime.kernels.targets import host_target
from ...runtime.machine import default_threads, this_machine
from ...runtime.models import read_model
from ..report import count_text, size_text
from .base import Files
from .engines import ENGINES, OURS, PEERS
from .figures import Failure, MachineLimits, Row, failures, machine_limits, read_sizes, rows
from .turns import Case, Progress, measure


@dataclass(frozen=True)
class Comparison:
    """What was found for one model.

    model     facts about the file, by name
    machine   facts about the machine, by name
    versions  of each engine that was measured
    missing   peers that were not measured, and what they need
    """

    model: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    missing: dict[str, str]
    limits: Sequence[MachineLimits]
    rows: Sequence[Row]
    failures: Sequence[Failure]

    @property
    def title(self) -> str:
        """The model in one line: file, type, parameters, size."""
        model = self.model
        return f"{model['file']}: {count_text(model['parameters'])} {model['type']}, {size_text(model['bytes'])}"

    @property
    def peers(self) -> list[str]:
        """The peers that were measured, without halfbyte."""
        return [peer for peer in self.versions if peer != OURS]


def compare(
    files: Files,
    peers: Sequence[str],
    wanted: Sequence[Case],
    threads: Sequence[int],
    turns: int,
    progress: Progress,
) -> Comparison:
    """Measure halfbyte and `peers` (of PEERS), those that are there, on one model.

    threads   numbers of threads, each measured by itself; 0: one for each usable core
    turns     how many times each engine has its turn
    progress  hears of each turn

    Raises UsageError or ModelFileError for a model that cannot be used, and when the checkpoint is another model.
    """
    sizes, model = read_sizes(files.model), _model_facts(files)
    missing = {peer: needs for peer in peers if (needs := _needs(peer, files))}
    engines = [n for n, e in ENGINES.items() if n == OURS or (e.peer in peers and e.peer not in missing)]
    numbers = list(dict.fromkeys(n or default_threads() for n in threads))
    found = list(measure(files, engines, wanted, numbers, turns, progress))
    return Comparison(
        model=model,
        machine=asdict(this_machine()) | {"instruction_set": host_target().name},
        versions={ENGINES[name].peer: ENGINES[name].version for name in engines},
        missing=missing,
        limits=machine_limits(found),
        rows=rows(found, sizes),
        failures=failures(found),
    )


def known_peers(names: Sequence[str]) -> list[str]:
    """Return `names`, all of PEERS for none; UnsupportedError, listing PEERS, for a name that is not among them."""
    for name in names:
        if name not in PEERS:
            raise UnsupportedError("peer", name, PEERS)
    return list(dict.fromkeys(names)) or list(PEERS)


def _needs(peer: str, files: Files) -> str:
    """Return what must be done before `peer` can be measured, "" for nothing."""
    engine = next(engine for engine in ENGINES.values() if engine.peer == peer)
    if not engine.installed:
        return f"not installed ({engine.install})"
    if engine.checkpoint and files.checkpoint is None:
        return "reads a checkpoint (--checkpoint FOLDER, of the same model)"
    return ""


def _model_facts(files: Files) -> dict[str, Any]:
    with open_gguf(files.model) as file:
        model = read_model(file)
        types = {recipe.file_type: recipe.name.upper() for recipe in RECIPES.values()}
        if files.checkpoint is not None:
            _check_same(files, {
                "hidden_size": model.n_embd, "num_hidden_layers": model.n_layers, "vocab_size": model.n_vocab,
            })  # fmt: skip
        return {
            "file": files.model.name,
            "path": str(files.model),
            "type": types.get(file.get_int("general.file_type", -1), "mixed types"),
            "parameters": sum(math.prod(view.shape) for view in file.tensors.values()),
            "bytes": file.file_size,
        }


def _check_same(files: Files, sizes: dict[str, int]) -> None:
    """Raise UsageError when the checkpoint is not of a model of these sizes."""
    assert files.checkpoint is not None
    path = files.checkpoint / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    found = {key: config.get(key) for key in sizes} if isinstance(config, dict) else None
    if found != sizes:
        raise UsageError(f"{path}: is not the model of {files.model}: {found} here, {sizes} there")
