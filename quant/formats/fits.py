"""The searches for the scale of a sub-block, in NumPy.  Enters: sub-blocks and weights; leaves: scales.

Every search takes three arrays

    x      float32 [m, size]  sub-blocks; the largest magnitude of the block around each is between 0.5 and 1
    w      float32 [m, size]  what the error of each element counts, never negative
    tries  float32 [k]        the code that the largest value is laid on, one candidate after the other

rounds x to codes with each candidate, solves the least-squares problem for the scale (and offset) that suits these
codes best, and keeps the best.  It returns float32 [m, 1] or, with an offset, [m, 2].  `fit_loops.py` holds twins of
the same names for Numba.  Both add up in float32 and in the order of the elements, and so come to the same bits.
Source of the searches and their candidates: `make_qx_quants`, `make_q3_quants`, `make_qkx2_quants` and
`quantize_row_iq4_nl_impl` of ggml.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .codebooks import IQ4, IQ4_MIDDLES

TINY = np.float32(1e-15)
"""What is smaller than this, beside 1, counts as nothing."""

ROUNDS = 5
"""How often `stepwise` goes through the codes of a sub-block."""


def symmetric(x: np.ndarray, w: np.ndarray, tries: np.ndarray) -> np.ndarray:
    """x ~ scale * q with q = -n .. n-1, n = -tries[0] -> scale float32 [m, 1]."""
    return _best_scale(x, w, tries, lambda steps: np.rint(steps).clip(tries[0], -tries[0] - 1), lambda q: w * x * q)


def codebook(x: np.ndarray, w: np.ndarray, tries: np.ndarray) -> np.ndarray:
    """x ~ scale * IQ4[code] -> scale float32 [m, 1]."""
    return _best_scale(
        x, w, tries, lambda steps: IQ4[np.searchsorted(IQ4_MIDDLES, steps, side="right")], lambda q: w * q * x
    )


def _best_scale(
    x: np.ndarray,
    w: np.ndarray,
    tries: np.ndarray,
    nearest: Callable[[np.ndarray], np.ndarray],
    product: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """The scale whose codes leave the least error: float32 [m, 1].

    `nearest` rounds steps to the values of their codes, `product` multiplies these by w and x: all float32 [m, size].
    The order of its factors decides about the last bit; it is ggml's.
    """
    extreme = _extreme(x)
    scale, best = np.zeros_like(extreme), np.zeros_like(extreme)
    for try_ in tries:
        q = nearest(try_ / extreme * x)
        qx, qq = total(product(q)), total(w * q * q)
        better = (qq > 0) & (qx * qx > best * qq)
        np.divide(qx, qq, out=scale, where=better)
        np.multiply(scale, qx, out=best, where=better)
    return scale


def stepwise(x: np.ndarray, w: np.ndarray, tries: np.ndarray) -> np.ndarray:
    """As `symmetric` with one candidate, whose codes are then improved one at a time -> scale float32 [m, 1]."""
    q = np.rint(tries[0] / _extreme(x) * x).clip(tries[0], -tries[0] - 1)
    qx, qq = total(w * x * q)[:, 0], total(w * q * q)[:, 0]
    for _ in range(ROUNDS):
        for i in range(x.shape[1]):
            rest_x, rest_q = qx - w[:, i] * x[:, i] * q[:, i], qq - w[:, i] * q[:, i] * q[:, i]
            usable = rest_x > 0
            steps = np.divide(x[:, i] * rest_q, rest_x, out=np.zeros_like(qx), where=usable)
            new = np.rint(steps.clip(tries[0], -tries[0] - 1))
            new_x, new_q = rest_x + w[:, i] * x[:, i] * new, rest_q + w[:, i] * new * new
            better = usable & (new != q[:, i]) & (new_q > 0) & (new_x * new_x * qq > qx * qx * new_q)
            q[:, i] = np.where(better, new, q[:, i])
            qx, qq = np.where(better, new_x, qx), np.where(better, new_q, qq)
    return np.divide(qx, qq, out=np.zeros_like(qx), where=qq > 0)[:, None]


def affine(x: np.ndarray, w: np.ndarray, tries: np.ndarray) -> np.ndarray:
    """x ~ scale * q - offset with q = 0 .. tries[0] and offset >= 0 -> scale and offset, float32 [m, 2].

    tries[0] itself is judged as it is, without least squares.
    """
    return _affine(x, w, tries, np.square)


def affine_absolute(x: np.ndarray, w: np.ndarray, tries: np.ndarray) -> np.ndarray:
    """As `affine`, but candidates are compared by their absolute, not their squared error."""
    return _affine(x, w, tries, np.abs)


def _affine(x: np.ndarray, w: np.ndarray, tries: np.ndarray, penalty: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """As `affine`, comparing candidates by the sum of w * penalty(difference)."""
    top = tries[0]
    minimum, largest = np.minimum(x.min(axis=1, keepdims=True), np.float32(0)), x.max(axis=1, keepdims=True)
    sum_w, sum_x = total(w), total(w * x)
    scale, best = np.zeros_like(minimum), np.full_like(minimum, np.inf)
    for i, try_ in enumerate(tries):
        # Each candidate starts from the best minimum so far.
        span = np.maximum(largest - minimum, TINY)
        q = np.rint(try_ / span * (x - minimum)).clip(0, top)
        if i == 0:
            usable, new_scale, new_minimum = np.full_like(minimum, True, bool), span / top, minimum
        else:
            usable, new_scale, new_minimum = _line(sum_w, sum_x, total(w * q), total(w * q * q), total(w * q * x))
        error = total(w * penalty(new_scale * q + new_minimum - x))
        better = usable & (error < best)
        scale, minimum = np.where(better, new_scale, scale), np.where(better, new_minimum, minimum)
        best = np.where(better, error, best)
    return np.concatenate([scale, -minimum], axis=1)


def _line(
    sum_w: np.ndarray, sum_x: np.ndarray, sum_q: np.ndarray, sum_qq: np.ndarray, sum_qx: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares from weighted sums, all [m, 1] -> whether it has a solution, the scale, the minimum (at most 0)."""
    determinant = sum_w * sum_qq - sum_q * sum_q
    usable = determinant > 0
    safe = np.where(usable, determinant, np.float32(1))
    scale = (sum_w * sum_qx - sum_x * sum_q) / safe
    minimum = (sum_qq * sum_x - sum_q * sum_qx) / safe
    above = usable & (minimum > 0)
    scale = np.divide(sum_qx, sum_qq, out=scale, where=above)
    return usable, scale, np.where(above, np.float32(0), minimum)


def _extreme(x: np.ndarray) -> np.ndarray:
    """The first value of largest magnitude of each row, or 1 where that is nothing: float32 [m, 1]."""
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
    return np.where(np.abs(extreme) < TINY, np.float32(1), extreme)


def total(terms: np.ndarray) -> np.ndarray:
    """float32 [m, size] -> the sum of each row, float32 [m, 1], added up from the left."""
    # np.sum would add up in pairs.
    return np.add.accumulate(terms, axis=1)[:, -1:]
