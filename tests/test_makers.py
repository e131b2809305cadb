"""AMD's cores take other tiles than Intel's: on any x86 CPU both are run, and give the same bits.

But for Q4_K and Q6_K with AVX-512, where AMD's multiply minimums and scales as whole numbers, Intel's as float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from kernel_bench import RUNNABLE, Bench, Product, meaning, random_blocks

from halfbyte.runtime.kernels.panels import LAYOUTS
from halfbyte.runtime.kernels.targets import make_target

INTEL = {"avx512_vnni": "sapphirerapids", "avx_vnni": "alderlake", "avx2": "haswell"}
AMD = "znver4"


@pytest.fixture(scope="module", params=[name for name in RUNNABLE if name in INTEL])
def benches(request: pytest.FixtureRequest) -> Iterator[tuple[Bench, Bench]]:
    """Kernels for a CPU of either maker, of the features that this one has."""
    target = make_target(request.param)
    both = Bench(replace(target, cpu=INTEL[request.param])), Bench(replace(target, cpu=AMD))
    yield both
    for bench in both:
        bench.pool.close()


def test_tiles_differ(benches: tuple[Bench, Bench]) -> None:
    """Or the other tests here compare a thing with itself."""
    intel, amd = (bench.library.target for bench in benches)
    layout = LAYOUTS["q4_k"]
    assert not layout.is_float
    assert (intel.streams(layout), amd.streams(layout)) == (2, 1)
    if intel.name == "avx512_vnni":
        assert (intel.shape(layout), amd.shape(layout)) == ((1, 12), (2, 6))
        assert amd.shape(LAYOUTS["q4_1"]) == (1, 12)


@pytest.mark.parametrize("name", ["f16", "q8_0", "q4_0", "q4_1", "q5_0", "q3_k", "q4_k", "q6_k"])
def test_same_bits(benches: tuple[Bench, Bench], name: str) -> None:
    """Any number of rows beside full tiles, pairs of panels and a last one alone: as float64 says, and bit for bit."""
    rng = np.random.default_rng(6)
    columns = 512
    raw = random_blocks(name, 100, columns, rng)
    weights = meaning(name, raw)
    for n in (1, 2, 7, 8, 11, 12, 13, 14, 18, 31, 61, 75):
        x = rng.standard_normal((n, columns)).astype(np.float32)
        found = []
        for bench in benches:
            product = Product(bench, name, raw, columns, n)
            want = product.quantize(x) @ weights.T
            found.append(product(x, product.output(n)).copy())
        error = np.abs(found[0] - want).max() / np.abs(want).max()
        assert error < 2e-6, f"{n} rows: {error:.1e}"
        if name in ("q4_k", "q6_k") and benches[0].library.target.name == "avx512_vnni":
            np.testing.assert_allclose(found[0], found[1], atol=2e-6 * np.abs(want).max(), err_msg=f"{n} rows")
        else:
            np.testing.assert_array_equal(found[0], found[1], err_msg=f"{n} rows")
