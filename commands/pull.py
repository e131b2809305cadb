"""Bring a model from the Hugging Face hub: OWNER/REPO[:TYPE].

TYPE is one of a repository's GGUF files, by its quantization (Q4_K_M, which is meant where nothing is said) or by its
name.  A checkpoint in safetensors is downloaded and converted to TYPE; it stays, as OWNER/REPO:SAFETENSORS.
A download that ended early goes on where it was.  Afterwards OWNER/REPO:TYPE stands for the model's path in all
commands; of a repository's revisions it is the one that was pulled last.  HF_TOKEN opens gated and private models,
HF_ENDPOINT names another hub, HALFBYTE_MODELS_DIR another folder.
"""

from __future__ import annotations

import argparse
import shutil
import sys

from ..bench.report import json_text, size_text
from ..errors import UsageError
from ..hub.names import CHECKPOINT, ModelName, parse_name
from ..hub.store import PulledModel, StoredFile, find, now, publish, staged
from . import _options
from ._progress import Progress
from .models import record


def main(argv: list[str]) -> int:
    """Run `halfbyte pull`; returns 130 when interrupted."""
    parser = _options.command_parser("pull", __doc__, "OWNER/REPO[:TYPE]")
    parser.add_argument("name", metavar="OWNER/REPO[:TYPE]", help=argparse.SUPPRESS)
    parser.add_argument("--type", metavar="TYPE", help="the same as TYPE after the colon")
    parser.add_argument("--revision", metavar="REV", help="a branch, tag or commit of the repository (default: main)")
    parser.add_argument("--offline", action="store_true", help="ask nobody: tell where the model is, or that it is not")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_intermixed_args(argv)
    name = _named(arguments.name, arguments.type)
    if arguments.revision == "":
        raise UsageError("--revision is empty; a branch, tag or commit is wanted")

    from ..hub.pull import pull

    try:
        with Progress() as progress:
            pulled = pull(str(name), arguments.offline, progress, arguments.revision)
            model = pulled.model
            if model.kind == CHECKPOINT and (name.kind or "").upper() != CHECKPOINT:
                model = _converted(model, name.kind, progress)
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return 130
    if arguments.json:
        print(json_text(record(model)))
        return 0
    print(f"{model.name}: {size_text(model.nbytes)}, {model.path}")
    if pulled.is_new and pulled.model != model:
        print(f"{pulled.model.name}: {size_text(pulled.model.nbytes)} stay for other types", file=sys.stderr)
    return 0


def _named(word: str, type: str | None) -> ModelName:
    """Return the name with the type of --type in it; raises UsageError when two are given that differ."""
    name = parse_name(word)
    if name is None:
        raise UsageError(f"{word!r} is no name of a model; OWNER/REPO or OWNER/REPO:TYPE is wanted")
    if type is None:
        return name
    if name.kind is not None and name.kind.lower() != type.lower():
        raise UsageError(f"--type is {type!r}, but {word} names another; one of the two is enough")
    return ModelName(name.repo, type)


def _converted(checkpoint: PulledModel, type: str | None, progress: Progress) -> PulledModel:
    """Return `checkpoint` as a GGUF file of `type`, converted unless that is there of the same commit."""
    from ..convert import convert_checkpoint, plan_conversion
    from ..convert.conversion import DEFAULT_TYPE
    from ..quant.recipe import recipe_by_name

    recipe = recipe_by_name((type or DEFAULT_TYPE).lower()).name
    name = ModelName(checkpoint.repo, recipe.upper())
    model = find(str(name))
    if model is not None and model.commit == checkpoint.commit:
        return model
    needed, free = sum(t.nbytes for t in plan_conversion(checkpoint.path, recipe)), shutil.disk_usage(checkpoint.path)
    if needed > free.free:
        raise UsageError(f"{name}: takes {size_text(needed)}; {size_text(free.free)} are free in {checkpoint.folder}")
    what = f"converting {name}"
    with staged(name) as folder:
        out = folder / f"{checkpoint.path.name}-{name.kind}.gguf"
        convert_checkpoint(checkpoint.path, out, recipe, progress=lambda done, total, name: progress(what, done, total))
        file = StoredFile(out.name, out.stat().st_size, "")
        made = PulledModel(
            checkpoint.repo, name.kind or recipe, checkpoint.origin, checkpoint.commit, now(), (file,), folder,
            checkpoint.revision,
        )  # fmt: skip
        return publish(made)
