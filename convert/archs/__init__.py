"""Architectures, one file each, found by name.  Enters: an open checkpoint; leaves: its `Plan`.

The file of `LlamaForCausalLM` is llama.py; it has ARCHITECTURE, that name, and `plan(checkpoint) -> Plan`.  Adding an
architecture is adding a file.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re

from ...errors import UnsupportedError
from ..checkpoint import Checkpoint
from ..plan import Plan

_SUFFIX = "ForCausalLM"


def plan_checkpoint(checkpoint: Checkpoint) -> Plan:
    """Return the plan that the architecture named in config.json makes of the checkpoint.

    Raises UnsupportedError, which lists the architectures that there are, and what the architecture's `plan` raises.
    """
    config = checkpoint.config
    names = config.items("architectures")
    if len(names) != 1 or not isinstance(names[0], str):
        config.fail("architectures", f"names {len(names)} architectures; a list with one name is allowed")
    module = _module_of(names[0])
    if module is None:
        raise UnsupportedError("architecture", names[0], supported_architectures(), config.path)
    plan: Plan = importlib.import_module(f".{module}", __name__).plan(checkpoint)
    return plan


def supported_architectures() -> list[str]:
    """Return the names that config.json may have under "architectures"."""
    found = (importlib.import_module(f".{info.name}", __name__) for info in pkgutil.iter_modules(__path__))
    return sorted(module.ARCHITECTURE for module in found)


def _module_of(name: str) -> str | None:
    """Return the module's name, or None when there is none (a broken module is not the same: its import raises)."""
    if not re.fullmatch(rf"[A-Z][A-Za-z0-9]*{_SUFFIX}", name):
        return None
    module = name.removesuffix(_SUFFIX).lower()
    if importlib.util.find_spec(f"{__name__}.{module}") is None:
        return None
    return module if name == importlib.import_module(f".{module}", __name__).ARCHITECTURE else None
