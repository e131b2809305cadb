"""Every kernel, on every instruction set that this CPU runs, against an obvious NumPy computation in float64."""

from __future__ import annotations

from collections.abc import Iterator

import gguf
import numpy as np
import pytest
from kernel_bench import RUNNABLE, Bench, Codes, Product, address

from halfbyte.quant.formats import FORMATS
from halfbyte.runtime.kernels import elementwise as ew
from halfbyte.runtime.kernels.activations import Sink
from halfbyte.runtime.kernels.emit import Emitter
from halfbyte.runtime.kernels.jit import Kernel, assembly
from halfbyte.runtime.kernels.layouts import ANCHOR, Correction
from halfbyte.runtime.kernels.matmul import matmul_kernel
from halfbyte.runtime.kernels.panels import LAYOUTS
from halfbyte.runtime.kernels.targets import make_target
from halfbyte.runtime.kernels.values import F16, F32, vec

PACKABLE = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]  # test_kernels_k.py has the others
INTEGER = [name for name in PACKABLE if not LAYOUTS[name].is_float]


@pytest.fixture(scope="module", params=RUNNABLE)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param)
    yield made
    made.pool.close()


def quantized(name: str, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (uint8 [rows, row bytes], float64 values) by the independent gguf package."""
    kind = gguf.GGMLQuantizationType[name.upper()]
    blocks = np.ascontiguousarray(gguf.quants.quantize(weights, kind))
    values = gguf.quants.dequantize(blocks, kind).reshape(weights.shape).astype(np.float64)
    return blocks.view(np.uint8).reshape(len(weights), -1).copy(), values


@pytest.mark.parametrize("name", PACKABLE)
def test_matmul(bench: Bench, name: str) -> None:
    """Many rows at once: the float64 product within float32 rounding, and bit for bit that of each row alone."""
    rng = np.random.default_rng(1)
    rows, columns, n = 100, 172 if LAYOUTS[name].is_float else 256, 6 * bench.tile + 1
    raw, w = quantized(name, rng.standard_normal((rows, columns)).astype(np.float32))
    x = rng.standard_normal((n, columns)).astype(np.float32)
    product = Product(bench, name, raw, columns, n)
    stands_for = product.quantize(x)
    y = product(x, product.output(n)).copy()
    want = stands_for @ w.T
    error = np.abs(y - want).max() / np.abs(want).max()
    print(f"{bench.library.target.name} {name}: largest error {error:.1e} of the largest value")
    assert error < 2e-6
    product.quantize(x[5:6].copy())
    alone = product(x[5:6].copy(), product.output(1))
    np.testing.assert_array_equal(alone[0], y[5])


@pytest.mark.parametrize("name", PACKABLE)
def test_matmul_bias_and_add(bench: Bench, name: str) -> None:
    rng = np.random.default_rng(2)
    rows, columns, n = 33, 64, 6 * bench.tile - 5  # in one block: full tiles and others
    raw, w = quantized(name, rng.standard_normal((rows, columns)).astype(np.float32))
    x = rng.standard_normal((n, columns)).astype(np.float32)
    product = Product(bench, name, raw, columns, n)
    want = product.quantize(x) @ w.T
    bias = np.zeros(64, np.float32)
    bias[:rows] = rng.standard_normal(rows)
    y = product.output(n)
    np.testing.assert_allclose(product(x, y, bias=bias), want + bias[:rows], atol=1e-4)
    np.testing.assert_allclose(product(x, y, add=True, bias=bias), 2 * (want + bias[:rows]), atol=2e-4)


@pytest.mark.parametrize("name", INTEGER)
def test_extreme_codes_are_exact(bench: Bench, name: str) -> None:
    """Largest codes of both signs (also -128), scale 1: the integer dot product must not saturate or wrap."""
    rng = np.random.default_rng(3)
    rows, columns, layout = 32, 128, LAYOUTS[name]
    raw = np.zeros((rows, columns // 32, layout.file_step_bytes()), np.uint8)
    fill = rng.choice(np.array([0x00, 0xFF, 0x80, 0x7F], np.uint8), size=raw.shape)
    fill[: rows // 2] = rng.choice(np.array([0x80, 0xFF, 0x0F], np.uint8), size=(rows // 2, 1, 1))
    raw[:] = fill
    raw[..., :2] = np.array([1.0], np.float16).view(np.uint8)
    if layout.minimum:
        raw[..., 2:4] = np.array([-8.0], np.float16).view(np.uint8)
    raw = raw.reshape(rows, -1)
    w = FORMATS[name].dequantize(raw).astype(np.int64)
    n = 6 * bench.tile
    product = Product(bench, name, raw, columns, n)
    x = rng.choice(np.array([-127.0, 127.0], np.float32), size=(n, columns))
    x[0], x[1] = 127, -127
    product.quantize(x)
    np.testing.assert_array_equal(product(x, product.output(n)), x.astype(np.int64) @ w.T)


def test_quantize_matches_llamacpp_rule(bench: Bench) -> None:
    """int8 codes: absmax / 127 per 32, nearest with ties to even, scale rounded to float16; a zero block stays zero."""
    rng = np.random.default_rng(4)
    x = (rng.standard_normal((5, 96)) * np.array([[1], [1e-3], [300], [1], [1]])).astype(np.float32)
    x[3, 32:64] = 0
    n = np.array([5], np.int64)
    corrections = (
        Correction(-8), Correction(-32, 2), Correction(sums=True), Correction(-16, 2, True, True),
        Correction(-8, anchored=True),
    )  # fmt: skip
    codes = Codes(Sink(False, True, corrections), 5, 96, bench.tile)
    record = ew.QUANTIZE.make(
        n_rows=address(n), x=address(x), x_stride=x.strides[0], columns=96, out=0, out_stride=0, **codes.written()
    )
    bench.run(ew.quantize_kernel(codes.sink), record)
    blocks = x.reshape(5, 3, 32)
    largest = np.abs(blocks).max(axis=2)
    with np.errstate(divide="ignore"):
        inverse = np.where(largest > 0, np.float32(127) / largest, np.float32(0))
    want = np.rint(blocks * inverse[..., None]).astype(np.int8)
    np.testing.assert_array_equal(codes.codes(), want)
    rounded = (largest * np.float32(1 / 127)).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(codes.scales(), rounded)
    totals = want.astype(np.int32).sum(axis=2)
    np.testing.assert_array_equal(codes.products(corrections[0])[..., 0, 0], -8 * totals)
    halves = want.reshape(5, 3, 2, 16).astype(np.int32).sum(axis=3)
    np.testing.assert_array_equal(codes.products(corrections[1])[..., 0], -32 * halves)
    np.testing.assert_array_equal(codes.sums(corrections[2])[..., 0], (totals * rounded).astype(np.float32))
    pairs = want.reshape(5, 3, 2, 4, 2, 2).astype(np.int32).sum(axis=(3, 5))  # columns 0 and 1 of four, 2 and 3
    np.testing.assert_array_equal(codes.products(corrections[3]), -16 * pairs)
    np.testing.assert_array_equal(codes.sums(corrections[3]), (halves * rounded[..., None]).astype(np.float32))
    starts = codes.products(corrections[4])[..., 0, 0].view(np.float32)
    np.testing.assert_array_equal(starts, (ANCHOR - 8 * totals).astype(np.float32))


def test_sums_of_super_blocks(bench: Bench) -> None:
    """As int16, those of two groups side by side: of one part, or of two."""
    rng = np.random.default_rng(8)
    corrections = Correction(words=True), Correction(-8, words=True), Correction(0, 2, words=True)
    x, n = (rng.standard_normal((7, 512)) ** 3).astype(np.float32), np.array([7], np.int64)
    x[0], x[1] = 1, -1  # 32 * 127
    codes = Codes(Sink(False, True, corrections, 256), 7, 512, bench.tile)
    record = ew.QUANTIZE.make(
        n_rows=address(n), x=address(x), x_stride=x.strides[0], columns=512, out=0, out_stride=0, **codes.written()
    )
    bench.run(ew.quantize_kernel(codes.sink), record)
    for correction in corrections:
        totals = codes.codes().astype(np.int32).reshape(7, 16 * correction.groups, -1).sum(axis=2)
        np.testing.assert_array_equal(codes.words(correction), totals)


@pytest.mark.parametrize("name", PACKABLE)
def test_embed(bench: Bench, name: str) -> None:
    rng = np.random.default_rng(7)
    columns = 172 if LAYOUTS[name].is_float else 96
    raw, values = quantized(name, rng.standard_normal((40, columns)).astype(np.float32))
    tokens, n = rng.integers(0, 40, 9), np.array([9], np.int64)
    out = np.zeros((9, columns), np.float32)
    record = ew.EMBED.make(
        n_rows=address(n), index=address(tokens), scale=1.0, table=address(raw), row_bytes=raw.shape[1],
        columns=columns, out=address(out), out_stride=out.strides[0],
    )  # fmt: skip
    bench.run(ew.embed_kernel(name), record)
    np.testing.assert_allclose(out, values[tokens], rtol=1e-6)


def _exp(e: Emitter) -> None:
    source, out, n, _ = e.args
    with e.loop(0, n, e.target.lanes) as i:
        e.store(e.exp(e.load(source + i * 4, vec(F32, e.target.lanes))), out + i * 4)


def _half(e: Emitter) -> None:
    source, out, n, _ = e.args
    with e.loop(0, n, e.target.lanes) as i:
        e.store(e.load(source + i * 4, vec(F32, e.target.lanes)).to(F16).to(F32), out + i * 4)


def test_exp(bench: Bench) -> None:
    x = np.linspace(-87, 88, 1 << 16).astype(np.float32)
    y = np.empty_like(x)
    bench.library.function(Kernel(_exp))(address(x), address(y), x.size, 0)
    want = np.exp(x.astype(np.float64))
    assert np.abs(y / want - 1).max() < 2e-7
    x[:16], x[16:32] = -1e30, -np.inf
    bench.library.function(Kernel(_exp))(address(x), address(y), x.size, 0)
    np.testing.assert_array_equal(y[:32], 0)


def test_half_conversion_is_exact(bench: Bench) -> None:
    """Both ways, as NumPy: all halves, and floats of every size with ties, infinities and NaN."""
    rng = np.random.default_rng(8)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    floats = rng.integers(0, 1 << 32, 1 << 16, dtype=np.uint64).astype(np.uint32).view(np.float32)
    finite = halves[np.isfinite(halves)]
    with np.errstate(all="ignore"):
        ties = finite + np.spacing(np.abs(finite.astype(np.float16))).astype(np.float32) / 2
    x = np.concatenate([halves, floats, ties])
    y = np.empty_like(x)
    bench.library.function(Kernel(_half))(address(x), address(y), x.size, 0)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(y, x.astype(np.float16).astype(np.float32))


def test_instructions_are_used() -> None:
    """The dot product that a target is named for is in the machine code."""
    words = {"avx512_vnni": "vpdpbusd", "avx_vnni": "vpdpbusd", "avx2": "vpmaddubsw", "sse41": "pmaddubsw"} | {
        "neon_i8mm": "smmla", "neon_dotprod": "sdot", "neon": "smlal",
    }  # fmt: skip
    for name in RUNNABLE:
        text = assembly(matmul_kernel("q4_0", False), make_target(name))
        assert words.get(name, "mul") in text
        assert ("zmm" in text) == (name == "avx512_vnni")
        assert name not in ("portable", "sse41") or "ymm" not in text
