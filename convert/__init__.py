"""Checkpoints to GGUF.  Enters: a Hugging Face folder; leaves: a GGUF file and a report of what was lost.

report = convert_checkpoint("SmolLM-135M", "smollm.gguf", type="q4_0")
"""

from ..quant.report import ConversionReport, TensorReport
from .conversion import convert_checkpoint, plan_conversion

__all__ = ["ConversionReport", "TensorReport", "convert_checkpoint", "plan_conversion"]
