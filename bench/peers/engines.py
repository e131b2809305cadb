"""Which engines there are to compare with.  Enters: nothing; leaves: their names, what they need, and what is there.

An engine is a file of this folder and an entry of ENGINES.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass

from .base import Peer

OURS = "halfbyte"


@dataclass(frozen=True)
class Engine:
    """One engine, or one way to run it.

    peer        what tables call it; several ways of the same peer compete (`figures.rows` says how)
    module      the file of this folder, and `adapter` its class
    package     the distribution whose version is told, and `libraries` the modules that must be there
    install     how to get them
    checkpoint  whether it reads the checkpoint instead of the GGUF file
    """

    peer: str
    module: str
    adapter: str
    package: str
    libraries: tuple[str, ...] = ()
    install: str = ""
    checkpoint: bool = False

    @property
    def installed(self) -> bool:
        """Whether all of its libraries can be found; nothing is imported."""
        return all(importlib.util.find_spec(name) is not None for name in self.libraries)

    @property
    def version(self) -> str:
        """The version that is installed, "" where it does not say."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return ""

    def adapter_class(self) -> type[Peer]:
        """Import the engine's library and return the class that loads it."""
        found: type[Peer] = getattr(importlib.import_module(f".{self.module}", __package__), self.adapter)
        return found


_LLAMA = "llama-cpp-python"
ENGINES = {
    OURS: Engine(OURS, "ours", "Halfbyte", "halfbyte"),
    "llama.cpp": Engine("llama.cpp", "llamacpp", "LlamaCpp", _LLAMA, ("llama_cpp",), f"pip install {_LLAMA}"),
    "llama.cpp, no repack": Engine(
        "llama.cpp", "llamacpp", "LlamaCppPlain", _LLAMA, ("llama_cpp",), f"pip install {_LLAMA}"
    ),
    "openvino-genai": Engine(
        "openvino-genai",
        "openvino",
        "OpenVino",
        "openvino-genai",
        ("openvino", "openvino_genai"),
        "pip install openvino-genai",
    ),
    "transformers": Engine(
        "transformers",
        "transformers_bf16",
        "Transformers",
        "transformers",
        ("torch", "transformers"),
        "pip install torch transformers",
        checkpoint=True,
    ),
}
"""All ways to run all engines, by name; halfbyte is the first."""

PEERS = tuple(dict.fromkeys(engine.peer for name, engine in ENGINES.items() if name != OURS))
"""What halfbyte can be compared with."""
