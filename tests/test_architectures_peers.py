"""llama.cpp loads our file of every architecture and computes the same, in F32 and in Q8_0; its own file runs here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import architectures
import numpy as np
import pytest
from architectures import ROWS, Row
from gguf_models import logits as engine_logits
from gguf_models import opened

from halfbyte import convert_checkpoint

pytestmark = pytest.mark.peers

# Root mean square of the difference over the logits' deviation: llama.cpp rounds keys and values to F16, and both
# round activations to 8 bits for Q8_0.
DIFFERENCE = {"f32": 3e-3, "q8_0": 4e-2}
THEIRS = "q8_0 of its quantizer"


def peer(file: Path, context: int) -> Any:
    """`file` in llama.cpp, for `context` positions, on one thread, without the layouts that some builds die of."""
    pytest.importorskip("llama_cpp", reason="the extra peers is not installed")
    from halfbyte.bench.peers.llamacpp import LlamaCpp

    return LlamaCpp(file, context=context, repack=False)


def quantized_by_it(source: Path) -> Path:
    """Return a copy of a file in Q8_0 as llama.cpp's quantizer writes it."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="the extra peers is not installed")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = 7, 1
    target = source.with_name("theirs.gguf")
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) == 0
    return target


@pytest.mark.parametrize("type", [*DIFFERENCE, THEIRS])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_llama_cpp_computes_the_same(tmp_path: Path, row: Row, type: str) -> None:
    """Along the prompt and 20 tokens that llama.cpp picks after it."""
    if row.no_peer:
        pytest.skip(f"llama.cpp {row.no_peer}")
    file = tmp_path / "m.gguf"
    convert_checkpoint(architectures.build(tmp_path / "checkpoint", row), file, "f32" if type == THEIRS else type)
    if type == THEIRS:
        file, type = quantized_by_it(file), "q8_0"
    other, theirs, tokens = peer(file, row.context or 512), [], list(row.golden["ids"])
    for position in range(2 * row.length):
        other.feed([tokens[position]])
        theirs.append(other.logits())
        if position + 1 >= len(tokens):
            tokens.append(int(theirs[-1].argmax()))
    with opened(file, context=row.context) as engine:
        ours = engine_logits(engine, tokens[:-1])
    there = np.array(theirs)
    difference = float(np.sqrt(((ours - there) ** 2).mean()) / there.std())
    best = np.sort(there, axis=1)
    decided = best[:, -1] - best[:, -2] > 2 * np.abs(ours - there).max(axis=1)
    equal = ours.argmax(axis=1) == there.argmax(axis=1)
    print(f"{row.name} {type}: difference {difference:.1e}, {equal.sum()} of {len(equal)} tokens equal")
    assert difference < DIFFERENCE[type]
    assert equal[decided].all()
    assert decided.mean() > 0.5


@pytest.mark.parametrize("row", [row for row in ROWS if row.no_peer], ids=lambda row: row.name)
def test_its_file_of_what_it_does_not_compute(tmp_path: Path, row: Row) -> None:
    """Gives here what our own Q8_0 gives."""
    if row.no_file:
        pytest.skip(f"llama.cpp's quantizer {row.no_file}")
    checkpoint, found = architectures.build(tmp_path / "checkpoint", row), []
    for type in ("f32", "q8_0"):
        convert_checkpoint(checkpoint, tmp_path / f"{type}.gguf", type)
    for file in (quantized_by_it(tmp_path / "f32.gguf"), tmp_path / "q8_0.gguf"):
        with opened(file, context=row.context) as engine:
            found.append(engine_logits(engine, row.golden["ids"]))
    np.testing.assert_array_equal(*found)
