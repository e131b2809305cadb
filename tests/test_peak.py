"""The kernels that show what the machine can do: nothing of what they are to read and multiply is left out."""

import kernel_bench
import numpy as np
import pytest

from halfbyte.bench.limits import Limits
from halfbyte.runtime.kernels import peak
from halfbyte.runtime.kernels.jit import assembly

INSTRUCTIONS = {"avx512_vnni": "vpdpbusd", "avx_vnni": "vpdpbusd", "avx2": "vpmaddubsw"}


@pytest.fixture(scope="module", params=kernel_bench.RUNNABLE)
def bench(request):
    made = kernel_bench.Bench(request.param)
    yield made
    made.pool.close()


def test_every_byte_is_read_once(bench):
    tasks = 5
    words = np.random.default_rng(0).integers(-(1 << 31), 1 << 31, tasks * peak.READ_TASK // 4).astype(np.int32)
    sums = np.zeros((tasks, bench.lanes), np.int32)
    bench.run(peak.read_kernel(), peak.READ.make(address=words.ctypes.data, tasks=tasks, sums=sums.ctypes.data))
    expected = words.reshape(tasks, -1, bench.lanes).sum(axis=1, dtype=np.int32)
    np.testing.assert_array_equal(sums, expected)


def test_every_product_is_added(bench):
    rounds, tasks = 37, 5
    sums = np.zeros((tasks, bench.lanes), np.int32)
    bench.run(peak.dot_kernel(), peak.DOT.make(tasks=tasks, rounds=rounds, sums=sums.ctypes.data))
    assert (sums == rounds * peak.products_per_round(bench.lanes) // bench.lanes).all()


def test_every_product_is_an_instruction_of_its_own(bench):
    """All bytes are 1, so a compiler that knew it would leave no multiplication."""
    target = bench.library.target
    if target.name not in INSTRUCTIONS:
        pytest.skip("no single instruction")
    found = assembly(peak.dot_kernel(), target).count(INSTRUCTIONS[target.name])
    assert found == peak.products_per_round(target.lanes) // (4 * target.lanes)


def test_limits_are_rates():
    for threads in (1, 3):
        with Limits(threads, buffer_bytes=1 << 24) as limits:
            assert 1e8 < limits.read() < 1e13
            assert 1e8 < limits.integer_operations() < 1e15
