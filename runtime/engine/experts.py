"""A program's operations on mixtures of experts.  Enters: a router's logits and normalised rows; leaves: products of
each row with the experts that it goes to, and their weighted sums.  Experts that no row goes to are not read.

Between `gather` and `combine` a buffer's rows are places of pairs (kernels/experts.py), in order of experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..kernels import elementwise as ew
from ..kernels import experts as ex
from .buffers import Activations, Rows
from .steps import L2_BYTES, Blocks, Steps
from .weights import Matrix


@dataclass(frozen=True)
class Picked:
    """The experts of each row.  Addresses: weights float32 and places int64 of each pair, n_pairs their int64 count.

    n_places: rows that buffers of places have.
    """

    used: int
    weights: int
    places: int
    n_pairs: int
    blocks: Blocks
    n_places: int


class ExpertSteps(Steps):
    """The operations of a feed-forward layer of experts (pick, gather, linear_experts, activate_experts, combine), and
    of products with a matrix for each head (each_head, split_heads, linear_experts, join_heads)."""

    def pick(
        self, logits: Rows, used: int, into: tuple[Matrix, ...], *, scores: str = "softmax", normalised: bool = True,
        scale: float = 1.0, bias: int = 0, groups: tuple[int, int] = (1, 1),
    ) -> Picked:  # fmt: skip
        """Take the `used` experts of each row by its router's logits, for the products `into` that follow.

        scores, normalised, scale: as kernels/experts.py route.  bias: address of float32 [experts] that is added to
        sigmoids where experts are taken; 0: none.  groups: how many there are, and how many are taken from.
        """
        experts, weights = self._route("picked", logits, used, scores, normalised, scale, bias, groups)
        return self._lay_out("picked", logits.columns, used, experts, weights, into)

    def _route(
        self, name: str, logits: Rows, used: int, scores: str, normalised: bool, scale: float, bias: int,
        groups: tuple[int, int] = (1, 1),
    ) -> tuple[int, int]:  # fmt: skip
        """Return the addresses of the experts and the weights of each pair.  name: of the buffers."""
        sizes = dict.fromkeys(("experts", "weights"), 8 * self._rows_now * used)
        at = {use: self._buffers.shared(f"{name} {use}", nbytes).address for use, nbytes in sizes.items()}
        self._add(
            ex.route_kernel(scores, bool(bias), normalised, groups[1] < groups[0]),
            ex.ROUTE.make(
                n_rows=self._count[self._counted], logits=logits.address, stride=logits.stride, bias=bias,
                n_experts=logits.columns, used=used, scale=float(scale), groups=groups[0], groups_used=groups[1], **at,
            ),
        )  # fmt: skip
        return at["experts"], at["weights"]

    def each_head(self, n_heads: int, into: tuple[Matrix, ...]) -> Picked:
        """Every row's heads as its experts, all of them, for products `into` that have a matrix for each head."""
        experts = np.tile(np.arange(n_heads, dtype=np.int64), self._max_rows)
        self._keep.append(experts)
        return self._lay_out("head", n_heads, n_heads, int(experts.ctypes.data), 0, into)

    def _lay_out(
        self, name: str, n_experts: int, used: int, experts: int, weights: int, into: tuple[Matrix, ...]
    ) -> Picked:
        """Give each pair its place.  experts, weights: addresses of int64 and float32 of each pair."""
        pairs = self._rows_now * used
        widest = max(w.columns * (4 if w.activations == "f32" else 1) for w in into)
        token_block = max(self._tile, L2_BYTES // widest // self._tile * self._tile)
        n_blocks = min(n_experts, pairs) + pairs // token_block
        # The last tile of an expert may hold a single row.
        n_places = (pairs + min(n_experts, pairs) * (self._tile - 1)) // self._tile * self._tile
        sizes = {"places": pairs, "n_pairs": 1, "cursors": n_experts, "blocks": 1 + 3 * n_blocks}
        at = {use: self._buffers.shared(f"{name} {use}", 8 * count).address for use, count in sizes.items()}
        self._add(
            ex.lay_out_kernel(),
            ex.LAY_OUT.make(
                n_rows=self._count[self._counted], used=used, n_experts=n_experts, experts=experts, tile=self._tile,
                token_block=token_block, **at,
            ),
        )  # fmt: skip
        blocks = Blocks(at["blocks"], token_block, used)
        return Picked(used, weights, at["places"], at["n_pairs"], blocks, n_places)

    def gather(self, x: Activations, picked: Picked, into: tuple[Matrix, ...]) -> Activations:
        """Each pair's row of x at its place, in the form that the experts `into` read."""
        assert x.rows is not None  # the router reads them
        return self._gather(x.rows, x.columns, 0, picked, into)

    def _gather(self, x: Rows, columns: int, step: int, picked: Picked, into: tuple[Matrix, ...]) -> Activations:
        """step: columns of x from one pair of a row to the next."""
        out = self._buffers.activations("gathered", picked.n_places, columns, into)
        none = {"out": 0, "out_stride": 0}
        written = [(out.sink, out.fields()), *((tiles.sink, none | tiles.fields()) for tiles in out.tiles[1:])]
        for sink, fields in written:
            self._add(
                ex.gather_kernel(sink),
                ex.GATHER.make(
                    n_pairs=picked.n_pairs, places=picked.places, used=picked.used, x=x.address, x_stride=x.stride,
                    x_step=4 * step, columns=columns, **fields,
                ),
            )  # fmt: skip
        return out

    def split_heads(self, x: Rows, heads: Picked, columns: int, step: int, into: tuple[Matrix, ...]) -> Activations:
        """Each head's `columns` columns of x, the first head's from the first on, the next one's `step` further."""
        return self._gather(x, columns, step, heads, into)

    def join_heads(self, y: Rows, heads: Picked, out: Rows, step: int) -> None:
        """What is in the heads' places of y goes to rows of out, the first head's to its first columns."""
        self._scatter(y, 0, heads, y.columns, out, step, placed=True)

    def copy_heads(self, x: Rows, x_step: int, heads: Picked, columns: int, out: Rows, step: int) -> None:
        """Each head's `columns` columns of x, x_step apart, go to rows of out."""
        self._scatter(x, x_step, heads, columns, out, step, placed=False)

    def _scatter(self, x: Rows, x_step: int, heads: Picked, columns: int, out: Rows, step: int, placed: bool) -> None:
        self._add(
            ex.scatter_kernel(placed),
            ex.SCATTER.make(
                n_pairs=heads.n_pairs, places=heads.places, used=heads.used, x=x.address, x_stride=x.stride,
                x_step=4 * x_step, columns=columns, out=out.address, out_stride=out.stride, out_step=4 * step,
            ),
        )  # fmt: skip

    def linear_experts(self, x: Activations, picked: Picked, *weights: Matrix, name: str = "experts") -> list[Rows]:
        """At each place its expert's x @ w.T (+ bias), for each tensor of experts.  name: of the buffers."""
        outs = [self._buffers.rows(f"{name}{i}", picked.n_places, w.rows) for i, w in enumerate(weights)]
        self._matmuls(x, zip(weights, outs, strict=True), picked.blocks)
        return outs

    def activate_experts(self, function: str, x: Rows, up: Rows, picked: Picked, into: tuple[Matrix]) -> Activations:
        """The gated layer's function(x, up), a name of kernels/functions.py, at each place."""
        assert (x.columns, x.stride) == (up.columns, up.stride)
        out = self._buffers.activations("gated experts", picked.n_places, x.columns, into)
        self._add(
            ew.activate_kernel(function, True, out.sink, indexed=True),
            ew.ACTIVATE.make(
                n_rows=picked.n_pairs, row_index=picked.places, x=x.address, up=up.address, x_stride=x.stride,
                columns=x.columns, **out.fields(),
            ),
        )  # fmt: skip
        return out

    def combine(self, hidden: Rows, y: Rows, picked: Picked) -> None:
        """hidden += the weighted sum of each row's places of y."""
        self._combine(hidden, y, picked.used, picked.places, picked.weights)

    def add_gated(self, hidden: Rows, y: Rows, gate: Rows) -> None:
        """hidden += sigmoid(gate) * y, gate having one column: the single expert of each row, weighed by its score."""
        places = np.arange(self._max_rows, dtype=np.int64)
        self._keep.append(places)
        _, weights = self._route("gate", gate, 1, "sigmoid", False, 1.0, 0)
        self._combine(hidden, y, 1, int(places.ctypes.data), weights)

    def _combine(self, hidden: Rows, y: Rows, used: int, places: int, weights: int) -> None:
        """places, weights: addresses of int64 and float32 of each pair."""
        self._add(
            ex.combine_kernel(),
            ex.COMBINE.make(
                n_rows=self._count[self._counted], places=places, weights=weights, used=used, y=y.address,
                y_stride=y.stride, columns=y.columns, out=hidden.address, out_stride=hidden.stride,
            ),
        )  # fmt: skip
