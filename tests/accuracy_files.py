"""What accuracy is measured on.  Enters: a folder; leaves: tiny models in several types, and a text of their words."""

from __future__ import annotations

from pathlib import Path

import tiny

from halfbyte import convert_checkpoint

TEXT = "\n".join(tiny.text()[:60])
N_CTX = 48  # 23 scored positions
CHUNKS = 6


def build(folder: Path) -> dict[str, Path]:
    """Return checkpoints, "spm" with BOS and "gpt-2" without, and GGUF files, "spm q8_0"."""
    found = {"spm": tiny.build(folder / "spm"), "gpt-2": tiny.build(folder / "gpt-2", tokenizer="gpt-2")}
    for source, type in (("spm", "f32"), ("spm", "q8_0"), ("spm", "q4_0"), ("gpt-2", "f32")):
        found[f"{source} {type}"] = folder / f"{source}-{type}.gguf"
        convert_checkpoint(found[source], found[f"{source} {type}"], type, pure=True)
    return found
