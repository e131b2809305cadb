"""Checkpoints to GGUF.  Enters: a Hugging Face folder; leaves: a GGUF file and a report of what was lost.

report = convert_checkpoint("SmolLM-135M", "smollm.gguf", type="q4_0")
"""

from .conversion import convert_checkpoint
from .report import ConversionReport, TensorReport

__all__ = ["ConversionReport", "TensorReport", "convert_checkpoint"]
