"""AMD's cores take other tiles than Intel's: on any x86 CPU both are run, and give the same bits.

Where AMD's fold products (`Target.folds`), they have other activations, and the same bits are those of the same CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from kernel_bench import RUNNABLE, Bench, Product, meaning, random_blocks

from halfbyte.runtime.kernels.layouts import BlockLayout
from halfbyte.runtime.kernels.panels import LAYOUTS
from halfbyte.runtime.kernels.targets import make_target

INTEL = {"avx512_vnni": "sapphirerapids", "avx_vnni": "alderlake", "avx2": "haswell"}
AMD = "znver4"
FOLDED = ["q4_0", "q4_k"]


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
    for n in (1, 2, 7, 8, 11, 12, 13, 18, 31, 59, 60, 61, 75):
        x = rng.standard_normal((n, columns)).astype(np.float32)
        found, most = [], []
        for bench in benches:
            product = Product(bench, name, raw, columns, n)
            want = product.quantize(x) @ weights.T
            found.append(product(x, product.output(n)).copy())
            most.append(product.sink.most)
            error = np.abs(found[-1] - want).max() / np.abs(want).max()
            assert error < 2e-6, f"{n} rows: {error:.1e}"
        if most == [127, 127]:
            np.testing.assert_array_equal(found[0], found[1], err_msg=f"{n} rows")
        else:
            assert most == [127, 120]
            assert name in FOLDED
            assert benches[0].library.target.name == "avx512_vnni"


@pytest.mark.parametrize("name", FOLDED)
def test_folded_products_give_the_same_bits(benches: tuple[Bench, Bench], name: str) -> None:
    """As those of the same codes that are not folded: of fewer rows at a time, and of each row alone."""
    bench = benches[1]
    layout = LAYOUTS[name]
    assert isinstance(layout, BlockLayout)
    if not bench.library.target.folds(layout):
        pytest.skip(f"{bench.library.target.name} folds nothing")
    rng = np.random.default_rng(7)
    for columns in (256, 1024, 2304):
        raw = random_blocks(name, 70, columns, rng)
        for n in (60, 62, 72, 135):
            x = (rng.standard_normal((n, columns)) ** 3).astype(np.float32)
            product = Product(bench, name, raw, columns, n)
            product.quantize(x)
            many = product(x, product.output(n)).copy()
            for first, end in [(0, 24), (24, 59), (59, 60), (n - 1, n)]:
                few = x[first:end].copy()
                product.quantize(few)
                np.testing.assert_array_equal(product(few, product.output(len(few))), many[first:end])
