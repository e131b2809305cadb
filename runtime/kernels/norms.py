"""Normalisation.  Enters: float32 rows; leaves: rows of mean square 1 (and mean 0, of a layer norm) times a weight, as
float32 or as the int8 codes that matmul reads (activations.py), or added to other rows."""

from __future__ import annotations

from .activations import SINK_FIELDS, Sink, put, put_tail
from .elementwise import tasks
from .emit import Emitter
from .jit import Kernel
from .layouts import BLOCK, Correction
from .records import Record
from .values import F32, I64, Value, vec

# weight, bias: float32 [columns].  RMS norms have no bias.
NORM = Record("n_rows", "x", "x_stride", "columns", "weight", "bias", "epsilon", *SINK_FIELDS)
# x: rows of `heads` vectors of `columns` elements, one after the other; weight: float32 [columns], weight_step bytes
# from one head's to the next (0: all heads have the same).
HEAD_NORM = Record("n_rows", "x", "x_stride", "heads", "columns", "weight", "weight_step", "epsilon")

KINDS = ("rms", "layer")


class _Normed:
    """One row, normalised: x / sqrt(mean(x^2) + epsilon) of kind "rms" (Zhang and Sennrich 2019), of kind "layer" the
    same after its mean was taken off (Ba et al. 2016).

    ahead: bytes to the row that is asked for meanwhile (of 512 rows all take 10 to 15 % less time so, Zen 5).
    """

    def __init__(self, e: Emitter, kind: str, x: Value, columns: Value, epsilon: Value, ahead: Value | None = None):
        self.e, self.x, self.mean, self._ahead = e, x, e.const(F32, 0.0), ahead
        self._columns, self._is_centred = columns, False
        if kind == "layer":
            self.mean = self._sum_of(1) / columns.to(F32)
            self._is_centred = True
        self.factor = 1.0 / e.sqrt(self._sum_of(2) / columns.to(F32) + epsilon)

    def _load(self, at: Value, n: int) -> Value:
        v = self.e.load(at, vec(F32, n))
        return v - (self.mean.splat(n) if n > 1 else self.mean) if self._is_centred else v

    def _sum_of(self, power: int) -> Value:
        """The sum of the elements, or of their squares."""
        e, width = self.e, self.e.target.lanes
        wide = self._columns // width * width
        sums = e.var(e.zero(vec(F32, width)))
        with e.loop(0, wide, width) as k:
            if self._ahead is not None:
                e.prefetch(self.x + self._ahead + k * 4, 4 * width)
            v = self._load(self.x + k * 4, width)
            sums.set(e.fma(v, v, sums.value) if power == 2 else sums.value + v)
        total = e.var(e.sum(sums.value))
        with e.loop(wide, self._columns) as k:
            v = self._load(self.x + k * 4, 1)
            total.set(e.fma(v, v, total.value) if power == 2 else total.value + v)
        return total.value

    def at(self, column: Value, n: int, weight: Value, bias: Value | None) -> Value:
        """Columns column..column+n-1, times weight, plus bias."""
        factor = self.factor.splat(n) if n > 1 else self.factor
        y = self._load(self.x + column * 4, n) * factor * self.e.load(weight + column * 4, vec(F32, n))
        return y if bias is None else y + self.e.load(bias + column * 4, vec(F32, n))


def norm(
    e: Emitter, kind: str, add: bool, float32: bool, codes: bool, corrections: tuple[Correction, ...], shared: int
) -> None:
    """Program step: rows normalised.  Record: NORM.

    kind: one of KINDS.  add: the float32 rows `out` get the result added to what they hold.
    """
    sink = Sink(float32, codes, corrections, shared)
    a = NORM.read(e, e.args[0])
    epsilon, blocks = a.float32("epsilon"), a.columns // BLOCK
    bias = a.bias if kind == "layer" else None
    n_rows = e.load(a.n_rows, I64)
    with tasks(e, n_rows, 1) as row:
        ahead = e.select(row + 1 < n_rows, a.x_stride, 0)
        normed = _Normed(e, kind, a.x + row * a.x_stride, a.columns, epsilon, ahead)

        def element(column: Value, n: int) -> Value:
            y = normed.at(column, n, a.weight, bias)
            return e.load(a.out + row * a.out_stride + column * 4, vec(F32, n)) + y if add else y

        with e.loop(0, blocks, sink.columns // BLOCK) as block:
            put(e, sink, a, row, block, lambda b: element(b * BLOCK, BLOCK))
        put_tail(e, sink, a, row, blocks * BLOCK, lambda k: element(k, 1))


def head_norm(e: Emitter, kind: str) -> None:
    """Program step: each head of each row normalised on its own, in place.  Record: HEAD_NORM."""
    a, width = HEAD_NORM.read(e, e.args[0]), e.target.lanes
    epsilon, wide = a.float32("epsilon"), a.columns // width * width
    with tasks(e, e.load(a.n_rows, I64) * a.heads, 1) as task:
        row, head = task // a.heads, task % a.heads
        x, weight = a.x + row * a.x_stride + head * (a.columns * 4), a.weight + head * a.weight_step
        normed = _Normed(e, kind, x, a.columns, epsilon)
        with e.loop(0, wide, width) as k:
            e.store(normed.at(k, width, weight, None), x + k * 4)
        with e.loop(wide, a.columns) as k:
            e.store(normed.at(k, 1, weight, None), x + k * 4)


def norm_kernel(kind: str, sink: Sink, add: bool = False) -> Kernel:
    return Kernel(norm, (kind, add, *sink.params()))


def head_norm_kernel(kind: str) -> Kernel:
    return Kernel(head_norm, (kind,))
