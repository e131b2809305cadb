"""The loops over blocks that Numba compiles (`jit.compiled`).  Enters: blocks; leaves: codes and float32 scales.

Plain Python functions of arrays, written so that LLVM uses vector instructions: no branch in the inner loops; their
length read from the array, because loops of a length known beforehand are unrolled first and then stay scalar (0.7
times the speed); values compared as integers, because an integer maximum needs no promise about NaN.  The bits of
non-negative floats are in the order of their values, and `_key` puts negative ones in order too.

Scales stay float32 here: NumPy rounds them to float16, one number in 32.  `n` is the number of blocks.
"""

from __future__ import annotations

import numpy as np

_MAGNITUDE = np.int32(0x7FFFFFFF)


def f16_quantize(bits: np.ndarray, halves: np.ndarray) -> None:
    """bits uint32 [n] of float32 numbers -> halves uint16 [n], the nearest float16, ties to even."""
    for i in range(bits.shape[0]):
        magnitude = bits[i] & np.uint32(0x7FFFFFFF)
        # From 2^-14: move the exponent's bias from 127 to 15, round off 13 bits; a carry may reach the exponent.
        even = (magnitude >> np.uint32(13)) & np.uint32(1)
        normal = (magnitude - np.uint32(112 << 23) + np.uint32(0xFFF) + even) >> np.uint32(13)
        # Below: shift the mantissa, hidden bit included, until its unit is 2^-24.
        shift = np.uint32(126) - min(max(magnitude >> np.uint32(23), np.uint32(101)), np.uint32(113))
        mantissa = (magnitude & np.uint32(0x7FFFFF)) | np.uint32(0x800000)
        even = (mantissa >> shift) & np.uint32(1)
        tiny = (mantissa + (np.uint32(1) << (shift - np.uint32(1))) - np.uint32(1) + even) >> shift
        tiny = tiny if magnitude > np.uint32(0x33000000) else np.uint32(0)
        nan = max(np.uint32(0x7C00) | ((magnitude >> np.uint32(13)) & np.uint32(0x3FF)), np.uint32(0x7C01))
        half = tiny if magnitude < np.uint32(113 << 23) else normal
        half = half if magnitude < np.uint32(0x477FF000) else np.uint32(0x7C00)
        half = half if magnitude <= np.uint32(0x7F800000) else nan
        halves[i] = half | ((bits[i] >> np.uint32(16)) & np.uint32(0x8000))


def bf16_quantize(bits: np.ndarray, halves: np.ndarray) -> None:
    """bits uint32 [n] of float32 numbers -> halves uint16 [n], the nearest bfloat16, ties to even, NaN made quiet."""
    for i in range(bits.shape[0]):
        upper = bits[i] >> np.uint32(16)
        rounded = (bits[i] + np.uint32(0x7FFF) + (upper & np.uint32(1))) >> np.uint32(16)
        nan = (bits[i] & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        halves[i] = (upper | np.uint32(0x40)) if nan else rounded


def q8_0_quantize(blocks: np.ndarray, scales: np.ndarray, packed: np.ndarray) -> None:
    """blocks float32 [n, 32] -> scales float32 [n, 1], packed uint8 [n, 34] from byte 2."""
    bits = blocks.view(np.int32)
    for b in range(blocks.shape[0]):
        scale = abs(blocks[b, _extreme(bits, b)]) / np.float32(127)
        scales[b, 0] = scale
        inverse = _inverse(scale)
        for j in range(blocks.shape[1]):
            steps = blocks[b, j] * inverse
            whole = np.int32(steps)
            rest = abs(steps - np.float32(whole))
            away = np.int32(-1) if steps < 0 else np.int32(1)
            packed[b, 2 + j] = np.uint8(whole + (away if rest >= np.float32(0.5) else np.int32(0)))


def q8_0_dequantize(packed: np.ndarray, scales: np.ndarray, blocks: np.ndarray) -> None:
    """packed uint8 [n, 34], scales float32 [n, 1] -> blocks float32 [n, 32]."""
    codes = packed.view(np.int8)
    for b in range(blocks.shape[0]):
        scale = scales[b, 0]
        for j in range(blocks.shape[1]):
            blocks[b, j] = scale * np.float32(codes[b, 2 + j])


def q4_0_quantize(blocks: np.ndarray, scales: np.ndarray, packed: np.ndarray) -> None:
    """blocks float32 [n, 32] -> scales float32 [n, 1], packed uint8 [n, 18] from byte 2."""
    bits = blocks.view(np.int32)
    for b in range(blocks.shape[0]):
        scale = blocks[b, _extreme(bits, b)] / np.float32(-8)
        scales[b, 0] = scale
        inverse = _inverse(scale)
        middle = np.float32(8.5) if inverse != 0 or scale == 0 else np.float32(0)
        for j in range(blocks.shape[1] // 2):
            low = _code(blocks[b, j] * inverse + middle, np.float32(15))
            high = _code(blocks[b, j + 16] * inverse + middle, np.float32(15))
            packed[b, 2 + j] = low | (high << np.uint8(4))


def q4_0_dequantize(packed: np.ndarray, scales: np.ndarray, blocks: np.ndarray) -> None:
    """packed uint8 [n, 18], scales float32 [n, 1] -> blocks float32 [n, 32]."""
    for b in range(blocks.shape[0]):
        scale = scales[b, 0]
        for j in range(blocks.shape[1] // 2):
            blocks[b, j] = scale * (np.float32(packed[b, 2 + j] & np.uint8(15)) - np.float32(8))
            blocks[b, j + 16] = scale * (np.float32(packed[b, 2 + j] >> np.uint8(4)) - np.float32(8))


def q4_1_quantize(blocks: np.ndarray, scales: np.ndarray, packed: np.ndarray) -> None:
    """blocks float32 [n, 32] -> scales float32 [n, 2] (d, m), packed uint8 [n, 20] from byte 4."""
    bits = blocks.view(np.int32)
    for b in range(blocks.shape[0]):
        smallest, largest = _range(blocks, bits, b)
        scale = (largest - smallest) / np.float32(15)
        scales[b, 0] = scale
        scales[b, 1] = smallest
        inverse = _inverse(scale)
        for j in range(blocks.shape[1] // 2):
            low = _code((blocks[b, j] - smallest) * inverse + np.float32(0.5), np.float32(15))
            high = _code((blocks[b, j + 16] - smallest) * inverse + np.float32(0.5), np.float32(15))
            packed[b, 4 + j] = low | (high << np.uint8(4))


def q4_1_dequantize(packed: np.ndarray, scales: np.ndarray, blocks: np.ndarray) -> None:
    """packed uint8 [n, 20], scales float32 [n, 2] (d, m) -> blocks float32 [n, 32]."""
    for b in range(blocks.shape[0]):
        scale = scales[b, 0]
        offset = scales[b, 1]
        for j in range(blocks.shape[1] // 2):
            blocks[b, j] = scale * np.float32(packed[b, 4 + j] & np.uint8(15)) + offset
            blocks[b, j + 16] = scale * np.float32(packed[b, 4 + j] >> np.uint8(4)) + offset


def q5_0_quantize(blocks: np.ndarray, scales: np.ndarray, packed: np.ndarray) -> None:
    """blocks float32 [n, 32] -> scales float32 [n, 1], packed uint8 [n, 22] from byte 2."""
    bits = blocks.view(np.int32)
    for b in range(blocks.shape[0]):
        scale = blocks[b, _extreme(bits, b)] / np.float32(-16)
        scales[b, 0] = scale
        inverse = _inverse(scale)
        middle = np.float32(16.5) if inverse != 0 or scale == 0 else np.float32(0)
        fifth = np.uint32(0)
        for j in range(blocks.shape[1] // 2):
            low = _code(blocks[b, j] * inverse + middle, np.float32(31))
            high = _code(blocks[b, j + 16] * inverse + middle, np.float32(31))
            packed[b, 6 + j] = (low & np.uint8(15)) | (high << np.uint8(4))
            fifth |= np.uint32(low >> np.uint8(4)) << np.uint32(j)
            fifth |= np.uint32(high >> np.uint8(4)) << np.uint32(j + 16)
        _store(fifth, packed, b, 2)


def q5_0_dequantize(packed: np.ndarray, scales: np.ndarray, blocks: np.ndarray) -> None:
    """packed uint8 [n, 22], scales float32 [n, 1] -> blocks float32 [n, 32]."""
    for b in range(blocks.shape[0]):
        scale = scales[b, 0]
        fifth = _load(packed, b, 2)
        for j in range(blocks.shape[1] // 2):
            low = np.uint32(packed[b, 6 + j] & np.uint8(15)) | _bit_4(fifth, j)
            high = np.uint32(packed[b, 6 + j] >> np.uint8(4)) | _bit_4(fifth, j + 16)
            blocks[b, j] = scale * (np.float32(np.int32(low)) - np.float32(16))
            blocks[b, j + 16] = scale * (np.float32(np.int32(high)) - np.float32(16))


def q5_1_quantize(blocks: np.ndarray, scales: np.ndarray, packed: np.ndarray) -> None:
    """blocks float32 [n, 32] -> scales float32 [n, 2] (d, m), packed uint8 [n, 24] from byte 4."""
    bits = blocks.view(np.int32)
    for b in range(blocks.shape[0]):
        smallest, largest = _range(blocks, bits, b)
        scale = (largest - smallest) / np.float32(31)
        scales[b, 0] = scale
        scales[b, 1] = smallest
        inverse = _inverse(scale)
        fifth = np.uint32(0)
        for j in range(blocks.shape[1] // 2):
            low = _code((blocks[b, j] - smallest) * inverse + np.float32(0.5), np.float32(31))
            high = _code((blocks[b, j + 16] - smallest) * inverse + np.float32(0.5), np.float32(31))
            packed[b, 8 + j] = (low & np.uint8(15)) | (high << np.uint8(4))
            fifth |= np.uint32(low >> np.uint8(4)) << np.uint32(j)
            fifth |= np.uint32(high >> np.uint8(4)) << np.uint32(j + 16)
        _store(fifth, packed, b, 4)


def q5_1_dequantize(packed: np.ndarray, scales: np.ndarray, blocks: np.ndarray) -> None:
    """packed uint8 [n, 24], scales float32 [n, 2] (d, m) -> blocks float32 [n, 32]."""
    for b in range(blocks.shape[0]):
        scale = scales[b, 0]
        offset = scales[b, 1]
        fifth = _load(packed, b, 4)
        for j in range(blocks.shape[1] // 2):
            low = np.uint32(packed[b, 8 + j] & np.uint8(15)) | _bit_4(fifth, j)
            high = np.uint32(packed[b, 8 + j] >> np.uint8(4)) | _bit_4(fifth, j + 16)
            blocks[b, j] = scale * np.float32(np.int32(low)) + offset
            blocks[b, j + 16] = scale * np.float32(np.int32(high)) + offset


def _extreme(bits: np.ndarray, b: int) -> np.int32:
    """Return the place of the first element of largest magnitude in block `b` of `bits`, int32 [n, 32] of floats."""
    largest = np.int32(0)
    for j in range(bits.shape[1]):
        largest = max(largest, bits[b, j] & _MAGNITUDE)
    first = np.int32(32)
    for j in range(bits.shape[1]):
        first = min(first, np.int32(j) if bits[b, j] & _MAGNITUDE == largest else np.int32(32))
    return first


def _range(blocks: np.ndarray, bits: np.ndarray, b: int) -> tuple[np.float32, np.float32]:
    """Return the smallest value of block `b`, float32 [n, 32] (of zeros of both signs the first), and the largest."""
    smallest = _MAGNITUDE
    largest = ~_MAGNITUDE
    for j in range(bits.shape[1]):
        key = _key(bits[b, j])
        smallest = min(smallest, key)
        largest = max(largest, key)
    low = np.int32(32)
    high = np.int32(32)
    # -0 and +0, of keys -1 and 0, are the same value.
    zero = np.int32(0) if smallest == -1 else smallest
    for j in range(bits.shape[1]):
        key = _key(bits[b, j])
        low = min(low, np.int32(j) if key in (smallest, zero) else np.int32(32))
        high = min(high, np.int32(j) if key == largest else np.int32(32))
    return blocks[b, low], blocks[b, high]


def _key(bits: np.int32) -> np.int32:
    """Map the bits of a float, int32, to an int32 in the order of the float's value."""
    return bits ^ ((bits >> np.int32(31)) & _MAGNITUDE)


def _inverse(scale: np.float32) -> np.float32:
    """Return 1/scale, or 0 where that overflows or scale is 0."""
    inverse = np.float32(1) / scale
    return inverse if abs(inverse) < np.float32(np.inf) else np.float32(0)


def _code(steps: np.float32, top: np.float32) -> np.uint8:
    """Return float32 `steps` cut to a whole number from 0 to `top`, uint8; NaN gives 0."""
    steps = steps if steps > 0 else np.float32(0)
    return np.uint8(np.int32(steps if steps < top else top))


def _bit_4(word: np.uint32, j: int) -> np.uint32:
    """Return bit `j` of `word`, uint32, moved to bit 4."""
    return ((word >> np.uint32(j)) & np.uint32(1)) << np.uint32(4)


def _store(word: np.uint32, packed: np.ndarray, b: int, at: int) -> None:
    """Write `word`, uint32, little-endian to packed[b, at : at + 4]."""
    for j in range(4):
        packed[b, at + j] = np.uint8((word >> np.uint32(8 * j)) & np.uint32(255))


def _load(packed: np.ndarray, b: int, at: int) -> np.uint32:
    """Read a little-endian uint32 from packed[b, at : at + 4]."""
    word = np.uint32(0)
    for j in range(4):
        word |= np.uint32(packed[b, at + j]) << np.uint32(8 * j)
    return word
