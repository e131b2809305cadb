"""Qwen 1.5, 2 and 2.5: Llama's forward pass with biases at queries, keys and values, and rotary pairs half a head
apart (Yang et al. 2024).

Enters: `qwen2.*` metadata and tensors; leaves: the forward pass as calls to the builder.
"""

from __future__ import annotations

from ...quant.gguf_reader import GgufFile
from .llama import Llama, read_fields, read_layer_windows

ARCH = "qwen2"


def read(file: GgufFile) -> Llama:
    """Return the model with every hyper-parameter checked; raises ModelFileError naming the key."""
    fields = read_fields(file, ARCH, halves=True)
    return Llama(**fields, **read_layer_windows(file, ARCH, fields["n_layers"]))
