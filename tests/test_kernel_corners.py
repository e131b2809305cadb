"""Scales and activations at the ends of their ranges, on every instruction set that this CPU runs.

What is no number stays visible: a NaN or an infinity in the activations makes NaN of the whole output row (with float32
activations: nothing finite), one in a weight's scale of what that weight row gives; no other output changes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from kernel_bench import (
    HALVES,
    INTEGER,
    RUNNABLE,
    Bench,
    Codes,
    Product,
    address,
    meaning,
    random_blocks,
    with_scales,
)

from halfbyte.runtime.kernels import elementwise as ew
from halfbyte.runtime.kernels.activations import Sink
from halfbyte.runtime.kernels.layouts import Correction
from halfbyte.runtime.kernels.panels import LAYOUTS

SMALLEST, LARGEST = 2.0**-24, 65504.0  # float16: subnormal, and the largest
WITH_HALVES = [name for name in INTEGER if HALVES[name]]
MODES = ("int8", "f32")


@pytest.fixture(scope="module", params=RUNNABLE)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param)
    yield made
    made.pool.close()


def blocks_of(name: str, scales: np.ndarray, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Return a row of random codes for each of `scales`, float64 [rows], which stands in all its float16 fields."""
    layout, rows = LAYOUTS[name], len(scales)
    raw = rng.integers(0, 256, (rows, columns // layout.step_columns, layout.file_step_bytes()), dtype=np.uint8)
    return with_scales(name, raw, np.broadcast_to(scales[:, None], raw.shape[:2]))


@pytest.mark.parametrize("name", WITH_HALVES)
def test_scales_at_the_ends(bench: Bench, name: str) -> None:
    """0, the smallest subnormal, the largest, of both signs, one row each: every row as exact as any other."""
    rng = np.random.default_rng(41)
    scales = np.array([0.0, -0.0, SMALLEST, -SMALLEST, 1023 * SMALLEST, 2.0**-14, LARGEST, -LARGEST, 1.0])
    raw = blocks_of(name, scales, 512, rng)
    w, x = meaning(name, raw), rng.standard_normal((5, 512)).astype(np.float32)
    assert (w[:2] == 0).all()
    for activations in MODES:
        product = Product(bench, name, raw, 512, 5, activations)
        stands_for = product.quantize(x)
        y, want = product(x, product.output(5)), stands_for @ w.T
        np.testing.assert_array_equal(y[:, :2], 0)
        bound = np.abs(stands_for) @ np.abs(w).T  # of the sum of magnitudes: float32 rounds no worse at these ends
        assert (np.abs(y - want) <= 2e-6 * bound).all(), np.abs((y - want)[:, 2:] / bound[:, 2:]).max(axis=0)


def test_mxfp4_exponents_at_the_ends(bench: Bench) -> None:
    """Exponents whose scale is subnormal in float32, and the largest with which 32 products are finite."""
    rng = np.random.default_rng(42)
    raw = random_blocks("mxfp4", 6, 32, rng)
    raw[:, 0] = 0, 1, 2, 127, 128, 240
    x = rng.standard_normal((3, 32)).astype(np.float32)
    w = meaning("mxfp4", raw)
    for activations in MODES:
        product = Product(bench, "mxfp4", raw, 32, 3, activations)
        stands_for = product.quantize(x)
        y, want = product(x, product.output(3)), stands_for @ w.T
        bound = np.abs(stands_for) @ np.abs(w).T
        assert (np.abs(y - want) <= 2e-6 * bound + 32 * 2.0**-149).all()


@pytest.mark.parametrize("name", INTEGER)
def test_scales_that_are_no_numbers_stay_in_their_row(bench: Bench, name: str) -> None:
    rng = np.random.default_rng(43)
    columns = 512
    raw = random_blocks(name, 37, columns, rng)
    layout, broken = LAYOUTS[name], {3: np.inf, 20: np.nan, 36: -np.inf}
    changed = raw.copy().reshape(37, -1, layout.file_step_bytes())
    for row, scale in broken.items():
        if name == "mxfp4":
            changed[row, 0, 0] = 255  # 2^128, which float32 has not
        else:
            changed[row, :1] = with_scales(name, changed[row, None, :1], np.full((1, 1), scale)).reshape(1, -1)
    x = rng.standard_normal((9, columns)).astype(np.float32)
    sound = [row for row in range(37) if row not in broken]
    for activations in MODES:
        found = []
        for blocks in (raw, changed.reshape(37, -1)):
            product = Product(bench, name, blocks, columns, 9, activations)
            product.quantize(x)
            found.append(product(x, product.output(9)).copy())
        np.testing.assert_array_equal(found[1][:, sound], found[0][:, sound])
        if name != "mxfp4":
            assert not np.isfinite(found[1][:, list(broken)]).any()


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q5_1", "q6_k", "iq4_nl", "q2_k"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_activations_that_are_no_numbers_stay_in_their_row(bench: Bench, name: str, value: float) -> None:
    rng = np.random.default_rng(44)
    raw = random_blocks(name, 21, 512, rng)
    x = rng.standard_normal((6, 512)).astype(np.float32)
    spoilt = x.copy()
    spoilt[2, 100], spoilt[4, 511] = value, value
    for activations in MODES:
        product, found = Product(bench, name, raw, 512, 6, activations), []
        for rows in (x, spoilt):
            with np.errstate(invalid="ignore"):
                product.quantize(rows)
            found.append(product(rows, product.output(6)).copy())
        np.testing.assert_array_equal(found[1][[0, 1, 3, 5]], found[0][[0, 1, 3, 5]])
        assert np.isnan(found[1][[2, 4]]).all() if activations == "int8" else not np.isfinite(found[1][[2, 4]]).any()


CORRECTIONS = (Correction(-8), Correction(sums=True))


def codes_of(bench: Bench, x: np.ndarray) -> Codes:
    """Quantize float32 `x` [rows, columns]."""
    codes, n = Codes(Sink(False, True, CORRECTIONS), *x.shape, bench.tile), np.array([len(x)], np.int64)
    record = ew.QUANTIZE.make(
        n_rows=address(n), x=address(x), x_stride=x.strides[0], columns=x.shape[1], out=0, out_stride=0,
        **codes.written(),
    )  # fmt: skip
    bench.run(ew.quantize_kernel(codes.sink), record)
    return codes


def test_activations_of_zero(bench: Bench) -> None:
    """Zeros of both signs: scale 0 and codes 0, and products of exactly 0."""
    x = np.zeros((2, 64), np.float32)
    x[1] = -0.0
    codes = codes_of(bench, x)
    for array in (codes.codes(), codes.scales(), codes.products(CORRECTIONS[0]), codes.sums(CORRECTIONS[1])):
        np.testing.assert_array_equal(array, 0)
    raw = random_blocks("q5_1", 9, 64, np.random.default_rng(45))
    product = Product(bench, "q5_1", raw, 64, 2)
    product.quantize(x)
    np.testing.assert_array_equal(product(x, product.output(2)), 0)


def test_one_huge_activation(bench: Bench) -> None:
    """Its block keeps 127 for it; the scale is a float16, so beyond 127 * 65504 = 8.3e6 it and the outputs are lost."""
    x = np.ones((3, 64), np.float32)
    x[0, 5], x[1, 5], x[2, 5] = 3e4, 8.3e6, -9e6
    codes = codes_of(bench, x)
    assert codes.codes()[:, 0, 5].tolist() == [127, 127, -127]
    assert (np.delete(codes.codes()[:, 0], 5, axis=1) == 0).all()
    np.testing.assert_array_equal(codes.codes()[:, 1], 127)
    assert codes.scales()[0, 0] == np.float16(3e4 / 127)
    assert np.isfinite(codes.scales()[1]).all()
    assert np.isinf(codes.scales()[2, 0])
    raw = random_blocks("q4_0", 5, 64, np.random.default_rng(46))
    product = Product(bench, "q4_0", raw, 64, 3)
    product.quantize(x)
    finite = np.isfinite(product(x, product.output(3)))
    assert finite[:2].all() and not finite[2].any()
    exact = Product(bench, "q4_0", raw, 64, 3, "f32")
    assert np.isfinite(exact(x, exact.output(3))).all()


def test_tiny_activations(bench: Bench) -> None:
    """Below 127 * 2^-25 the scale rounds to 0, so that they count as nothing; subnormal floats are among them."""
    x = np.full((4, 32), 1.0, np.float32) * np.array([[1e-45], [1e-38], [3e-6], [1e-5]], np.float32)
    x[:, ::3] *= -1
    codes = codes_of(bench, x)
    np.testing.assert_array_equal(codes.scales()[:3], 0)
    assert codes.scales()[3, 0] == np.float16(1e-5 / 127) > 0
    np.testing.assert_array_equal(codes.sums(CORRECTIONS[1])[:3], 0)
    for name in ("q8_0", "q4_0", "q4_1"):
        raw = random_blocks(name, 7, 32, np.random.default_rng(47))
        product = Product(bench, name, raw, 32, 4)
        product.quantize(x)
        y = product(x, product.output(4))
        np.testing.assert_array_equal(y[:3], 0)
        assert (y[3] != 0).all()
        exact = Product(bench, name, raw, 32, 4, "f32")
        np.testing.assert_allclose(
            exact(x, exact.output(4)), x.astype(np.float64) @ meaning(name, raw).T, rtol=1e-4, atol=32 * 2.0**-149
        )


def test_ties_round_to_even(bench: Bench) -> None:
    """With a largest of 127 a code is its activation: halves go to the even neighbour, as llama.cpp's vector code."""
    x = np.zeros((2, 32), np.float32)
    x[0, 0], x[0, 1:] = 127, np.arange(-15, 16) + 0.5
    x[1, 0], x[1, 1:] = -127, np.linspace(126.5, 111.5, 31)
    codes = codes_of(bench, x)
    np.testing.assert_array_equal(codes.scales(), 1)
    np.testing.assert_array_equal(codes.codes()[:, 0], np.rint(x))
    assert codes.codes()[0, 0, 15:18].tolist() == [0, 0, 2]
