"""How a checkpoint wants a text's rows to become one embedding.  Enters: its folder; leaves: llama.cpp's number of it.

It is the checkpoint's own word, in the files that sentence-transformers writes beside it: modules.json lists what the
rows go through, and the folder of the Pooling module has a config.json.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import ModelFileError, UnsupportedError, printable
from .jsonfile import Settings, parse_json
from .source import read_whole

MAX_MODULES_BYTES = 1 << 20

# llama.cpp's numbers of pooling_type, by sentence-transformers' names.
POOLINGS = {"mean": 1, "cls": 2, "lasttoken": 3}
# What older files set to true in the place of naming the pooling.
_FLAGS = {
    "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max", "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}  # fmt: skip
_HARMLESS_MODULES = ("Transformer", "Pooling", "Normalize")


def read_pooling(folder: Path) -> int | None:
    """Return llama.cpp's number of the pooling that the checkpoint asks for; None when it says nothing of it.

    Raises UnsupportedError for another one than those of POOLINGS, and for a module that changes the embedding.
    """
    place = _pooling_folder(folder)
    config = Settings.load_if_there(folder / place / "config.json")
    if not config.values:
        return None
    flagged = [name for key, name in _FLAGS.items() if config.boolean(key, default=False)]
    chosen = config.text("pooling_mode", default=" and ".join(flagged) or "none of them")
    if chosen not in POOLINGS:
        raise UnsupportedError("pooling", chosen, list(POOLINGS), config.path)
    return POOLINGS[chosen]


def _pooling_folder(folder: Path) -> str:
    """Return the name of the Pooling module's folder, sentence-transformers' own where modules.json is missing."""
    path = folder / "modules.json"
    if not path.exists():
        return "1_Pooling"
    modules = parse_json(path, read_whole(path, MAX_MODULES_BYTES))
    if type(modules) is not list or not all(isinstance(module, dict) for module in modules):
        raise ModelFileError(path, "holds something else than a list of objects, one for each module")
    place = "1_Pooling"
    for module in (Settings(path, values) for values in modules):
        kind = module.text("type").rpartition(".")[2]
        if kind not in _HARMLESS_MODULES:
            raise UnsupportedError("sentence-transformers module", kind, _HARMLESS_MODULES, path)
        if kind == "Pooling":
            place = module.text("path")
            if not re.fullmatch(r"\w[\w.-]*", place):
                module.fail("path", f"is {printable(place, 60)!r}; the name of a folder is allowed")
    return place
