"""Kernels of the K and codebook types, on every instruction set that this CPU runs, against float64 products.

Weights are random blocks, so that every code and every sub-block scale occurs; what they mean says the gguf package.
"""

from __future__ import annotations

from collections.abc import Iterator

import gguf
import numpy as np
import pytest
from kernel_bench import HALVES, RUNNABLE, Bench, Product, address, meaning, random_blocks

from halfbyte.quant.formats import LAYOUTS as FILE_LAYOUTS
from halfbyte.runtime.kernels import elementwise as ew
from halfbyte.runtime.kernels.jit import assembly
from halfbyte.runtime.kernels.matmul import matmul_kernel
from halfbyte.runtime.kernels.panels import LAYOUTS
from halfbyte.runtime.kernels.targets import make_target

KINDS = ["q4_k", "q5_k", "q6_k", "q3_k", "q2_k", "iq4_xs", "iq4_nl", "mxfp4"]


@pytest.fixture(scope="module", params=RUNNABLE)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param)
    yield made
    made.pool.close()


def compare(y: np.ndarray, want: np.ndarray, what: str) -> None:
    error = np.abs(y - want).max() / np.abs(want).max()
    print(f"{what}: largest error {error:.1e} of the largest value")
    assert error < 1e-6


def test_these_and_the_plain_types_are_all() -> None:
    from test_kernels import PACKABLE

    assert set(PACKABLE) | set(KINDS) == set(LAYOUTS)


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_panels_are_no_larger_than_the_file(name: str) -> None:
    (in_file,) = (layout for layout in FILE_LAYOUTS.values() if layout.name == name)
    layout = LAYOUTS[name]
    assert (layout.step_columns, layout.file_step_bytes()) == (in_file.block_size, in_file.block_bytes)
    assert layout.step_bytes(16) == 16 * in_file.block_bytes


@pytest.mark.parametrize("name", KINDS)
def test_matmul(bench: Bench, name: str) -> None:
    """Batches that fill one tile, two, and none; row counts that fill no panel; each row bit for bit as alone."""
    rng = np.random.default_rng(11)
    for rows, columns in ((37, 512), (1, 256), (115, 1024)):
        raw = random_blocks(name, rows, columns, rng)
        w = meaning(name, raw)
        many = 6 * bench.tile + 2
        product = Product(bench, name, raw, columns, many)
        x = rng.standard_normal((many, columns)).astype(np.float32)
        alone = []
        for row in x:
            product.quantize(row[None].copy())
            alone.append(product(row[None], product.output(1))[0].copy())
        for n in (1, 2, 4, bench.tile, 26, many):
            want = product.quantize(x[:n].copy()) @ w.T
            y = product(x[:n], product.output(n))
            compare(y, want, f"{bench.library.target.name} {name} {rows}x{columns}, {n} rows")
            np.testing.assert_array_equal(y, alone[:n])


@pytest.mark.parametrize("name", KINDS)
def test_matmul_adds(bench: Bench, name: str) -> None:
    rng = np.random.default_rng(12)
    raw = random_blocks(name, 33, 256, rng)
    n = 6 * bench.tile - 5  # in one block: full tiles and others
    x = rng.standard_normal((n, 256)).astype(np.float32)
    product = Product(bench, name, raw, 256, n)
    want = product.quantize(x) @ meaning(name, raw).T
    bias = np.zeros(64, np.float32)
    bias[:33] = rng.standard_normal(33)
    y = product.output(n)
    compare(product(x, y, bias=bias), want + bias[:33], "with bias")
    compare(product(x, y, add=True, bias=bias), 2 * (want + bias[:33]), "added")


@pytest.mark.parametrize("name", KINDS)
def test_extreme_codes(bench: Bench, name: str) -> None:
    """Largest codes of both signs against activations of 127 and -127: the integer dot product must not saturate."""
    rng = np.random.default_rng(13)
    layout = LAYOUTS[name]
    raw = random_blocks(name, 64, 512, rng).reshape(64, 512 // layout.step_columns, -1)
    kept = [at + i for at in HALVES[name] for i in (0, 1)] or [0]
    scales = raw[..., kept]
    raw[:] = rng.choice(np.array([0x00, 0xFF, 0xF0, 0x77], np.uint8), size=(64, 1, 1))
    raw[..., kept] = scales
    raw = raw.reshape(64, -1)
    w, n = meaning(name, raw), 6 * bench.tile
    product = Product(bench, name, raw, 512, n)
    x = rng.choice(np.array([-127.0, 127.0], np.float32), size=(n, 512))
    x[0], x[1] = 127, -127
    product.quantize(x)
    compare(product(x, product.output(n)), x.astype(np.float64) @ w.T, name)


@pytest.mark.parametrize("name", ["q4_k", "q6_k"])
def test_sums_at_the_edge_of_16_bits(bench: Bench, name: str) -> None:
    """Rows with sums of 16 |activations| that just fit (`BlockLayout.paired_limit`), that do not, and the largest.

    All of one sign, they meet weights of which some rows have nothing but the smallest, others the largest code.
    """
    rng = np.random.default_rng(15)
    raw, codes = random_blocks(name, 64, 512, rng).reshape(64, 2, -1), {"q4_k": (16, 144), "q6_k": (0, 192)}[name]
    raw[..., slice(*codes)] = rng.choice(np.array([0x00, 0xFF], np.uint8), size=(64, 1, 1))
    raw = raw.reshape(64, -1)
    limit, columns = {"q4_k": (32767 // 30, 32), "q6_k": (32767 // 32, 16)}[name]  # of a group
    kinds = [limit - 1, limit, limit + 1, 16 * 127, 16, -limit, -limit - 1, -16 * 127]
    mixed = np.resize(kinds, bench.tile)  # in one tile
    edges = np.concatenate([np.repeat(kinds, bench.tile), mixed])
    x = rng.integers(-20, 21, (len(edges), 512)).astype(np.float32)
    x[:, ::256] = 127  # so that all scales are 1
    for row, total in zip(x, edges, strict=True):
        first = columns * rng.integers(1, 256 // columns)
        group = np.diff(abs(total) * np.arange(17) // 16) * np.sign(total)
        row[first : first + columns] = np.tile(group, columns // 16)
    product = Product(bench, name, raw, 512, len(x))
    np.testing.assert_array_equal(product.quantize(x), x)
    if product.sink.tells_largest:
        want = np.abs(x).reshape(len(x), 2, 16, 16).sum(axis=3).max(axis=2)
        np.testing.assert_array_equal(product.codes.largest(), want)
        assert (want <= limit).any() and (want > limit).any()
    compare(product(x, product.output(len(x))), x.astype(np.float64) @ meaning(name, raw).T, name)


@pytest.mark.parametrize("name", KINDS)
def test_embed(bench: Bench, name: str) -> None:
    """Rows of a table are exactly what they mean."""
    rng = np.random.default_rng(14)
    raw = random_blocks(name, 40, 512, rng)
    tokens, n = rng.integers(0, 40, 9), np.array([9], np.int64)
    out = np.zeros((9, 512), np.float32)
    record = ew.EMBED.make(
        n_rows=address(n), index=address(tokens), scale=1.0, table=address(raw), row_bytes=raw.shape[1], columns=512,
        out=address(out), out_stride=out.strides[0],
    )  # fmt: skip
    bench.run(ew.embed_kernel(name), record)
    np.testing.assert_array_equal(out, meaning(name, raw)[tokens])


def test_mxfp4_knows_every_exponent(bench: Bench) -> None:
    raw = np.zeros((256, 17), np.uint8)
    raw[:, 0], raw[:, 1:] = np.arange(256), 0x9F
    out, tokens, n = np.zeros((256, 32), np.float32), np.arange(256), np.array([256], np.int64)
    record = ew.EMBED.make(
        n_rows=address(n), index=address(tokens), scale=1.0, table=address(raw), row_bytes=17, columns=32,
        out=address(out), out_stride=128,
    )  # fmt: skip
    bench.run(ew.embed_kernel("mxfp4"), record)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out, gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.MXFP4))


@pytest.mark.parametrize("name", ["iq4_nl", "iq4_xs", "mxfp4"])
def test_codebooks_are_shuffles(name: str) -> None:
    for target in RUNNABLE:
        if target != "portable":
            shuffle = "tbl" if target.startswith("neon") else "pshufb"
            assert shuffle in assembly(matmul_kernel(name, False), make_target(target))
