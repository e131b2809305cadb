"""Norms, and the other kernels that work row by row, against float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from kernel_bench import RUNNABLE, Bench, address

from halfbyte.runtime.kernels import elementwise as ew
from halfbyte.runtime.kernels import norms
from halfbyte.runtime.kernels.activations import Sink
from halfbyte.runtime.kernels.functions import FUNCTIONS
from halfbyte.runtime.kernels.jit import Kernel

FLOAT = Sink(True, False)
NO_CODES = dict.fromkeys(("codes", "tile_stride", "block_stride"), 0)
WIDTHS = [64, 172, 8]


@pytest.fixture(scope="module", params=RUNNABLE)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param)
    yield made
    made.pool.close()


def padded(values: np.ndarray) -> np.ndarray:
    """float32 with 64 zeros behind it, as weights have."""
    return np.concatenate([values, np.zeros(64)]).astype(np.float32)


def normed(x: np.ndarray, kind: str) -> np.ndarray:
    """Float64, along the last axis."""
    x = x.astype(np.float64)
    if kind == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5)


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("kind", norms.KINDS)
def test_norm(bench: Bench, kind: str, add: bool, columns: int) -> None:
    """A mean that is far from zero; and added to what is there."""
    rng = np.random.default_rng(5)
    x = (rng.standard_normal((3, columns)) * 3 + 40).astype(np.float32)
    weight, bias = (padded(rng.standard_normal(columns)) for _ in range(2))
    n = np.array([3], np.int64)
    before = rng.standard_normal((3, columns)).astype(np.float32)
    out = before.copy()
    record = norms.NORM.make(
        n_rows=address(n), x=address(x), x_stride=x.strides[0], columns=columns, weight=address(weight),
        bias=address(bias), epsilon=1e-5, out=address(out), out_stride=out.strides[0], **NO_CODES,
    )  # fmt: skip
    bench.run(norms.norm_kernel(kind, FLOAT, add), record)
    want = normed(x, kind) * weight[:columns] + (bias[:columns] if kind == "layer" else 0)
    np.testing.assert_allclose(out, want + before if add else want, rtol=3e-6, atol=3e-5 if kind == "layer" else 1e-6)


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("own", [False, True], ids=["one weight", "a weight a head"])
@pytest.mark.parametrize("kind", norms.KINDS)
def test_heads(bench: Bench, kind: str, own: bool, columns: int) -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((5, 3, columns)).astype(np.float32)
    weight = rng.standard_normal((3 if own else 1, columns)).astype(np.float32)
    want, n = normed(x, kind) * weight, np.array([5], np.int64)
    record = norms.HEAD_NORM.make(
        n_rows=address(n), x=address(x), x_stride=x.strides[0], heads=3, columns=columns, weight=address(weight),
        weight_step=weight.strides[0] if own else 0, epsilon=1e-5,
    )  # fmt: skip
    bench.run(norms.head_norm_kernel(kind), record)
    np.testing.assert_allclose(x, want, rtol=3e-6, atol=1e-6)


EXACT: dict[str, Callable[[float], float]] = {
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x / 2 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: max(x, 0.0),
}


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions(bench: Bench, function: str, gated: bool) -> None:
    """From -30 to 30, to one in a million of x."""
    x = np.linspace(-30, 30, 3 * 172).astype(np.float32).reshape(3, 172)
    up = np.random.default_rng(7).standard_normal(x.shape).astype(np.float32)
    out, n = np.zeros_like(x), np.array([3], np.int64)
    record = ew.ACTIVATE.make(
        n_rows=address(n), row_index=0, x=address(x), up=address(up) if gated else 0, x_stride=x.strides[0],
        columns=172, out=address(out), out_stride=out.strides[0], **NO_CODES,
    )  # fmt: skip
    bench.run(ew.activate_kernel(function, gated, FLOAT), record)
    want = np.array([EXACT[function](v) for v in x.ravel().tolist()]).reshape(x.shape) * (up if gated else 1)
    error = np.abs(out - want) / np.maximum(1, np.abs(x * (up if gated else 1)))
    assert error.max() < 1e-6


def row_by_row(bench: Bench, kernel: Kernel, columns: int, **fields: float) -> tuple[np.ndarray, ...]:
    """Run ADD's, RESCALE's, CLAMP's or SCALE_ROWS' kernel on 3 of 4 rows; return x and what `out` was and is."""
    rng = np.random.default_rng(8)
    x, before = (rng.standard_normal((4, columns)).astype(np.float32) * 5 for _ in range(2))
    out, n = before.copy(), np.array([3], np.int64)
    kind = ew.CLAMP if "limit" in fields else ew.RESCALE if "cap" in fields else ew.ADD
    kind = ew.SCALE_ROWS if "scales" in fields else kind
    record = kind.make(
        n_rows=address(n), x=address(x), x_stride=x.strides[0], columns=columns, out=address(out),
        out_stride=out.strides[0], **fields,
    )  # fmt: skip
    bench.run(kernel, record)
    np.testing.assert_array_equal(out[3], before[3])
    return x[:3].astype(np.float64), before[:3], out[:3]


@pytest.mark.parametrize("columns", WIDTHS)
def test_add_and_rescale(bench: Bench, columns: int) -> None:
    x, before, out = row_by_row(bench, ew.add_kernel(), columns, scale=0.25)
    np.testing.assert_allclose(out, before + 0.25 * x, rtol=1e-6, atol=1e-6)
    x, _, out = row_by_row(bench, ew.rescale_kernel(False), columns, scale=0.25, cap=0.0)
    np.testing.assert_allclose(out, 0.25 * x, rtol=1e-6)
    x, _, out = row_by_row(bench, ew.rescale_kernel(True), columns, scale=2.0, cap=3.0)
    np.testing.assert_allclose(out, 3 * np.tanh(2 * x / 3), rtol=2e-6, atol=1e-6)
    x, _, out = row_by_row(bench, ew.clamp_kernel(), columns, limit=0.75)
    np.testing.assert_array_equal(out, np.clip(x, -0.75, 0.75))
    scales = np.array([0.5, 0.0, -3.0], np.float32)
    x, _, out = row_by_row(bench, ew.scale_rows_kernel(), columns, scales=address(scales))
    np.testing.assert_array_equal(out, x.astype(np.float32) * scales[:, None])
