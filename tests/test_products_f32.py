"""Exact activations: products of integer types with float32 rows, and models that run with `activations="f32"`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import halfbyte
from gguf_models import MATRICES, SEARCHED, TYPES, Models, logits, opened
from kernel_bench import INTEGER, RUNNABLE, Bench, Product, meaning, random_blocks

from halfbyte.runtime.kernels.jit import Library
from halfbyte.runtime.kernels.panels import LAYOUTS
from halfbyte.runtime.kernels.targets import make_target


@pytest.fixture(scope="module", params=RUNNABLE)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param)
    yield made
    made.pool.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Root mean square of the difference over that of `want`."""
    return float(np.sqrt(((got - want) ** 2).mean() / (want**2).mean()))


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_product_is_exact(bench: Bench, name: str) -> None:
    """Batches that fill tiles and that do not: the float64 product within float32 rounding, each row as alone."""
    rng = np.random.default_rng(21)
    rows, columns, n = 37, 512, 13
    raw = random_blocks(name, rows, columns, rng)
    x = rng.standard_normal((n, columns)).astype(np.float32)
    product = Product(bench, name, raw, columns, n, "f32")
    y = product(x, product.output(n))
    want = x.astype(np.float64) @ meaning(name, raw).T
    error, largest = relative_error(y, want), np.abs(y - want).max() / np.abs(want).max()
    print(f"{bench.library.target.name} {name}: relative error {error:.1e}, largest {largest:.1e} of the largest value")
    assert error < 1e-6
    assert largest < 2e-6
    for row in (0, 5, 12):
        np.testing.assert_array_equal(product(x[row : row + 1], product.output(1))[0], y[row])


@pytest.mark.parametrize("name", ["q4_0", "q5_1", "q6_k"])
def test_product_adds(bench: Bench, name: str) -> None:
    rng = np.random.default_rng(22)
    raw = random_blocks(name, 33, 256, rng)
    x = rng.standard_normal((3, 256)).astype(np.float32)
    product = Product(bench, name, raw, 256, 3, "f32")
    want = x.astype(np.float64) @ meaning(name, raw).T
    bias = np.zeros(64, np.float32)
    bias[:33] = rng.standard_normal(33)
    y = product.output(3)
    assert relative_error(product(x, y, bias=bias), want + bias[:33]) < 1e-6
    assert relative_error(product(x, y, add=True, bias=bias), 2 * (want + bias[:33])) < 1e-6


@pytest.mark.parametrize("name", INTEGER)
def test_weights_are_what_the_file_says(bench: Bench, name: str) -> None:
    """A row with a single 1 gives a column of the matrix, to the last bit of float32."""
    rng = np.random.default_rng(23)
    raw = random_blocks(name, 19, 256, rng)
    x = np.eye(256, dtype=np.float32)
    product = Product(bench, name, raw, 256, 256, "f32")
    got, want = product(x, product.output(256)).T, meaning(name, raw)
    exact = LAYOUTS[name].minimum is False
    np.testing.assert_allclose(got, want, rtol=0 if exact else 1e-6, atol=0 if exact else 1e-7 * np.abs(want).max())


@pytest.mark.parametrize("type", [*TYPES[3:], *SEARCHED])
def test_logits_are_exact(models: Models, type: str) -> None:
    """Those of the float64 model on the same weights; with 8-bit activations they are a hundred times farther off."""
    fields = {"hidden": 256, "ffn": 256, "layers": 2, "kv_heads": 1}
    types = dict.fromkeys(MATRICES, type)
    ids = np.random.default_rng(24).integers(0, 400, 70).tolist()
    want = models.logits(types, ids, **fields)
    file = models.mixed(types, **fields)
    found = {}
    for activations in ("f32", "int8"):
        with opened(file, threads=2, activations=activations) as engine:
            assert engine.activation_type == activations
            assert engine.cache_type == ("f32" if activations == "f32" else "f16")
            found[activations] = relative_error(logits(engine, ids), want)
    print(f"{type}: relative error {found['f32']:.1e}, with activations of 8 bits {found['int8']:.1e}")
    assert found["f32"] < 1e-5
    assert found["int8"] > 100 * found["f32"]


@pytest.mark.parametrize("target", RUNNABLE)
def test_every_instruction_set(models: Models, target: str) -> None:
    """A file of float and integer types: every matrix reads the same float32 rows."""
    kinds = ["q4_0", "f16", "q5_1", "q8_0", "bf16", "q4_1", "q5_0", "f32", "q4_0"]
    types = dict(zip(MATRICES, kinds, strict=True))
    ids = np.random.default_rng(25).integers(0, 400, 70).tolist()
    with opened(models.mixed(types), Library(make_target(target)), activations="f32") as engine:
        assert engine.activation_type == "f32"
        assert np.abs(logits(engine, ids) - models.logits(types, ids)).max() < 1e-4


def test_float_files_give_the_same_bits_in_both_modes(models: Models) -> None:
    ids, found = np.random.default_rng(26).integers(0, 400, 40).tolist(), []
    for activations in ("f32", "int8"):
        with opened(models.file("bf16"), activations=activations, cache_type="f32") as engine:
            found.append(logits(engine, ids))
    np.testing.assert_array_equal(*found)


def test_the_cache_may_still_be_float16(models: Models) -> None:
    with opened(models.file("q8_0"), activations="f32", cache_type="f16") as engine:
        assert (engine.activation_type, engine.cache_type) == ("f32", "f16")


def test_accuracy_tells_what_8_bits_cost(tmp_path: Path, models: Models) -> None:
    """`bench accuracy` against the logits of the same file with exact activations."""
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was the end and she said the word. " * 60, "utf-8")
    model, base = str(models.file("q4_0")), str(tmp_path / "exact.logits")
    words = ["bench", "accuracy", model, "--text", str(text), "-c", "64", "--chunks", "4", "-o", "json"]
    exact = halfbyte(*words, "--activations", "f32", "--save-logits", base)
    assert exact.returncode == 0, exact.stderr
    rounded = halfbyte(*words, "--reference", base)
    assert rounded.returncode == 0, rounded.stderr
    (first,), (second,) = json.loads(exact.stdout), json.loads(rounded.stdout)
    assert (first["activation_type"], second["activation_type"]) == ("f32", "int8")
    assert 0 < second["kl"] < 0.1
