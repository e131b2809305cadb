"""Architectures.  Enters: a GGUF file; leaves: its `Model`, from the module that `general.architecture` names.

One file an architecture, found by name.  Such a module has `read(file) -> Model`.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil

from ...errors import UnsupportedError
from ...quant.gguf_reader import GgufFile
from .base import Model


def read_model(file: GgufFile) -> Model:
    """Return the model in `file`; raises UnsupportedError for an architecture without a module here."""
    name = file.get_str("general.architecture")
    supported = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")
    if name not in supported:
        raise UnsupportedError("architecture", name, supported, where=file.path)
    model: Model = importlib.import_module(f"{__name__}.{name}").read(file)
    return model
