"""K-quants, IQ4 and MXFP4: unpacked bit for bit as the `gguf` package does, packed to the bytes of ggml's searches."""

from __future__ import annotations

import ctypes
import platform
import warnings

import gguf as reference
import numpy as np
import pytest

from halfbyte.quant.formats import FORMATS, BlockFormat

NAMES = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4")
SEARCHED = NAMES[:-1]
each = pytest.mark.parametrize("format", [FORMATS[name] for name in NAMES], ids=NAMES)
each_searched = pytest.mark.parametrize("format", [FORMATS[name] for name in SEARCHED], ids=SEARCHED)

# Where the float16 numbers of a block are.
HALVES = {
    "q2_k": (80, 82),
    "q3_k": (108,),
    "q4_k": (0, 2),
    "q5_k": (0, 2),
    "q6_k": (208,),
    "iq4_nl": (0,),
    "iq4_xs": (0,),
}

# sum((w' - w)^2) / sum(w^2) of 128 x 2048 values as libggml packs them, without an importance matrix, for a normal, a
# Laplace and a t distribution with five degrees of freedom.
ERRORS = {
    "q2_k": (8.819e-2, 1.175e-1, 1.113e-1),
    "q3_k": (2.278e-2, 3.090e-2, 3.124e-2),
    "q4_k": (5.108e-3, 7.180e-3, 6.951e-3),
    "q5_k": (1.310e-3, 1.835e-3, 1.789e-3),
    "q6_k": (3.161e-4, 4.734e-4, 4.714e-4),
    "iq4_nl": (5.811e-3, 7.733e-3, 7.917e-3),
    "iq4_xs": (5.901e-3, 7.860e-3, 8.069e-3),
    "mxfp4": (1.303e-2, 1.599e-2, 1.605e-2),
}


def ordinary_rows() -> np.ndarray:
    """Rows of several distributions and magnitudes, no value of which needs a subnormal scale: float32 [n, 256]."""
    rng = np.random.default_rng(1)
    normal = rng.standard_normal((37, 256))
    rows = [
        normal,
        rng.laplace(size=(20, 256)) * 0.5,
        rng.standard_t(3, (20, 256)) * 3,
        np.abs(normal),
        -np.abs(normal),
    ]
    return np.concatenate(rows).astype(np.float32)


def special_rows() -> np.ndarray:
    """Rows at the edges, float32 [n, 256]."""
    rng = np.random.default_rng(2)
    noise = rng.standard_normal((8, 256))
    place = np.arange(256)
    rows = [np.zeros(256), np.full(256, -0.0), np.full(256, 1.0), np.full(256, -3.5), place, -place, place - 128]
    rows += [np.where(place == i, value, 0) for i in (0, 15, 16, 31, 100, 255) for value in (2, -2)]
    rows += [np.where(place // 32 == i, noise[0], 0) for i in (0, 7)]
    rows += [np.resize([7.5, -7.5], 256), np.resize([0, 1, 2, 3], 256), np.resize([0.5, 1.5, 2.5, -4], 256)]
    rows += [
        np.where(place % 16 == 3, 1, 1e-7 * noise[0]),
        np.where(place < 16, 1e-20, 1) * noise[1],
        1 + 1e-7 * noise[2],
    ]
    # Each sub-block of another magnitude, down to nothing beside the largest.
    rows += [noise[3] * 10.0 ** -(place // 16), noise[4] * 10.0 ** (place // 16 - 30)]
    # From the smallest subnormal number to the largest of all.
    rows += [noise[5] * 2.0**power for power in (-149, -140, -133, -126, -100, -60, -30, -14, 14, 24, 60, 100)]
    rows += [noise[6] / np.abs(noise[6]).max() * largest for largest in (65504 * 127, 1e30, 3.4e38)]
    coarse = rng.integers(-8, 9, (40, 256)) / 4
    bits = rng.integers(0, 2**32, (40, 256), np.uint32)
    bits = np.where((bits >> 23) & 255 == 255, bits ^ np.uint32(1 << 30), bits).view(np.float32)
    return np.concatenate([np.array(rows, np.float32), coarse.astype(np.float32), bits])


def edge_blocks(format: BlockFormat) -> np.ndarray:
    """Random blocks, and such with the float16 numbers, or all other bytes, at their limits: uint8 [n, block_bytes]."""
    rng = np.random.default_rng(3)
    random = rng.integers(0, 256, (3000, format.block_bytes), np.uint8)
    if format.name == "mxfp4":
        random[:1024, 0] = np.arange(1024) % 256
        return random
    limits = np.float16([0, -0.0, 6e-8, -6e-8, 6.1e-5, 1, -1, 65504, -65504, np.inf, -np.inf, np.nan])
    random[1000:1200], random[1200:1400] = 0, 255
    for at in HALVES[format.name]:
        random[:2000, at : at + 2] = rng.choice(limits, (2000, 1)).view(np.uint8)
    return random


def quantize_both(format: BlockFormat, rows: np.ndarray) -> np.ndarray:
    """What both twins make of float32 [n, 256]: uint8 [n, row_bytes], once it is found to be the same."""
    blocks = rows.reshape(-1, format.block_size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        obvious = format.quantize_blocks(blocks)
    with np.errstate(all="ignore"):  # under NUMBA_DISABLE_JIT the loops are Python, and NumPy warns
        fast = format.quantize_compiled(blocks)
    np.testing.assert_array_equal(fast, obvious)
    return fast.reshape(rows.shape[0], -1)


def relative_error(format: BlockFormat, rows: np.ndarray) -> float:
    """sum((w' - w)^2) / sum(w^2) after packing float32 [n, n_cols]."""
    lost = format.dequantize(format.quantize(rows)).astype(np.float64) - rows
    return float((lost**2).sum() / (rows.astype(np.float64) ** 2).sum())


@each
def test_dequantize_is_bit_exact_at_the_edges(format):
    packed = edge_blocks(format)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = reference.quants.dequantize(packed, reference.GGMLQuantizationType(format.gguf_id))
    numbers = ~np.isnan(expected)
    assert numbers.mean() > 0.8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = format.dequantize_blocks(packed), format.dequantize_compiled(packed)
    for blocks in found:
        assert (blocks.dtype, blocks.shape) == (np.float32, expected.shape)
        np.testing.assert_array_equal(np.isnan(blocks), ~numbers)
        np.testing.assert_array_equal(blocks.view(np.uint32)[numbers], expected.view(np.uint32)[numbers])


@each
def test_both_twins_pack_the_same_bytes(format):
    for rows in (ordinary_rows(), special_rows(), ordinary_rows()[:1]):
        assert quantize_both(format, rows).shape == (rows.shape[0], format.row_bytes(256))


@each
def test_errors_are_those_of_the_reference_searches(format):
    rng = np.random.default_rng(0)
    shape = (128, 2048)
    for values, expected in zip(
        (rng.standard_normal(shape), rng.laplace(size=shape), rng.standard_t(5, shape)),
        ERRORS[format.name],
        strict=True,
    ):
        error = relative_error(format, (values * 0.02).astype(np.float32))
        print(f"{format.name}: {error:.4e}, libggml {expected:.4e}")
        assert error < expected * 1.0005


@each_searched
def test_the_magnitude_of_the_values_is_no_matter(format):
    """A search compares cubes of squares: of 64 thousand, these are beyond float32."""
    rows = np.random.default_rng(4).standard_normal((20, 256)).astype(np.float32) * 16
    near = format.dequantize(quantize_both(format, rows))
    np.testing.assert_array_equal(format.dequantize(quantize_both(format, rows * 1024)), near * 1024)


@each
def test_nothing_becomes_nothing(format):
    values = format.dequantize(quantize_both(format, np.zeros((3, 256), np.float32)))
    np.testing.assert_array_equal(values, 0)
    tiny = np.full((3, 256), 1e-45, np.float32)
    assert np.abs(format.dequantize(quantize_both(format, tiny))).max() <= 1e-37


@each
def test_values_that_are_too_large_show(format):
    """The converter refuses a tensor that does not come back finite; MXFP4 holds what float32 holds."""
    rows = np.resize(np.float32([3e38, -3e38, 1e38, 0]), (1, 256))
    packed = format.quantize(rows)
    if format.name == "mxfp4":
        assert np.abs(format.dequantize(packed) / np.float32(3e38) - rows / np.float32(3e38)).max() < 0.2
    else:
        assert format.first_nonfinite(packed) == 0
        assert not np.isfinite(format.dequantize(packed)).all()


@each_searched
def test_first_nonfinite_block(format):
    packed = format.quantize(np.random.default_rng(7).standard_normal((8, 512)).astype(np.float32))
    assert format.first_nonfinite(packed) is None
    for at in HALVES[format.name]:
        for value in (np.inf, -np.inf, np.nan):
            bad = packed.reshape(-1, format.block_bytes).copy()
            bad[3, at : at + 2] = np.float16([value]).view(np.uint8)
            assert format.first_nonfinite(bad.reshape(packed.shape)) == 3


def test_first_nonfinite_block_of_mxfp4():
    format = FORMATS["mxfp4"]
    for exponent, byte, bad in (
        (252, 0x77, False),
        (253, 0x55, False),
        (253, 0x06, True),
        (254, 0x30, False),
        (255, 0, True),
    ):
        packed = np.zeros((5, 17), np.uint8)
        packed[3, [0, 9]] = exponent, byte
        assert format.first_nonfinite(packed) == (3 if bad else None)


def test_mxfp4_packs_the_bytes_of_the_gguf_package():
    rows = np.concatenate([ordinary_rows(), ordinary_rows() * np.float32(1e-30), np.round(ordinary_rows() * 4) / 4])
    middles = np.resize(np.float32([0.5, -0.5, 1.5, 2.5, -3.5, 5, -7, 10, 12, -15, 0, -0.0]), (1, 32 * 12)) / 8
    for values in (rows, middles):
        expected = reference.quants.quantize(values, reference.GGMLQuantizationType.MXFP4)
        np.testing.assert_array_equal(FORMATS["mxfp4"].quantize(values), expected)


@each
def test_rows_that_blocks_do_not_divide_are_refused(format):
    columns = format.block_size // 2 * 3
    with pytest.raises(
        ValueError, match=f"{format.name} packs {format.block_size} elements at a time; a row has {columns}"
    ):
        format.quantize(np.zeros((2, columns), np.float32))


@pytest.mark.peers
@each
def test_the_bytes_are_those_of_libggml(format):
    """Except for codes of sub-blocks whose scale is 0, which mean nothing; these rows have none."""
    library = pytest.importorskip("llama_cpp").llama_cpp._lib
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("elsewhere compilers fuse multiplications with additions, and libggml's last bits differ")
    rows = ordinary_rows()
    expected = np.zeros(format.nbytes(rows.shape), np.uint8)
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk(format.gguf_id, rows.ctypes.data, expected.ctypes.data, 0, *rows.shape, None)
    np.testing.assert_array_equal(format.quantize(rows), expected.reshape(rows.shape[0], -1))
