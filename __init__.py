"""Quantized language models on the CPU: checkpoints to GGUF, GGUF to text, kernels compiled from Python.

    from halfbyte import LLM, SamplingParams, convert_checkpoint, quantize_file

The names are looked up when they are first used: `import halfbyte` alone imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .convert import convert_checkpoint
    from .quant.quantize import quantize_file
    from .runtime.llm import LLM
    from .runtime.sampling.params import SamplingParams

__all__ = ["LLM", "SamplingParams", "convert_checkpoint", "quantize_file"]

_HOME = {
    "LLM": ".runtime.llm",
    "SamplingParams": ".runtime.sampling.params",
    "convert_checkpoint": ".convert",
    "quantize_file": ".quant.quantize",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_HOME[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
