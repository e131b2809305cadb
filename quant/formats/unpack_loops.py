"""The loops that unpack blocks of 256 and of uneven values (`jit.compiled`).  Enters: blocks; leaves: float32.

NumPy has multiplied the small whole numbers of the sub-blocks with the scale before: step, and offset where there is
one, float32 [n, sub-blocks].  The layouts are those of `block256.py` and `nonlinear.py`.  `n` is the number of blocks.
"""

from __future__ import annotations

import numpy as np


def q2_k(packed: np.ndarray, step: np.ndarray, offset: np.ndarray, blocks: np.ndarray) -> None:
    """packed uint8 [n, 84], step and offset float32 [n, 16] -> blocks float32 [n, 256]."""
    width = step.shape[1]
    for b in range(blocks.shape[0]):
        for s in range(step.shape[1]):
            # A byte holds four codes of one half of the block, from every second sub-block.
            shift = np.uint8(s // 2 % 4 * 2)
            first = 16 + s // 8 * 32 + s % 2 * 16
            for i in range(width):
                q = np.float32((packed[b, first + i] >> shift) & np.uint8(3))
                blocks[b, 16 * s + i] = step[b, s] * q - offset[b, s]


def q3_k(packed: np.ndarray, step: np.ndarray, blocks: np.ndarray) -> None:
    """packed uint8 [n, 110], step float32 [n, 16] -> blocks float32 [n, 256]."""
    width = step.shape[1]
    for b in range(blocks.shape[0]):
        for s in range(step.shape[1]):
            shift = np.uint8(s // 2 % 4 * 2)
            first = 32 + s // 8 * 32 + s % 2 * 16
            third = np.uint8(s // 2)
            for i in range(width):
                low = (packed[b, first + i] >> shift) & np.uint8(3)
                high = (packed[b, s % 2 * 16 + i] >> third) & np.uint8(1)
                q = np.float32(low | (high << np.uint8(2))) - np.float32(4)
                blocks[b, 16 * s + i] = step[b, s] * q


def q4_k(packed: np.ndarray, step: np.ndarray, offset: np.ndarray, blocks: np.ndarray) -> None:
    """packed uint8 [n, 144], step and offset float32 [n, 8] -> blocks float32 [n, 256]."""
    width = blocks.shape[1] // 8
    for b in range(blocks.shape[0]):
        for s in range(step.shape[1]):
            shift = np.uint8(s % 2 * 4)
            first = 16 + s // 2 * 32
            for i in range(width):
                q = np.float32((packed[b, first + i] >> shift) & np.uint8(15))
                blocks[b, 32 * s + i] = step[b, s] * q - offset[b, s]


def q5_k(packed: np.ndarray, step: np.ndarray, offset: np.ndarray, blocks: np.ndarray) -> None:
    """packed uint8 [n, 176], step and offset float32 [n, 8] -> blocks float32 [n, 256]."""
    width = blocks.shape[1] // 8
    for b in range(blocks.shape[0]):
        for s in range(step.shape[1]):
            shift = np.uint8(s % 2 * 4)
            first = 48 + s // 2 * 32
            fifth = np.uint8(s)
            for i in range(width):
                low = (packed[b, first + i] >> shift) & np.uint8(15)
                high = (packed[b, 16 + i] >> fifth) & np.uint8(1)
                q = np.float32(low | (high << np.uint8(4)))
                blocks[b, 32 * s + i] = step[b, s] * q - offset[b, s]


def q6_k(packed: np.ndarray, step: np.ndarray, blocks: np.ndarray) -> None:
    """packed uint8 [n, 210], step float32 [n, 16] -> blocks float32 [n, 256]."""
    width = step.shape[1]
    for b in range(blocks.shape[0]):
        for s in range(step.shape[1]):
            # A half of the block has eight sub-blocks: low bits in 64 bytes, upper two in 32.
            low_shift = np.uint8(s % 8 // 4 * 4)
            low_first = s // 8 * 64 + s % 4 * 16
            high_shift = np.uint8(s % 8 // 2 * 2)
            high_first = 128 + s // 8 * 32 + s % 2 * 16
            for i in range(width):
                low = (packed[b, low_first + i] >> low_shift) & np.uint8(15)
                high = (packed[b, high_first + i] >> high_shift) & np.uint8(3)
                q = np.float32(low | (high << np.uint8(4))) - np.float32(32)
                blocks[b, 16 * s + i] = step[b, s] * q


def look_up(low: np.ndarray, scales: np.ndarray, values: np.ndarray, blocks: np.ndarray) -> None:
    """low uint8 [n, 16], scales float32 [n], values float32 [16] -> blocks float32 [n, 32]."""
    for b in range(blocks.shape[0]):
        for j in range(low.shape[1]):
            blocks[b, j] = scales[b] * values[low[b, j] & np.uint8(15)]
            blocks[b, j + 16] = scales[b] * values[low[b, j] >> np.uint8(4)]
