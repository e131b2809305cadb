"""Mixed types of the sample against llama.cpp: errors of its quantizer, tokens and logits of its engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import recipe_tables
from gguf_models import logits, opened
from test_peers import N, as_ids, greedy, peer

from halfbyte import convert_checkpoint, quantize_file
from halfbyte.convert.sample_model import SAMPLE, sample_gguf
from halfbyte.quant.gguf_reader import open_gguf
from halfbyte.quant.recipe import RECIPES

pytestmark = pytest.mark.peers

TYPES = ["q4_k_m", "q5_k_m", "q3_k_m", "q6_k", "q2_k", "iq4_xs"]
# The first is clear of ties in all of TYPES; on another CPU llama.cpp adds in another order, and the others are tried.
PROMPTS = ["Once upon a time there was a robot", "In the morning,", "There was a girl", "A little bird", "Ben was"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_checkpoint(SAMPLE, tmp_path_factory.mktemp("sample") / "f32.gguf", "f32").path


def errors(file: Path, exact: Path) -> dict[str, float]:
    """Return the root of the summed squares of what rounding lost, by tensor."""
    with open_gguf(file) as rounded, open_gguf(exact) as wanted:
        assert list(rounded.tensors) and set(rounded.tensors) == set(wanted.tensors)
        lost = {name: view.dequantize() - wanted.tensors[name].dequantize() for name, view in rounded.tensors.items()}
    return {name: float(np.linalg.norm(values.astype(np.float64))) for name, values in lost.items()}


# Without q2_k_s, which its quantizer makes with an importance matrix only, and then by another search.
@pytest.mark.parametrize("type", [type for type in RECIPES if type != "q2_k_s"])
def test_rounding_loses_no_more_than_its_quantizer(source: Path, tmp_path: Path, type: str) -> None:
    pytest.importorskip("llama_cpp", reason="the extra peers is not installed")
    recipe_tables.quantized(source, tmp_path / "theirs.gguf", type)
    ours = errors(quantize_file(source, tmp_path / "ours.gguf", type).path, source)
    for name, error in errors(tmp_path / "theirs.gguf", source).items():
        # Where two fits of a block are equally good, an addition in another order decides: 1e-5 in one tensor of Q2_K.
        assert ours[name] <= error * (1 + 1e-4), name


@pytest.mark.parametrize("type", TYPES)
def test_64_equal_tokens(type: str) -> None:
    file, tried = sample_gguf(type), []
    other = peer(file)
    for prompt in PROMPTS:
        ids = as_ids(file, prompt)
        with opened(file) as engine:
            ours, theirs = greedy(engine, ids), other.greedy(ids, N)
        tried.append((prompt, next((i for i in range(N) if ours[i] != theirs[i]), N)))
        if tried[-1][1] == N and len(set(theirs)) > 8:  # not one word over and over
            return
    pytest.fail(f"prompts and equal tokens: {tried}")


@pytest.mark.parametrize("type", TYPES)
def test_logits_are_as_near_to_the_truth(tmp_path: Path, type: str) -> None:
    """Along llama.cpp's tokens, beside the same weights in F32; where the two choose differently, they nearly tie."""
    file = sample_gguf(type)
    same_weights = quantize_file(file, tmp_path / "f32.gguf", "f32", allow_requantize=True).path
    other, ours, theirs, exact = peer(file), [], [], []
    for prompt in PROMPTS[:3]:
        ids = as_ids(file, prompt)
        tokens = (ids + other.greedy(ids, N))[:-1]
        other.truncate(0)
        for token in tokens:
            other.feed([token])
            theirs.append(other.logits())
        with opened(file) as engine:
            ours.append(logits(engine, tokens))
        with opened(same_weights, cache_type="f32") as engine:
            exact.append(logits(engine, tokens))
    a, b, truth = np.concatenate(ours), np.array(theirs), np.concatenate(exact)
    spread = np.sqrt(((truth - truth.mean(axis=1, keepdims=True)) ** 2).mean())
    our_error, their_error = (float(np.sqrt(((x - truth) ** 2).mean()) / spread) for x in (a, b))
    best = np.sort(b, axis=1)
    gap, differ = best[:, -1] - best[:, -2], a.argmax(axis=1) != b.argmax(axis=1)
    print(f"{type}: error {our_error:.2e}, llama.cpp's {their_error:.2e}; {differ.sum()} of {len(differ)} differ")
    assert our_error < 1.1 * their_error < 0.05
    assert differ.mean() < 0.06
    assert (gap[differ] <= 2 * np.abs(a - b).max(axis=1)[differ]).all()
