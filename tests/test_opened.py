"""Tiles that find panels taken apart, against rows alone, which take codes and scales apart themselves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from kernel_bench import INTEGER, RUNNABLE, Bench, Product, random_blocks

from halfbyte.runtime.kernels.opened import opened_steps, opens_panels
from halfbyte.runtime.kernels.panels import LAYOUTS


@pytest.fixture(scope="module", params=RUNNABLE)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param)
    yield made
    made.pool.close()


@pytest.mark.parametrize("name", INTEGER)
def test_rounds(bench: Bench, name: str) -> None:
    """Panels of one block, and where codes are opened of three rounds: with a bias, and added to what was there."""
    rng, layout, target = np.random.default_rng(41), LAYOUTS[name], bench.library.target
    if not opens_panels(layout, target):
        pytest.skip(f"{target.name} takes nothing of {name} apart")
    rows, n = 2 * bench.lanes + 3, 2 * bench.tile + 1
    bias = np.zeros(3 * bench.lanes, np.float32)
    bias[:rows] = rng.standard_normal(rows)
    three_rounds = next((s for s in range(2, 400) if 2 * opened_steps(layout, target, s) < s), 1)
    for steps in dict.fromkeys((1, three_rounds)):
        columns = steps * layout.step_columns
        x = rng.standard_normal((n, columns)).astype(np.float32)
        product = Product(bench, name, random_blocks(name, rows, columns, rng), columns, n)
        there = rng.standard_normal(product.output(n).shape).astype(np.float32)
        together, added = np.zeros_like(there), there.copy()
        product.quantize(x)
        product(x, together, bias=bias)
        product(x, added, add=True, bias=bias)
        for i, row in enumerate(x):
            product.quantize(row[None].copy())
            alone = product(row[None], product.output(1), bias=bias)[0]
            np.testing.assert_array_equal(together[i, :rows], alone)
            sum_of_both = there[i : i + 1].copy()
            product(row[None], sum_of_both, add=True, bias=bias)
            np.testing.assert_array_equal(added[i, :rows], sum_of_both[0, :rows])
