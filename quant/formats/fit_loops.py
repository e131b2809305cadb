"""The searches of `fits.py` as loops that Numba compiles (`jit.compiled`).  Enters: sub-blocks; leaves: scales.

Arguments as in `fits.py`, and found, float32 [m, 1 or 2], for what it returns.

A sum of floats has an order, so LLVM cannot use vector instructions along a sub-block.  The loops run across instead:
64 sub-blocks are turned so that their elements of equal place lie side by side, and each is a lane of the innermost
loops.  These have no branch: what a lane must not do (divide by zero, say) it does, and the result is not taken.
"""

from __future__ import annotations

import numpy as np

from .codebooks import IQ4, IQ4_MIDDLES
from .fits import ROUNDS, TINY

_LANES = 64
_ZERO = np.float32(0)
_N_MIDDLES = IQ4_MIDDLES.shape[0]


def symmetric(x: np.ndarray, w: np.ndarray, tries: np.ndarray, found: np.ndarray) -> None:
    """x, w float32 [m, size], tries float32 [k] -> found float32 [m, 1]."""
    bottom, top = tries[0], -tries[0] - np.float32(1)
    turned = np.empty((2, x.shape[1], _LANES), np.float32)
    rows = np.empty((6, _LANES), np.float32)
    extreme, inverse, scale, best, qx, qq = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5]
    xs, ws = turned[0], turned[1]
    for first in range(0, x.shape[0], _LANES):
        lanes = _turn(x, w, first, xs, ws)
        _extremes(xs, lanes, extreme)
        scale[:] = _ZERO
        best[:] = _ZERO
        for t in range(tries.shape[0]):
            _restart(lanes, tries[t], extreme, inverse, qx, qq)
            for i in range(x.shape[1]):
                for k in range(lanes):
                    q = _whole(inverse[k] * xs[i, k], bottom, top)
                    qx[k] += ws[i, k] * xs[i, k] * q
                    qq[k] += ws[i, k] * q * q
            _take_better(lanes, qx, qq, scale, best)
        found[first : first + lanes, 0] = scale[:lanes]


def codebook(x: np.ndarray, w: np.ndarray, tries: np.ndarray, found: np.ndarray) -> None:
    """x, w float32 [m, size], tries float32 [k] -> found float32 [m, 1]."""
    turned = np.empty((2, x.shape[1], _LANES), np.float32)
    rows = np.empty((6, _LANES), np.float32)
    extreme, inverse, scale, best, qx, qq = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5]
    xs, ws = turned[0], turned[1]
    for first in range(0, x.shape[0], _LANES):
        lanes = _turn(x, w, first, xs, ws)
        _extremes(xs, lanes, extreme)
        scale[:] = _ZERO
        best[:] = _ZERO
        for t in range(tries.shape[0]):
            _restart(lanes, tries[t], extreme, inverse, qx, qq)
            for i in range(x.shape[1]):
                for k in range(lanes):
                    steps = inverse[k] * xs[i, k]
                    q = IQ4[0]
                    for j in range(_N_MIDDLES):
                        q = IQ4[j + 1] if steps >= IQ4_MIDDLES[j] else q
                    qx[k] += ws[i, k] * q * xs[i, k]
                    qq[k] += ws[i, k] * q * q
            _take_better(lanes, qx, qq, scale, best)
        found[first : first + lanes, 0] = scale[:lanes]


def stepwise(x: np.ndarray, w: np.ndarray, tries: np.ndarray, found: np.ndarray) -> None:
    """x, w float32 [m, size], tries float32 [1] -> found float32 [m, 1]."""
    bottom, top = tries[0], -tries[0] - np.float32(1)
    turned = np.empty((3, x.shape[1], _LANES), np.float32)
    rows = np.empty((4, _LANES), np.float32)
    extreme, inverse, qx, qq = rows[0], rows[1], rows[2], rows[3]
    xs, ws, qs = turned[0], turned[1], turned[2]
    for first in range(0, x.shape[0], _LANES):
        lanes = _turn(x, w, first, xs, ws)
        _extremes(xs, lanes, extreme)
        _restart(lanes, tries[0], extreme, inverse, qx, qq)
        for i in range(x.shape[1]):
            for k in range(lanes):
                q = _whole(inverse[k] * xs[i, k], bottom, top)
                qs[i, k] = q
                qx[k] += ws[i, k] * xs[i, k] * q
                qq[k] += ws[i, k] * q * q
        for _ in range(ROUNDS):
            for i in range(x.shape[1]):
                for k in range(lanes):
                    value, weight, q = xs[i, k], ws[i, k], qs[i, k]
                    rest_x = qx[k] - weight * value * q
                    rest_q = qq[k] - weight * q * q
                    new = _whole(value * rest_q / rest_x, bottom, top)
                    new_x = rest_x + weight * value * new
                    new_q = rest_q + weight * new * new
                    better = (rest_x > _ZERO) & (new != q) & (new_q > _ZERO)
                    better &= new_x * new_x * qq[k] > qx[k] * qx[k] * new_q
                    qs[i, k] = new if better else q
                    qx[k] = new_x if better else qx[k]
                    qq[k] = new_q if better else qq[k]
        for k in range(lanes):
            found[first + k, 0] = qx[k] / qq[k] if qq[k] > _ZERO else _ZERO


def affine(x: np.ndarray, w: np.ndarray, tries: np.ndarray, found: np.ndarray) -> None:
    """x, w float32 [m, size], tries float32 [k] -> found float32 [m, 2]."""
    _affine(x, w, tries, found, False)


def affine_absolute(x: np.ndarray, w: np.ndarray, tries: np.ndarray, found: np.ndarray) -> None:
    """x, w float32 [m, size], tries float32 [k] -> found float32 [m, 2]."""
    _affine(x, w, tries, found, True)


def _affine(x: np.ndarray, w: np.ndarray, tries: np.ndarray, found: np.ndarray, absolute: bool) -> None:
    """As `affine`; `absolute` compares absolute, not squared errors."""
    top = tries[0]
    turned = np.empty((3, x.shape[1], _LANES), np.float32)
    rows = np.empty((14, _LANES), np.float32)
    low, high, span, inverse, sum_w, sum_x, sum_q = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6]
    sum_qq, sum_qx, usable, slope, start, error = rows[7], rows[8], rows[9], rows[10], rows[11], rows[12]
    best, xs, ws, qs = rows[13], turned[0], turned[1], turned[2]
    for first in range(0, x.shape[0], _LANES):
        lanes = _turn(x, w, first, xs, ws)
        _ranges(xs, ws, lanes, low, high, sum_w, sum_x)
        best[:] = np.float32(np.inf)
        for t in range(tries.shape[0]):
            for k in range(lanes):
                span[k] = max(high[k] - low[k], TINY)
                inverse[k] = tries[t] / span[k]
                sum_q[k] = _ZERO
                sum_qq[k] = _ZERO
                sum_qx[k] = _ZERO
                error[k] = _ZERO
            for i in range(x.shape[1]):
                for k in range(lanes):
                    q = _whole(inverse[k] * (xs[i, k] - low[k]), _ZERO, top)
                    qs[i, k] = q
                    sum_q[k] += ws[i, k] * q
                    sum_qq[k] += ws[i, k] * q * q
                    sum_qx[k] += ws[i, k] * q * xs[i, k]
            for k in range(lanes):
                determinant = sum_w[k] * sum_qq[k] - sum_q[k] * sum_q[k]
                minimum = (sum_qq[k] * sum_x[k] - sum_q[k] * sum_qx[k]) / determinant
                scale = (sum_w[k] * sum_qx[k] - sum_x[k] * sum_q[k]) / determinant
                scale = sum_qx[k] / sum_qq[k] if minimum > _ZERO else scale
                minimum = _ZERO if minimum > _ZERO else minimum
                slope[k] = scale if t > 0 else span[k] / top
                start[k] = minimum if t > 0 else low[k]
                usable[k] = determinant if t > 0 else np.float32(1)
            for i in range(x.shape[1]):
                for k in range(lanes):
                    difference = slope[k] * qs[i, k] + start[k] - xs[i, k]
                    error[k] += ws[i, k] * (abs(difference) if absolute else difference * difference)
            for k in range(lanes):
                better = (usable[k] > _ZERO) & (error[k] < best[k])
                best[k] = error[k] if better else best[k]
                low[k] = start[k] if better else low[k]
                found[first + k, 0] = slope[k] if better else found[first + k, 0]
        for k in range(lanes):
            found[first + k, 1] = -low[k]


def _turn(x: np.ndarray, w: np.ndarray, first: int, xs: np.ndarray, ws: np.ndarray) -> int:
    """Lay rows `first`... of x, w, float32 [m, size], into columns of xs, ws, float32 [size, 64]; return how many."""
    lanes = min(_LANES, x.shape[0] - first)
    for k in range(lanes):
        for i in range(x.shape[1]):
            xs[i, k] = x[first + k, i]
            ws[i, k] = w[first + k, i]
    return lanes


def _extremes(xs: np.ndarray, lanes: int, extreme: np.ndarray) -> None:
    """xs float32 [size, 64] -> extreme float32 [64]: each column's first value of largest magnitude, 1 for nothing."""
    extreme[:] = _ZERO
    for i in range(xs.shape[0]):
        for k in range(lanes):
            extreme[k] = xs[i, k] if abs(xs[i, k]) > abs(extreme[k]) else extreme[k]
    for k in range(lanes):
        extreme[k] = extreme[k] if abs(extreme[k]) >= TINY else np.float32(1)


def _ranges(
    xs: np.ndarray,
    ws: np.ndarray,
    lanes: int,
    low: np.ndarray,
    high: np.ndarray,
    sum_w: np.ndarray,
    sum_x: np.ndarray,
) -> None:
    """xs, ws float32 [size, 64] -> of each column the smallest value or 0, the largest, sums of w and w * x: [64]."""
    low[:] = _ZERO
    high[:] = xs[0]
    sum_w[:] = _ZERO
    sum_x[:] = _ZERO
    for i in range(xs.shape[0]):
        for k in range(lanes):
            low[k] = min(low[k], xs[i, k])
            high[k] = max(high[k], xs[i, k])
            sum_w[k] += ws[i, k]
            sum_x[k] += ws[i, k] * xs[i, k]


def _restart(
    lanes: int, numerator: np.float32, extreme: np.ndarray, inverse: np.ndarray, qx: np.ndarray, qq: np.ndarray
) -> None:
    """Set inverse to numerator / extreme and qx, qq to 0, all float32 [64]."""
    for k in range(lanes):
        inverse[k] = numerator / extreme[k]
        qx[k] = _ZERO
        qq[k] = _ZERO


def _take_better(lanes: int, qx: np.ndarray, qq: np.ndarray, scale: np.ndarray, best: np.ndarray) -> None:
    """Keep qx / qq in scale where that leaves less error than before; all float32 [64]."""
    for k in range(lanes):
        better = (qq[k] > _ZERO) & (qx[k] * qx[k] > best[k] * qq[k])
        scale[k] = qx[k] / qq[k] if better else scale[k]
        best[k] = scale[k] * qx[k] if better else best[k]


def _whole(steps: np.float32, bottom: np.float32, top: np.float32) -> np.float32:
    """Round float32 `steps` to the nearest whole number from `bottom` to `top`, ties to even; NaN gives `bottom`."""
    steps = steps if steps > bottom else bottom
    steps = steps if steps < top else top
    # Where the unit of float32 is 1, an addition rounds.
    return (steps + np.float32(3 << 22)) - np.float32(3 << 22)
