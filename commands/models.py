"""List the models that were pulled; show NAME tells more of one, rm NAME removes it: [show NAME | rm NAME].

NAME is OWNER/REPO:TYPE as the list has it; OWNER/REPO is enough where there is only one.
"""

from __future__ import annotations

import argparse
from typing import Any

from ..bench.report import columns, json_text, size_text
from ..errors import UsageError, printable
from ..hub.store import PulledModel, find, models_folder, pulled_models, remove
from . import _options


def main(argv: list[str]) -> int:
    """Run `halfbyte models`."""
    parser = _options.command_parser("models", __doc__, "[show NAME | rm NAME]")
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_intermixed_args(argv)
    words = arguments.words
    if not words:
        _list(arguments.json)
        return 0
    if words[0] not in ("show", "rm") or len(words) != 2:
        raise UsageError(f"{' '.join(words)!r} is not understood; allowed: nothing, show NAME, rm NAME")
    model = find(words[1])
    if model is None:
        held = ", ".join(model.name for model in pulled_models()) or "none"
        raise UsageError(f"{words[1]}: no model of this name was pulled; there are: {held}")
    if words[0] == "show":
        _show(model, arguments.json)
    else:
        remove(model)
        print(json_text(record(model)) if arguments.json else f"{model.name}: removed, {size_text(model.nbytes)}")
    return 0


def record(model: PulledModel) -> dict[str, Any]:
    """Return a model as values that JSON can hold."""
    return {
        "name": model.name,
        "type": model.kind,
        "bytes": model.nbytes,
        "path": str(model.path),
        "origin": f"{model.origin}/{model.repo}",
        "revision": model.revision,
        "commit": model.commit,
        "pulled": model.pulled,
        "files": [{"name": file.name, "bytes": file.nbytes, "digest": file.digest} for file in model.files],
    }


def _list(as_json: bool) -> None:
    models = pulled_models()
    if as_json:
        print(json_text([record(model) for model in models]))
    elif not models:
        print(f"no models in {models_folder()}; halfbyte pull OWNER/REPO brings one")
    else:
        rows = [("name", "type", "size", "where")]
        rows += [(printable(m.name), m.kind, size_text(m.nbytes), printable(m.path, 2000)) for m in models]
        print(columns(rows, [False, False, True, False]))


def _show(model: PulledModel, as_json: bool) -> None:
    if as_json:
        print(json_text(record(model)))
        return
    facts = [
        ("name", model.name),
        ("path", str(model.path)),
        ("size", size_text(model.nbytes)),
        ("from", f"{model.origin}/{model.repo}"),
        ("revision", model.revision),
        ("commit", model.commit),
        ("pulled", model.pulled),
    ]
    print(columns(facts, [False, False], indent=""))
    rows = [("file", "size", "digest"), *((file.name, size_text(file.nbytes), file.digest) for file in model.files)]
    print(columns(rows, [False, True, False]))
