"""Qwen's windows: in some layers, by layer_types or max_window_layers; which keys and files are refused.

What they compute is in the table of architectures (qwen2-window, qwen3-window).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import architectures
import numpy as np
import pytest
from conversions import refused
from gguf_models import Entries, rewritten

from halfbyte import convert_checkpoint
from halfbyte.errors import HalfbyteError, ModelFileError, UnsupportedError
from halfbyte.quant.gguf_reader import open_gguf
from halfbyte.runtime.models import read_model


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (("array[bool]", np.array([True, False, True])), "is of 3 layers; there are 4"),
        (("bool", True), "an array of bools"),
        (None, "qwen2.attention.sliding_window"),
    ],
)
def test_windows_of_layers_that_do_not_fit(tmp_path: Path, entry: tuple[str, Any] | None, words: str) -> None:
    folder = architectures.build(tmp_path / "checkpoint", architectures.BY_NAME["qwen2-window"])
    convert_checkpoint(folder, tmp_path / "sound.gguf", "f32")

    def change(entries: Entries) -> None:
        if entry is None:
            del entries["qwen2.attention.sliding_window"]
        else:
            entries["qwen2.attention.sliding_window_pattern"] = entry

    changed = rewritten(tmp_path / "sound.gguf", tmp_path / "m.gguf", metadata=change)
    with open_gguf(changed) as file, pytest.raises(ModelFileError) as found:
        read_model(file)
    assert words in str(found.value)


@pytest.mark.parametrize(
    ("keys", "error", "words"),
    [
        ({"layer_types": ["full_attention"]}, ModelFileError, "names 1 layers; num_hidden_layers is 4"),
        ({"layer_types": ["linear_attention"] * 4}, UnsupportedError, "config.json layer_types"),
        ({"sliding_window": 0}, ModelFileError, "sliding_window"),
    ],
)
def test_windows_of_a_checkpoint_that_do_not_fit(
    tmp_path: Path, keys: dict[str, Any], error: type[HalfbyteError], words: str
) -> None:
    refused(architectures.build(tmp_path / "m", architectures.BY_NAME["qwen2-window"], **keys), error, words)


def test_windows_as_long_as_the_context_are_none(tmp_path: Path) -> None:
    row = architectures.BY_NAME["qwen2-window"]
    convert_checkpoint(architectures.build(tmp_path / "c", row, sliding_window=256), tmp_path / "m.gguf", "f32")
    with open_gguf(tmp_path / "m.gguf") as file:
        assert not [key for key in file.metadata if "sliding" in key]
