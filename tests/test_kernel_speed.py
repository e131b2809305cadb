"""How fast each kernel is, and how long it takes to compile: `make bench`.  Ordinary tests run each once, on little.

A row is an operation, a type of weights (or of cached keys), an instruction set and a batch: median time, the bytes
that it must at least move per second, and its multiplications and additions per second.  The work is cut into tasks by
the engine's own builder.  The figures are also in the `extra_info` of pytest-benchmark's JSON (--benchmark-json=FILE).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from attention_layer import Layer
from kernel_bench import INTEGER, RUNNABLE, Bench, Product, address, random_blocks

from halfbyte.bench.report import markdown
from halfbyte.runtime.engine.batch import Division, StepInputs
from halfbyte.runtime.engine.buffers import Rows
from halfbyte.runtime.engine.kv_pages import PagePool
from halfbyte.runtime.engine.memory import Memory
from halfbyte.runtime.engine.program import Builder
from halfbyte.runtime.engine.steps import Program
from halfbyte.runtime.engine.weights import Matrix, Norm, Table
from halfbyte.runtime.kernels.attention import Shape, attention_kernel
from halfbyte.runtime.kernels.jit import Kernel, optimized
from halfbyte.runtime.kernels.matmul import matmul_kernel
from halfbyte.runtime.kernels.pages import PAGE, PAGE_FORMATS
from halfbyte.runtime.kernels.panels import LAYOUTS, PACK, pack_kernel
from halfbyte.runtime.kernels.targets import make_target
from halfbyte.runtime.machine import default_threads

HEADS, KV_HEADS, HEAD_DIM = 8, 2, 64
_COLUMNS = ("operation", "type", "instruction set", "batch", "time", "GB/s", "Gop/s")
_RIGHT = (False, False, False, True, True, True, True)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All types and batches when times are taken, otherwise as little as runs every operation on every type."""
    real = metafunc.config.getoption("benchmark_enable")
    choices = {
        "bench": RUNNABLE,
        "type": list(LAYOUTS),
        "integer_type": INTEGER if real else ["q4_0", "q4_k"],
        "compiled_type": list(LAYOUTS) if real else ["q8_0"],
        "batch": (1, 8, 128) if real else (1, 3),
        "kv": list(PAGE_FORMATS) if real else ["f16"],
    }
    for name in choices:
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, choices[name], indirect=name == "bench", scope="module")


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param, default_threads())
    yield made
    made.pool.close()


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[tuple[str, ...]]]:
    """The rows of the table, which is printed when the last is there."""
    rows: list[tuple[str, ...]] = []
    yield rows
    if rows:
        plugins = request.config.pluginmanager
        with plugins.get_plugin("capturemanager").global_and_fixture_disabled():
            table = markdown(_COLUMNS, sorted(rows, key=lambda row: row[:3]), _RIGHT)
            text = f"{default_threads()} threads, medians\n\n{table}"
            plugins.get_plugin("terminalreporter").write_line(f"\n\n{text}")


@pytest.fixture
def measure(benchmark: Any, bench: Bench, table: list[tuple[str, ...]]) -> Callable[..., None]:
    """Time a function and add a row to the table."""

    def timed(
        operation: str, type: str, batch: int | None, function: Callable[[], object], nbytes: int = 0, ops: int = 0
    ) -> None:
        benchmark(function)
        if benchmark.disabled:
            return
        seconds = benchmark.stats.stats.median
        rates = {"GB/s": nbytes / seconds / 1e9, "Gop/s": ops / seconds / 1e9}
        name = bench.library.target.name
        benchmark.extra_info |= {"operation": operation, "type": type, "instruction_set": name, "batch": batch} | rates
        shown = [f"{rate:.1f}" if rate else "" for rate in rates.values()]
        took = f"{seconds * 1e6:.1f} us" if seconds < 0.1 else f"{seconds:.2f} s"
        table.append((operation, type, name, str(batch or ""), took, *shown))

    return timed


@pytest.fixture
def shape(benchmark: Any) -> tuple[int, int]:
    """Rows and columns of the matrices: some megabytes of weights, or as little as makes several panels."""
    return (64, 512) if benchmark.disabled else (8192, 4096)


class Steps:
    """Steps over `batch` rows, laid out as the engine lays them out."""

    def __init__(self, bench: Bench, batch: int):
        self.bench, self.batch = bench, batch
        self.inputs = StepInputs(batch, (), Division(1, 1, bench.pool.threads, PAGE))
        self.inputs.counts[:] = batch, batch, 0, 0
        pool = PagePool(1, 1, 8, PAGE, "f16")
        self.builder = Builder(bench.library, bench.pool.threads, self.inputs, pool, batch)
        self._ones = np.ones(1 << 14, np.float32)
        self._rng = np.random.default_rng(51)
        self._inputs: list[Rows] = []

    def rows(self, columns: int) -> Rows:
        """Return random float32 rows."""
        memory = Memory(4 * self.batch * columns, "rows")
        memory.array(np.float32, (self.batch, columns))[:] = self._rng.standard_normal((self.batch, columns))
        self._inputs.append(Rows(memory, columns, 4 * columns))
        return self._inputs[-1]

    def rms(self) -> Norm:
        """Return an RMS norm whose weights are ones."""
        return Norm("rms", address(self._ones), 0, 1e-5)

    def last(self) -> Callable[[], None]:
        """Run all steps, and return a function that runs the last of them again."""
        program: Program = self.builder.finish()
        self.bench.pool.run(program.steps)
        self._kept, last = program, program.steps[-1:].copy()
        return lambda: self.bench.pool.run(last)


def matrix_of(product: Product) -> Matrix:
    """The panels of a product as the builder takes them."""
    return Matrix(
        product.name, product.layout, product.activations, product.rows, product.columns, address(product.panels),
        product.panel_bytes, product.count, 0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def products() -> dict[tuple[str, str, str], Product]:
    """The last packed matrix: the next batch multiplies the same."""
    return {}


def packed(products: dict, bench: Bench, type: str, shape: tuple[int, int], activations: str) -> Product:
    key = bench.library.target.name, type, activations
    if key not in products:
        products.clear()
        raw = np.tile(random_blocks(type, 64, shape[1], np.random.default_rng(52)), (shape[0] // 64, 1))
        products[key] = Product(bench, type, raw, shape[1], 1, activations)
    return products[key]


def multiply(measure: Callable[..., None], steps: Steps, product: Product, operation: str) -> None:
    x = steps.builder.norm(steps.rows(product.columns), steps.rms(), into=(matrix_of(product),))
    steps.builder.linear(x, matrix_of(product))
    ops = 2 * steps.batch * product.rows * product.columns
    nbytes = product.panels.nbytes + 4 * steps.batch * product.rows + steps.batch * product.columns
    measure(operation, product.name, steps.batch, steps.last(), nbytes, ops)


def test_matmul(
    measure: Callable[..., None], bench: Bench, products: dict, type: str, batch: int, shape: tuple[int, int]
) -> None:
    multiply(measure, Steps(bench, batch), packed(products, bench, type, shape, "int8"), "matmul")


def test_matmul_f32(
    measure: Callable[..., None], bench: Bench, products: dict, integer_type: str, batch: int, shape: tuple[int, int]
) -> None:
    product = packed(products, bench, integer_type, shape, "f32")
    multiply(measure, Steps(bench, batch), product, "matmul, f32 activations")


def test_pack(measure: Callable[..., None], bench: Bench, type: str, shape: tuple[int, int]) -> None:
    """As a model is loaded: from the file's rows, which are in memory, to panels."""
    raw = np.tile(random_blocks(type, 64, shape[1], np.random.default_rng(53)), (shape[0] // 64, 1))
    product = Product(bench, type, raw, shape[1], 1)
    record = PACK.make(
        source=address(raw), panels=address(product.panels), rows=len(raw), row_bytes=raw.shape[1],
        steps=product.steps, n_panels=product.count, count=1,
    )  # fmt: skip
    measure("pack", type, None, lambda: bench.run(pack_kernel(type), record), raw.nbytes + product.panels.nbytes)


def test_embed(measure: Callable[..., None], bench: Bench, type: str, batch: int, shape: tuple[int, int]) -> None:
    rows, columns = 64, shape[1]
    raw = random_blocks(type, rows, columns, np.random.default_rng(54))
    steps = Steps(bench, batch)
    steps.inputs.tokens[:] = np.random.default_rng(55).integers(0, rows, batch)
    steps.builder.embed(Table(LAYOUTS[type], rows, columns, address(raw), raw.shape[1]))
    measure("embed", type, batch, steps.last(), batch * (raw.shape[1] + 4 * columns))


def test_norm(measure: Callable[..., None], bench: Bench, batch: int, shape: tuple[int, int]) -> None:
    """RMSNorm that leaves 8-bit codes."""
    product = Product(bench, "q4_0", random_blocks("q4_0", 1, shape[1], np.random.default_rng(56)), shape[1], 1)
    steps = Steps(bench, batch)
    steps.builder.norm(steps.rows(shape[1]), steps.rms(), into=(matrix_of(product),))
    measure("norm", "f32 to int8", batch, steps.last(), 5 * batch * shape[1])


def test_swiglu(measure: Callable[..., None], bench: Bench, batch: int, shape: tuple[int, int]) -> None:
    product = Product(bench, "q4_0", random_blocks("q4_0", 1, shape[1], np.random.default_rng(57)), shape[1], 1)
    steps = Steps(bench, batch)
    steps.builder.activate("silu", steps.rows(shape[1]), steps.rows(shape[1]), into=(matrix_of(product),))
    measure("swiglu", "f32 to int8", batch, steps.last(), 9 * batch * shape[1])


def attention_layer(bench: Bench, kv: str, batch: int, depth: int) -> Layer:
    """A layer that has just run for `batch` rows after `depth` positions; its steps: rope and store, attention."""
    layer = Layer(
        bench.library, HEAD_DIM, HEADS // KV_HEADS, kv, KV_HEADS, bench.pool.threads, depth + batch, max_rows=batch
    )
    sequence = layer.sequence()
    sequence.extend([0] * depth)
    layer.step([(sequence, layer.random(batch, seed=58))])
    return layer


def test_rope_and_store(measure: Callable[..., None], bench: Bench, kv: str, batch: int) -> None:
    layer = attention_layer(bench, kv, batch, 64)
    step, nbytes = layer.program.steps[:1], 8 * batch * HEAD_DIM * (HEADS + KV_HEADS)
    measure("rope and store", kv, batch, lambda: layer.workers.run(step), nbytes)
    layer.close()


def test_attention(benchmark: Any, measure: Callable[..., None], bench: Bench, kv: str, batch: int) -> None:
    """After 4096 positions."""
    layer = attention_layer(bench, kv, batch, 100 if benchmark.disabled else 4096)
    step, pool = layer.program.steps[1:], layer.pool
    ops = 4 * HEADS * HEAD_DIM * batch * pool.context
    measure("attention", kv, batch, lambda: layer.workers.run(step), 2 * pool.page_bytes * pool.n_pages, ops)
    layer.close()


def compiled(kernel: Kernel, target: str) -> bytes:
    module, machine = optimized(kernel, make_target(target))
    return machine.emit_object(module)


def test_compile(measure: Callable[..., None], bench: Bench, compiled_type: str) -> None:
    kernel = matmul_kernel(compiled_type, False)
    measure("compile matmul", compiled_type, None, lambda: compiled(kernel, bench.library.target.name))


def test_compile_attention(measure: Callable[..., None], bench: Bench, kv: str) -> None:
    kernel = attention_kernel(Shape(HEAD_DIM, HEADS // KV_HEADS, kv))
    measure("compile attention", kv, None, lambda: compiled(kernel, bench.library.target.name))
