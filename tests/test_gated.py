"""Gate and up in one step, against the two products and the function of both."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from kernel_bench import RUNNABLE, Bench, Product, address, random_blocks

from halfbyte.runtime.kernels.matmul import MATMUL, matmul_kernel


@pytest.fixture(scope="module", params=RUNNABLE)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param)
    yield made
    made.pool.close()


def gated(gate: Product, up: Product, x: np.ndarray, function: str) -> np.ndarray:
    """float32 [n, rows]: what the step makes of both products' weights, with codes that `gate` has quantized."""
    y = gate.output(len(x))
    fields = dict(zip(MATMUL.fields, gate.prepared(x, y)[1].tolist(), strict=True))
    up.prepared(x, y)
    matrices = np.concatenate([gate._kept[2], up._kept[2]])
    lanes = gate.bench.lanes
    gates = np.zeros((gate.bench.threads, max(fields["chunk"], 2 * fields["token_block"]) * lanes), np.float32)
    fields |= {"matrices": address(matrices), "gates": address(gates)}
    record = MATMUL.make(**fields | {"gates_stride": gates.strides[0]})
    gate.bench.run(matmul_kernel(gate.name, False, gate.activations, function=function), record)
    return y[:, : gate.rows]


@pytest.mark.parametrize("name", ["q4_0", "q5_0", "q4_k", "q6_k", "f16"])
def test_gated(bench: Bench, name: str) -> None:
    """Batches that fill tiles and that do not; as many panels as leave some behind; each row bit for bit as alone."""
    rng = np.random.default_rng(43)
    rows, columns, n = 5 * bench.lanes - 3, 1024, 6 * bench.tile + 1
    gate, up = (Product(bench, name, random_blocks(name, rows, columns, rng), columns, n) for _ in range(2))
    x = 0.05 * rng.standard_normal((n, columns)).astype(np.float32)
    alone = []
    for row in x:
        for product in (gate, up):
            product.quantize(row[None].copy())
        g, u = (product(row[None], product.output(1))[0].astype(np.float64) for product in (gate, up))
        alone.append(gated(gate, up, row[None], "silu")[0].copy())
        want = g / (1 + np.exp(-g)) * u
        assert np.abs(alone[-1] - want).max() < 1e-6 * np.abs(want).max()
    for some in (2, bench.tile, 2 * bench.tile + 1, n):
        gate.quantize(x[:some].copy())
        np.testing.assert_array_equal(gated(gate, up, x[:some], "silu"), alone[:some])
