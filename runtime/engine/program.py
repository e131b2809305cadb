"""A forward pass as a table of kernel calls.  Enters: a model's description (models/<arch>.py calls the builder's
methods in order); leaves: a `Program` (steps.py).  experts.py has the operations on mixtures of experts.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ..kernels import attention as attn
from ..kernels import elementwise as ew
from ..kernels import norms, rope
from .adapters import LowRank
from .batch import N_ITEMS, N_OUTPUT_ITEMS, N_OUTPUTS, N_ROWS
from .buffers import Activations, Rows
from .experts import ExpertSteps
from .weights import Matrix, Norm, Table


class Builder(ExpertSteps):
    """The operations that a model's description calls, each a step or a few.

    For up to `max_rows` rows of which `max_outputs` give logits.
    """

    _last: tuple[int, Rows, Norm] | None = None  # the output norm: how many calls are before it, what it reads

    # -- rows ---------------------------------------------------------------------------------------------------------

    def embed(self, table: Table, scale: float = 1.0) -> Rows:
        """The hidden state: for each token its row of `table`, times scale."""
        out = self._rows("hidden", table.columns)
        self._embed(table, self._inputs.tokens, out, scale, add=False)
        for change in self._adapters.of_embedding():
            assert isinstance(change.a, Table)
            low = self._rows("low rank", change.a.columns)
            count, _ = self._adapters.scales.addresses(change.index, N_ROWS)
            self._embed(change.a, self._inputs.tokens, low, scale, add=False, count=count)
            self._add_low_rank(change, low, out)
        return out

    def embed_positions(self, hidden: Rows, table: Table) -> None:
        """hidden += for each row, the row of `table` that its position in the sequence names.

        Raises UsageError when the context is longer than the table.
        """
        context = self._inputs.division.context
        if context > table.rows:
            raise UsageError(f"a context of {context} tokens; this model has positions for {table.rows} (-c)")
        self._embed(table, self._inputs.positions, hidden, 1.0, add=True)

    def embed_same(self, hidden: Rows, table: Table, row: int) -> None:
        """hidden += row `row` of `table`, the same for all."""
        index = np.full(self._max_rows, row, np.int64)
        self._keep.append(index)
        self._embed(table, index, hidden, 1.0, add=True)

    def _embed(
        self, table: Table, index: NDArray[np.int64], out: Rows, scale: float, add: bool, count: int | None = None
    ) -> None:
        self._add(
            ew.embed_kernel(table.layout.name, add),
            ew.EMBED.make(
                n_rows=count or self._count[N_ROWS], index=index.ctypes.data, table=table.address,
                row_bytes=table.row_bytes, columns=table.columns, scale=float(scale), out=out.address,
                out_stride=out.stride,
            ),
        )  # fmt: skip

    def unnormed(self, hidden: Rows, into: tuple[Matrix, ...]) -> Activations:
        """The hidden state itself in the form that the matrices `into` read."""
        out = self._activations("hidden", hidden.columns, into)
        for tiles in out.tiles:
            self._quantize(hidden, tiles)
        return out

    def norm(self, x: Rows, norm: Norm, into: tuple[Matrix, ...], name: str = "normed") -> Activations:
        """Normalised rows of x in the form that the matrices `into` read.

        name: of the buffer, for results of one size that are wanted at the same time.
        """
        out = self._activations(name, x.columns, into)
        self._add(norms.norm_kernel(norm.kind, out.sink), self._norm_record(x, norm, out.fields()))
        return self._other_tiles(out)

    def output_norm(self, x: Rows, norm: Norm, into: tuple[Matrix, ...]) -> Activations:
        """As norm, of the rows that give logits; the buffers of what follows have room for max_outputs rows."""
        self._rows_now = self._max_outputs
        self._last = (len(self._calls), x, norm)
        return self.norm(x, norm, into)

    def end_at_output_norm(self) -> Rows:
        """End the program at its output norm instead; return that one's float32 rows [max_rows, n_embd].

        For a second program of the same layers, after `finish`.
        """
        assert self._last is not None
        before, x, norm = self._last
        del self._calls[before:]
        out = Activations(x.columns, self._buffers.rows("embeddings", self._max_rows, x.columns), ())
        self._add(norms.norm_kernel(norm.kind, out.sink), self._norm_record(x, norm, out.fields()))
        assert out.rows is not None
        return out.rows

    def _norm_record(self, x: Rows, norm: Norm, out: dict[str, int]) -> NDArray[np.int64]:
        return norms.NORM.make(
            n_rows=self._count[self._counted], x=x.address, x_stride=x.stride, columns=x.columns, weight=norm.weight,
            bias=norm.bias, epsilon=norm.epsilon, **out,
        )  # fmt: skip

    def norm_rows(self, x: Rows, norm: Norm, into: tuple[Matrix, ...] = ()) -> Activations:
        """Normalise x in place; return it in the form that the matrices `into` read."""
        out = self._buffers.activations("normed", self._rows_now, x.columns, into, rows=x)
        self._add(norms.norm_kernel(norm.kind, out.sink), self._norm_record(x, norm, out.fields()))
        return self._other_tiles(out)

    def norm_add(self, hidden: Rows, x: Rows, norm: Norm) -> None:
        """hidden += normalised x."""
        out = Activations(hidden.columns, hidden, ())
        self._add(norms.norm_kernel(norm.kind, out.sink, add=True), self._norm_record(x, norm, out.fields()))

    def norm_heads(self, x: Rows, head_dim: int, norm: Norm) -> None:
        """Normalise each head of x in place."""
        self._add(
            norms.head_norm_kernel(norm.kind),
            norms.HEAD_NORM.make(
                n_rows=self._count[self._counted], x=x.address, x_stride=x.stride, heads=x.columns // head_dim,
                columns=head_dim, weight=norm.weight, weight_step=norm.head_step, epsilon=norm.epsilon,
            ),
        )  # fmt: skip

    def activate(self, function: str, x: Rows, up: Rows | None, into: tuple[Matrix, ...]) -> Activations:
        """function(x), a name of kernels/functions.py, times `up` in a gated layer."""
        assert up is None or (x.columns, x.stride) == (up.columns, up.stride)
        out = self._activations("gated", x.columns, into)
        self._add(
            ew.activate_kernel(function, up is not None, out.sink),
            ew.ACTIVATE.make(
                n_rows=self._count[self._counted], row_index=0, x=x.address, up=up.address if up else 0,
                x_stride=x.stride, columns=x.columns, **out.fields(),
            ),
        )  # fmt: skip
        return self._other_tiles(out)

    def add(self, hidden: Rows, x: Rows, scale: float = 1.0) -> None:
        """hidden += scale * x."""
        self._add(
            ew.add_kernel(),
            ew.ADD.make(
                n_rows=self._count[self._counted], x=x.address, x_stride=x.stride, columns=x.columns,
                scale=float(scale), out=hidden.address, out_stride=hidden.stride,
            ),
        )  # fmt: skip

    def rescale(self, x: Rows, scale: float = 1.0, cap: float = 0.0) -> None:
        """x *= scale, in place; then cap * tanh(x / cap) where there is a cap."""
        self._add(
            ew.rescale_kernel(bool(cap)),
            ew.RESCALE.make(
                n_rows=self._count[self._counted], x=x.address, x_stride=x.stride, columns=x.columns,
                scale=float(scale), cap=float(cap), out=x.address, out_stride=x.stride,
            ),
        )  # fmt: skip

    def clamp(self, x: Rows, limit: float) -> None:
        """Hold x inside +-limit, in place."""
        self._add(
            ew.clamp_kernel(),
            ew.CLAMP.make(
                n_rows=self._count[self._counted], x=x.address, x_stride=x.stride, columns=x.columns,
                limit=float(limit), out=x.address, out_stride=x.stride,
            ),
        )  # fmt: skip

    def rows(self, name: str, columns: int) -> Rows:
        """Rows that other operations fill."""
        return self._rows(name, columns)

    def ready(self, x: Rows, name: str, into: tuple[Matrix, ...]) -> Activations:
        """x, the rows of this name, in the form that the matrices `into` read; for none of them, as it is."""
        if not into:
            return Activations(x.columns, x, ())
        found = self._activations(name, x.columns, into)
        for tiles in found.tiles:
            self._quantize(x, tiles)
        return found

    # -- products -----------------------------------------------------------------------------------------------------

    def linear(
        self, x: Activations, *weights: Matrix, name: str = "linear", for_outputs: tuple[Matrix, ...] = ()
    ) -> tuple[Rows, ...]:
        """x @ w.T (+ bias) for each matrix; matrices of one type share a step.

        name: of the buffers.  for_outputs: those of the matrices whose products only rows that give logits need.
        """
        outs = tuple(self._rows(f"{name}{i}", w.rows) for i, w in enumerate(weights))
        for some, count in ((False, None), (True, self._count[N_OUTPUTS])):
            pairs = [(w, out) for w, out in zip(weights, outs, strict=True) if (w in for_outputs) == some]
            self._matmuls(x, pairs, count=count)
        for w, out in zip(weights, outs, strict=True):
            self._adapt(x, w, out)
        return outs

    def linear_gated(
        self, x: Activations, gate: Matrix, up: Matrix, function: str, into: tuple[Matrix, ...]
    ) -> Activations:
        """function(x @ gate.T) * (x @ up.T), of a gated layer, for the matrices `into`."""
        alike = (gate.layout, gate.activations, gate.rows) == (up.layout, up.activations, up.rows)
        if not alike or self._adapters.change_any((gate, up)):
            gates, ups = self.linear(x, gate, up)
            return self.activate(function, gates, ups, into)
        out = self._rows("gated", up.rows)
        self._matmul(x, [(gate, out), (up, out)], add=False, function=function)
        return self.ready(out, "gated", into)

    def linear_add(self, hidden: Rows, x: Activations, weight: Matrix) -> None:
        """hidden += x @ weight.T (+ bias)."""
        self._matmul(x, [(weight, hidden)], add=True)
        self._adapt(x, weight, hidden)

    def _adapt(self, x: Activations, weight: Matrix, out: Rows) -> None:
        """out += what the adapters add to x @ weight.T."""
        for change in self._adapters.of_matrix(weight.name):
            assert isinstance(change.a, Matrix)
            low = self._rows("low rank", change.a.rows)
            count, _ = self._adapters.scales.addresses(change.index, self._counted)
            self._matmul(x, [(change.a, low)], add=False, count=count)
            self._add_low_rank(change, low, out)

    def _add_low_rank(self, change: LowRank, low: Rows, out: Rows) -> None:
        """out += each row of `low` times its scale, @ change.b.T."""
        count, scales = self._adapters.scales.addresses(change.index, self._counted)
        self._add(
            ew.scale_rows_kernel(),
            ew.SCALE_ROWS.make(
                n_rows=count, scales=scales, x=low.address, x_stride=low.stride, columns=low.columns,
                out=low.address, out_stride=low.stride,
            ),
        )  # fmt: skip
        self._matmul(Activations(low.columns, low, ()), [(change.b, out)], add=True, count=count)

    # -- attention ----------------------------------------------------------------------------------------------------

    def rope_store(
        self, layer: int, query: Rows, key: Rows, value: Rows, head_dim: int, rotation: int | None = 0, first: int = 0
    ) -> None:
        """Rotate query and key rows, put keys and values into the layer's pages.

        After the last layer's are there, nothing reads the rows that give no logits: from here on only the others
        count, which come first (of an encoder all give some).  1B parameters in 16 layers: prompts take 6 % less time.

        rotation: which of the model's, None: they stay.  first: column of a head with which its rotated ones begin.
        """
        inputs, (keys, values) = self._inputs, self._pool.layers[layer]
        n_rot, halves, cosine, sine = 0, False, self._zeros, self._zeros
        if rotation is not None:
            n_rot, halves = inputs.rotations[rotation].n_rot, inputs.rotations[rotation].halves
            cosine, sine = inputs.angles[rotation]
        assert key.stride == value.stride
        self._add(
            rope.rope_kernel(head_dim, n_rot, halves, self._pool.kv, first),
            rope.ROPE.make(
                n_rows=self._count[N_ROWS], query=query.address, query_stride=query.stride, key=key.address,
                value=value.address, key_stride=key.stride, n_heads=query.columns // head_dim,
                n_kv_heads=key.columns // head_dim, cosine=cosine.ctypes.data, sine=sine.ctypes.data,
                pages=inputs.pages.ctypes.data, slots=inputs.slots.ctypes.data, keys=keys, values=values,
            ),
        )  # fmt: skip
        if layer == len(self._pool.layers) - 1:
            self._counted = N_OUTPUTS

    def attention(
        self, layer: int, query: Rows, n_kv_heads: int, head_dim: int, into: tuple[Matrix, ...], *,
        scale: float | None = None, window: int = 0, cap: float = 0.0, slopes: NDArray[np.float32] | None = None,
        sinks: NDArray[np.float32] | None = None,
    ) -> Activations:  # fmt: skip
        """softmax(scale * q k^T) v over the positions of each row's sequence up to its own.

        An encoder's rows see all positions of their sequence.  scale: None for 1 / sqrt(head_dim).  window: only the
        `window` nearest, its own counted, on either side (0: all).  cap, slopes, sinks: float32 [heads], as in
        kernels/attention.py Shape (0 or None: without).  into: nothing where the float32 rows are wanted.
        """
        out, (keys, values) = self._rows("attended", query.columns), self._pool.layers[layer]
        shape = attn.Shape(
            head_dim, query.columns // head_dim // n_kv_heads, self._pool.kv, bool(window), slopes is not None,
            bool(cap), sinks is not None, self._inputs.division.causal,
        )  # fmt: skip
        to_base_2 = math.log2(math.e)
        bent, sunk = (self._zeros if v is None else (v * to_base_2).astype(np.float32) for v in (slopes, sinks))
        items = N_ITEMS if self._counted == N_ROWS else N_OUTPUT_ITEMS
        chunks = self._inputs.division.partials
        partials = self._buffers.shared("partials", chunks * n_kv_heads * shape.partial_bytes(self._lanes))
        counters = self._buffers.shared("counters", chunks * n_kv_heads * 8)
        workspace = self._buffers.shared("workspace", self._threads * shape.workspace_bytes(self._lanes))
        self._keep += [bent, sunk]
        self._add(
            attn.attention_kernel(shape),
            attn.ATTENTION.make(
                n_items=self._count[items], items=self._inputs.items.ctypes.data, query=query.address,
                query_stride=query.stride, n_kv_heads=n_kv_heads, keys=keys, values=values, out=out.address,
                out_stride=out.stride, scale=(1 / math.sqrt(head_dim) if scale is None else scale) * to_base_2,
                window=window, slopes=bent.ctypes.data, cap=cap * to_base_2, sinks=sunk.ctypes.data,
                workspace=workspace.address, partials=partials.address, counters=counters.address,
            ),
        )  # fmt: skip
        return self.ready(out, "attended", into)
