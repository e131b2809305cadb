"""Mixtures of experts (Shazeer et al. 2017).  Enters: a router's logits and normalised rows; leaves: for each row the
experts it goes to and their weights, the rows in the order in which the experts' products read them, and the weighted
sums of what these gave.

A pair is a row and one of the experts that it goes to: pair row * used + j, j the rank of the expert.  Each pair has a
place, a row of the buffers between gather and combine.  The places of an expert follow each other and begin a tile
(activations.py), so that one product can take them together.  A row's sum goes in order of rank, whatever the batch.

Heads that have a matrix each are experts of which every row uses all, each with a part of the row.
"""

from __future__ import annotations

from .activations import SINK_FIELDS, Sink
from .elementwise import TASK_BLOCKS, by_block, tasks
from .emit import Emitter
from .functions import sigmoid
from .jit import Kernel
from .layouts import Correction
from .records import Fields, Record
from .values import F32, I32, I64, Value, vec

MAX_EXPERTS = 512  # as llama.cpp
SCORES = ("softmax", "sigmoid")
_LEAST_SUM = 1e-20  # added where sigmoids are normalised: they may all be zero

# logits: float32 rows of `stride` bytes, a multiple of 64; bias: float32 [n_experts], padded to 64 elements; experts
# int64 and weights float32 [n_rows, used].
ROUTE = Record(
    "n_rows", "logits", "stride", "bias", "n_experts", "used", "scale", "groups", "groups_used", "experts", "weights"
)
# experts, places: int64 [pairs]; cursors: int64 [n_experts]; n_pairs: where their number goes; blocks: int64 number of
# blocks, then expert, first place and end of each, which has at most token_block rows.  tile: of the target.
LAY_OUT = Record(
    "n_rows", "used", "n_experts", "experts", "places", "cursors", "n_pairs", "blocks", "tile", "token_block"
)
# x_step, out_step: bytes from what a row gives to (or gets of) its first pair to the next one's; 0: all get the same.
GATHER = Record("n_pairs", "places", "used", "x", "x_stride", "x_step", "columns", *SINK_FIELDS)
SCATTER = Record("n_pairs", "places", "used", "x", "x_stride", "x_step", "columns", "out", "out_stride", "out_step")
COMBINE = Record("n_rows", "places", "weights", "used", "y", "y_stride", "columns", "out", "out_stride")


def route(e: Emitter, scores: str, biased: bool, normalised: bool, grouped: bool) -> None:
    """Program step: the `used` experts of the highest scores, the first of equal ones.  Record: ROUTE.

    scores: "softmax" over all experts, or each one's own "sigmoid"; biased (of sigmoids): a bias has a say in who is
    taken, but not in the weights (DeepSeek-AI 2024, V3).  Weights are the scores times `scale`; normalised: over their
    sum first (with softmax that is a softmax over those taken).  grouped: of the `groups`, which have as many experts
    each, only the best `groups_used` are taken from; a group is as good as its best expert, with sigmoids as its two
    best together (DeepSeek-AI 2024, V2 and V3).  A task is a row.
    """
    a, lanes = ROUTE.read(e, e.args[0]), e.target.lanes
    wide = vec(F32, lanes)
    left = e.scratch(4 * MAX_EXPERTS)  # what decides; -infinity for those taken
    lane, nothing = e.const(vec(I32, lanes), list(range(lanes))), e.const(wide, float("-inf"))

    def vectors(x: Value, first: Value, otherwise: Value) -> Value:
        """x, which begins with expert `first`, where there are experts."""
        return e.select(lane + first.to(I32).splat(lanes) < a.n_experts.to(I32).splat(lanes), x, otherwise)

    with tasks(e, e.load(a.n_rows, I64), 1) as row:
        logits = a.logits + row * a.stride
        with e.loop(0, a.n_experts, lanes) as i:
            x = e.load(logits + i * 4, wide)
            if biased:
                x = sigmoid(e, x) + e.load(a.bias + i * 4, wide)
            e.store(vectors(x, i, nothing), left + i * 4)
        if grouped:
            _leave_groups(e, a, left, 2 if scores == "sigmoid" else 1)
        pairs = row * a.used
        with e.loop(pairs, pairs + a.used) as pair:
            expert = _first_of_the_largest(e, left, a.n_experts)
            e.store(e.const(F32, float("-inf")), left + expert * 4)
            e.store(expert, a.experts + pair * 8)

        top = e.load(logits + e.load(a.experts + pairs * 8, I64) * 4, F32)  # without a bias: the largest

        def score(x: Value) -> Value:
            return sigmoid(e, x) if scores == "sigmoid" else e.exp(x - top.splat(x.lanes))

        total = e.var(e.const(F32, _LEAST_SUM if normalised and scores == "sigmoid" else 0.0))
        with e.loop(pairs, pairs + a.used) as pair:
            weight = score(e.load(logits + e.load(a.experts + pair * 8, I64) * 4, F32))
            e.store(weight, a.weights + pair * 4)
            if normalised:
                total.set(total.value + weight)
        if not normalised and scores == "softmax":
            sums = e.var(e.zero(wide))
            with e.loop(0, a.n_experts, lanes) as i:
                sums.set(sums.value + vectors(score(e.load(logits + i * 4, wide)), i, e.zero(wide)))
            total.set(e.sum(sums.value))
        factor = a.float32("scale")
        if normalised or scores == "softmax":
            factor = factor / total.value
        with e.loop(pairs, pairs + a.used) as pair:
            e.store(e.load(a.weights + pair * 4, F32) * factor, a.weights + pair * 4)


def _leave_groups(e: Emitter, a: Fields, left: Value, best: int) -> None:
    """Make float32 left [n_experts] -infinity outside of the groups that are taken from.

    best: 1 or 2, how many of a group's experts say how good it is.
    """
    size, lanes, nothing = a.n_experts // a.groups, e.target.lanes, e.const(F32, float("-inf"))
    good = e.scratch(4 * MAX_EXPERTS)
    with e.loop(0, a.groups, lanes) as i:
        e.store(nothing.splat(lanes), good + i * 4)
    with e.loop(0, a.groups) as group:
        first, second = e.var(nothing), e.var(nothing)
        with e.loop(group * size, (group + 1) * size) as expert:
            x = e.load(left + expert * 4, F32)
            second.set(e.max(e.min(x, first.value), second.value))
            first.set(e.max(x, first.value))
        e.store(first.value + second.value if best == 2 else first.value, good + group * 4)
    with e.loop(0, a.groups_used):
        e.store(nothing, good + _first_of_the_largest(e, good, a.groups) * 4)
    with e.loop(0, a.n_experts) as expert, e.when(e.load(good + expert // size * 4, F32) > nothing):
        e.store(nothing, left + expert * 4)


def _first_of_the_largest(e: Emitter, values: Value, n: Value) -> Value:
    """The index of the largest of n floats, in whole vectors with -infinity behind their end; always below n."""
    lanes = e.target.lanes
    lane = e.const(vec(I32, lanes), list(range(lanes)))
    best, place = e.var(e.const(vec(F32, lanes), float("-inf"))), e.var(e.zero(vec(I32, lanes)))
    with e.loop(0, n, lanes) as i:
        x = e.load(values + i * 4, vec(F32, lanes))
        is_better = x > best.value  # never of NaN
        place.set(e.select(is_better, lane + i.to(I32).splat(lanes), place.value))
        best.set(e.select(is_better, x, best.value))
    is_largest = best.value >= e.largest(best.value).splat(lanes)
    candidates = e.select(is_largest, place.value, MAX_EXPERTS)
    return e.min(e.reduce(candidates, e.min).to(I64), n - 1)


def lay_out(e: Emitter) -> None:
    """Program step: a place for each pair, those of an expert in order of rows; by one thread.  Record: LAY_OUT."""
    a = LAY_OUT.read(e, e.args[0])
    with e.when(e.atomic_add(e.args[3], e.i64(1)).equals(0)):
        pairs = e.load(a.n_rows, I64) * a.used
        e.store(pairs, a.n_pairs)
        with e.loop(0, a.n_experts) as i:
            e.store(e.i64(0), a.cursors + i * 8)
        with e.loop(0, pairs) as pair:
            _next(e, a, pair)
        place, block = e.var(e.i64(0)), e.var(e.i64(0))
        with e.loop(0, a.n_experts) as expert:
            cursor = a.cursors + expert * 8
            end = place.value + e.load(cursor, I64)
            e.store(place.value, cursor)
            with e.loop(place.value, end, a.token_block) as first:
                at = a.blocks + 8 + block.value * 24
                for k, field in enumerate((expert, first, e.min(first + a.token_block, end))):
                    e.store(field, at + 8 * k)
                block.set(block.value + 1)
            place.set((end + a.tile - 1) // a.tile * a.tile)
        e.store(block.value, a.blocks)
        with e.loop(0, pairs) as pair:
            e.store(_next(e, a, pair), a.places + pair * 8)


def _next(e: Emitter, a: Fields, pair: Value) -> Value:
    """Count up the cursor of the pair's expert; return what it was."""
    cursor = a.cursors + e.load(a.experts + pair * 8, I64) * 8
    was = e.load(cursor, I64)
    e.store(was + 1, cursor)
    return was


def gather(e: Emitter, float32: bool, codes: bool, corrections: tuple[Correction, ...], shared: int) -> None:
    """Program step: each pair's row, at its place, as the experts read it.  Record: GATHER."""
    a = GATHER.read(e, e.args[0])

    def element(pair: Value, column: Value, n: int) -> Value:
        row = a.x + pair // a.used * a.x_stride + pair % a.used * a.x_step
        return e.load(row + column * 4, vec(F32, n))

    def place(pair: Value) -> Value:
        return e.load(a.places + pair * 8, I64)

    by_block(e, Sink(float32, codes, corrections, shared), a, e.load(a.n_pairs, I64), element, place)


def scatter(e: Emitter, placed: bool) -> None:
    """Program step: what is in each pair's place, or (not placed) in its part of a row of x, into its part of a row.

    Record: SCATTER.
    """
    a, width = SCATTER.read(e, e.args[0]), e.target.lanes
    groups = (a.columns + (width - 1)) // width
    with tasks(e, e.load(a.n_pairs, I64) * groups, TASK_BLOCKS) as task:
        pair, first = task // groups, task % groups * width
        row, rank = pair // a.used, pair % a.used
        x = a.x + (e.load(a.places + pair * 8, I64) * a.x_stride if placed else row * a.x_stride + rank * a.x_step)
        out = a.out + row * a.out_stride + rank * a.out_step
        with e.when(first + width <= a.columns):
            e.copy(x + first * 4, out + first * 4, vec(F32, width))
        with e.when(first + width > a.columns), e.loop(first, a.columns) as column:
            e.copy(x + column * 4, out + column * 4, F32)


def combine(e: Emitter) -> None:
    """Program step: out += the weighted sum of what each row's experts gave.  Record: COMBINE."""
    a, width = COMBINE.read(e, e.args[0]), e.target.lanes
    groups = (a.columns + (width - 1)) // width

    def add_sum(row: Value, column: Value, n: int) -> None:
        total = e.var(e.zero(vec(F32, n)))
        with e.loop(row * a.used, (row + 1) * a.used) as pair:
            y = a.y + e.load(a.places + pair * 8, I64) * a.y_stride + column * 4
            total.set(e.fma(e.load(y, vec(F32, n)), e.broadcast(a.weights + pair * 4, F32, n), total.value))
        out = a.out + row * a.out_stride + column * 4
        e.store(e.load(out, vec(F32, n)) + total.value, out)

    with tasks(e, e.load(a.n_rows, I64) * groups, TASK_BLOCKS) as task:
        row, first = task // groups, task % groups * width
        with e.when(first + width <= a.columns):
            add_sum(row, first, width)
        with e.when(first + width > a.columns), e.loop(first, a.columns) as column:
            add_sum(row, column, 1)


def route_kernel(scores: str, biased: bool, normalised: bool, grouped: bool) -> Kernel:
    return Kernel(route, (scores, biased, normalised, grouped))


def lay_out_kernel() -> Kernel:
    return Kernel(lay_out)


def gather_kernel(sink: Sink) -> Kernel:
    return Kernel(gather, sink.params())


def scatter_kernel(placed: bool) -> Kernel:
    return Kernel(scatter, (placed,))


def combine_kernel() -> Kernel:
    return Kernel(combine)
