"""Attention.  Enters: float32 query rows and pages of keys and values; leaves: float32 rows, one head after the other.

A task is a tile of consecutive rows of a sequence by one KV head, or part of the positions of one row.  The rows of a
tile, and the query heads that share a KV head, read each key and value once: a tile with several blocks of queries
brings each page to float32 first.  Positions go in chunks of 256, by position alone: each chunk has a softmax of its
own, and the chunks join in order, so a row's result is the same bits whatever its tile, and whoever took which chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from .emit import Emitter
from .functions import tanh
from .jit import Kernel
from .layouts import BLOCK
from .page_format import PAGE, Ahead, F32Pages, PageFormat
from .pages import PAGE_FORMATS
from .records import Fields, Record
from .softmax import HIDDEN, State, state_bytes, weigh
from .values import F16, F32, I32, I64, Value, vec

CHUNK = 256  # positions with one softmax: what one task of a split row has at least
TILE_QUERIES = 128  # of one task, at most: they share what it costs to bring a page to float32
UNROLL = 4  # positions a turn
UNPACK_FROM = 3  # blocks of queries from which that is worth while

# items int64 [n_items, 8]: see ITEM.  slopes, sinks float32 [heads], cap: times log2(e).  workspace: workspace_bytes a
# thread.  partials: a state per chunk, KV head and query of a row; counters int64 [chunks, n_kv_heads], zero.
ATTENTION = Record(
    "n_items", "items", "query", "query_stride", "n_kv_heads", "keys", "values", "out", "out_stride", "scale", "window",
    "slopes", "cap", "sinks", "workspace", "partials", "counters",
)  # fmt: skip
# Rows row..row+rows-1 of the batch, the first at `position`, whose sequence has its int64 page offsets at `pages`,
# against chunks first..end-1 of positions.  seen: positions that the last row sees where it has no window.  slot: -1
# when these are all chunks of them, otherwise (rows is 1 then) the place of the row's first chunk in `partials`.
ITEM = Record("row", "rows", "position", "seen", "pages", "first", "end", "slot")


@dataclass(frozen=True)
class Shape:
    """One attention layer: heads of head_dim, `group` query heads a KV head, pages of type `kv`.

    causal: a row sees the positions up to its own, otherwise all of its sequence (an encoder's); window: it sees only
    the `window` nearest of them, its own counted, on either side; slopes: a score gets slope * (position - own
    position) more (ALiBi, Press et al. 2022); capped: a score s becomes cap * tanh(s / cap) (Bello et al. 2016); sinks:
    a head's weights share their sum with e^sink, which no value goes with (Xiao et al. 2023).  Without them the kernel
    has no trace of any.
    """

    head_dim: int
    group: int
    kv: str
    window: bool = False
    slopes: bool = False
    capped: bool = False
    sinks: bool = False
    causal: bool = True

    @property
    def pages(self) -> PageFormat:
        return PAGE_FORMATS[self.kv](self.head_dim)

    @property
    def together(self) -> int:
        """Queries of one block, whose scores are in registers at once: a whole group where it fits."""
        if self.group <= 6:
            return self.group if self.group > 1 else 4
        return min(range(6, 2, -1), key=lambda n: -self.group % n)

    def queries(self, rows: int) -> int:
        """Queries of `rows` rows, filled up to whole blocks."""
        return -(-rows * self.group // self.together) * self.together

    @property
    def tile_rows(self) -> int:
        """Rows of one tile, at most."""
        return max(1, TILE_QUERIES // self.group)

    def partial_bytes(self, lanes: int) -> int:
        """Bytes of the states of one chunk and KV head of a row."""
        return self.queries(1) * state_bytes(lanes, self.head_dim)

    def workspace(self, lanes: int) -> dict[str, int]:
        """Bytes of each part of a thread's workspace."""
        queries, page = self.queries(self.tile_rows), F32Pages(self.head_dim).head_bytes
        states = queries * state_bytes(lanes, self.head_dim)
        parts = {
            "queries": queries * self.pages.query_bytes, "chunk": states, "total": states, "keys": page, "values": page,
            "scores": 4 * PAGE * self.together, "weights": 4 * PAGE * self.together * self.pages.scales,
        }  # fmt: skip
        return {name: -(-size // 64) * 64 for name, size in parts.items()}

    def workspace_bytes(self, lanes: int) -> int:
        return sum(self.workspace(lanes).values())


def attention(
    e: Emitter, head_dim: int, group: int, kv: str, window: bool, slopes: bool, capped: bool, sinks: bool, causal: bool
) -> None:
    """Program step.  The parameters are those of Shape.  Record: ATTENTION."""
    _Attention(e, Shape(head_dim, group, kv, window, slopes, capped, sinks, causal)).emit()


class _Attention:
    def __init__(self, e: Emitter, shape: Shape):
        self.e, self.shape, self.pages = e, shape, shape.pages
        self.wide = F32Pages(shape.head_dim)
        self.n, self.lanes = shape.together, e.target.lanes
        self.state = State(e, shape.head_dim)
        self.a: Fields = ATTENTION.read(e, e.args[0])
        at = self.a.workspace + e.args[1] * shape.workspace_bytes(self.lanes)
        self.at: dict[str, Value] = {}
        for name, size in shape.workspace(self.lanes).items():
            self.at[name] = at
            at = at + size

    def emit(self) -> None:
        """Few rows, which memory bounds, draw one task ahead, whose first keys they ask for at the end of theirs.

        After 16 positions (8 KV heads of 64, F16, Zen 5, two threads) a row then takes 5 to 6 us a layer instead of 8
        to 10; after 1024 as long as without.
        """
        e, a = self.e, self.a
        tasks = e.load(a.n_items, I64) * a.n_kv_heads
        ticket = e.var(e.atomic_add(e.args[3], e.i64(1)))
        with e.repeat_while() as go_on_if:
            go_on_if(ticket.value < tasks)
            item, head = self._find(tasks - 1 - ticket.value)  # the last rows of a prompt, which see most, first
            then, blocks = e.var(self._first_keys(item, head)), self._blocks(item)
            with e.when(blocks < UNPACK_FROM):
                ticket.set(e.atomic_add(e.args[3], e.i64(1)))
                with e.when(ticket.value < tasks):
                    then.set(self._first_keys(*self._find(tasks - 1 - ticket.value)))
            self._task(item, head, then.value)
            with e.when(blocks >= UNPACK_FROM):
                ticket.set(e.atomic_add(e.args[3], e.i64(1)))

    def _find(self, task: Value) -> tuple[Fields, Value]:
        """The item and the KV head of a task."""
        item = ITEM.read(self.e, self.a.items + task // self.a.n_kv_heads * (8 * ITEM.size))
        return item, task % self.a.n_kv_heads

    def _blocks(self, item: Fields) -> Value:
        """How many blocks an item's queries are."""
        return (item.rows * self.shape.group + (self.n - 1)) // self.n

    def _lowest(self, item: Fields) -> Value:
        """The first position that an item's first row sees."""
        if not self.shape.window:
            return self.e.i64(0)
        lowest = item.position + 1 - self.a.window
        return self.e.select(lowest > 0, lowest, 0)

    def _keys(self, item: Fields, head: Value, page: Value) -> Value:
        """The address of a head's keys in the page of this number."""
        return self.a.keys + self.e.load(item.pages + page * 8, I64) + head * self.pages.head_bytes

    def _first_keys(self, item: Fields, head: Value) -> Value:
        first = self.e.max(self._lowest(item) // PAGE, item.first * (CHUNK // PAGE))
        return self._keys(item, head, first)

    def _task(self, item: Fields, head: Value, then: Value) -> None:
        """then: the address of the keys that few rows ask for at the end."""
        e, a, shape = self.e, self.a, self.shape
        queries, blocks = item.rows * shape.group, self._blocks(item)
        self._pack(item, head, queries, blocks)
        is_whole = item.slot < 0
        partial_bytes = shape.partial_bytes(self.lanes)
        partials = a.partials + (item.slot * a.n_kv_heads + head) * partial_bytes
        padded = blocks * self.n
        with e.when(is_whole), e.loop(0, padded) as q:
            self.state.clear(self.at["total"] + q * self.state.nbytes)
        lowest, last = self._lowest(item), self._last(item, item.rows - 1)
        first = e.max(lowest // CHUNK, item.first)
        end = e.min(item.end, last // CHUNK + 1)
        last_page = e.min(end * (CHUNK // PAGE) - 1, last // PAGE)
        with e.loop(first, end) as chunk:
            states = e.select(is_whole, self.at["chunk"], partials + chunk * (a.n_kv_heads * partial_bytes))
            with e.loop(0, padded) as q:
                self.state.clear(states + q * self.state.nbytes)
            start = e.max(lowest // PAGE, chunk * (CHUNK // PAGE))
            with e.loop(start, e.min((chunk + 1) * (CHUNK // PAGE), last_page + 1)) as page:
                following = self._keys(item, head, e.min(page + 1, last_page))
                ahead = e.select(page.equals(last_page), then, following)
                self._page(item, head, page, queries, blocks, states, ahead)
            with e.when(is_whole), e.loop(0, padded) as q:
                self.state.merge(self.at["total"] + q * self.state.nbytes, states + q * self.state.nbytes)
        with e.when(is_whole):
            self._finish(item, head, queries)
        with e.when(item.slot >= 0):  # who comes last joins the chunks
            counter = a.counters + (item.slot * a.n_kv_heads + head) * 8
            chunks = (item.seen - 1) // CHUNK + 1
            done = e.atomic_add(counter, item.end - item.first) + (item.end - item.first)
            with e.when(done.equals(chunks)):
                e.store(e.i64(0), counter)
                with e.loop(0, queries) as q:
                    total = self.at["total"] + q * self.state.nbytes
                    self.state.clear(total)
                    with e.loop(lowest // CHUNK, last // CHUNK + 1) as chunk:
                        at = partials + chunk * (a.n_kv_heads * partial_bytes) + q * self.state.nbytes
                        self.state.merge(total, at)
                self._finish(item, head, queries)

    def _last(self, item: Fields, row: Value) -> Value:
        """The last position that row `row` of the item sees."""
        own = item.position + row
        if self.shape.causal:
            return own
        return self.e.min(item.seen, own + self.a.window) - 1 if self.shape.window else item.seen - 1

    def _place(self, item: Fields, head: Value, q: Value, stride: Value) -> Value:
        """Where query q of the item is in rows of `stride` bytes."""
        column = self._query_head(head, q) * (4 * self.shape.head_dim)
        return (item.row + q // self.shape.group) * stride + column

    def _query_head(self, head: Value, q: Value) -> Value:
        return head * self.shape.group + q % self.shape.group

    def _pack(self, item: Fields, head: Value, queries: Value, blocks: Value) -> None:
        """Bring the task's queries to the form that products with keys want; the last block repeats its last one."""
        e, a = self.e, self.a
        with e.loop(0, blocks * self.n) as q:
            source = a.query + self._place(item, head, e.min(q, queries - 1), a.query_stride)
            self.pages.pack_query(e, source, a.float32("scale"), self.at["queries"] + q * self.pages.query_bytes)

    def _finish(self, item: Fields, head: Value, queries: Value) -> None:
        e, a = self.e, self.a
        with e.loop(0, queries) as q:
            sink = e.load(a.sinks + self._query_head(head, q) * 4, F32) if self.shape.sinks else None
            out = a.out + self._place(item, head, q, a.out_stride)
            self.state.finish(self.at["total"] + q * self.state.nbytes, out, sink)

    def _page(
        self, item: Fields, head: Value, page: Value, queries: Value, blocks: Value, states: Value, then: Value
    ) -> None:
        """All queries of the task against one page; then: the address of the keys that are read next."""
        e, a, pages = self.e, self.a, self.pages
        keys = self._keys(item, head, page)
        values = a.values + (keys - a.keys)
        last_seen = self._last(item, item.rows - 1)
        ahead = Ahead(values, pages.head_bytes), Ahead(then, pages.head_bytes)
        is_wide = blocks >= UNPACK_FROM
        if self.shape.kv != "f32":
            with e.when(is_wide):
                self._unpack(keys, values, e.min(last_seen + 1 - page * PAGE, PAGE))

        def either(wide: Callable[[], None], direct: Callable[[], None]) -> None:
            if self.shape.kv != "f32":
                with e.when(is_wide):
                    wide()
                with e.when(blocks < UNPACK_FROM):
                    direct()
            else:
                direct()

        with e.loop(0, blocks) as block:
            first = block * self.n
            # own[i], last[i]: query i's own position and the last that it sees, counted from the page's start
            rows = [e.min(first + i, queries - 1) // self.shape.group for i in range(self.n)]
            own = [item.position + row - page * PAGE for row in rows]
            last = own if self.shape.causal else [self._last(item, row) - page * PAGE for row in rows]
            is_seen = last[-1] >= 0
            if self.shape.window:
                is_seen = is_seen & (own[0] - a.window < PAGE - 1)
            with e.when(is_seen):
                packed, scores = self.at["queries"] + first * pages.query_bytes, self.at["scores"]
                wide_keys = (self.wide, self.at["keys"]) if self.shape.kv == "f16" else (pages, keys)
                either(
                    lambda: wide_keys[0].dots(e, wide_keys[1], packed, self.n, scores, None),
                    lambda: pages.dots(e, keys, packed, self.n, scores, ahead[0]),
                )
                self._mask(head, first, own, last)
                mine, seen = states + first * self.state.nbytes, e.min(last[-1] + 1, PAGE)
                weigh(e, self.state, mine, self.n, scores)
                if pages.scales:
                    pages.weights(e, values, scores, self.n, self.at["weights"])
                either(
                    lambda: self._add_values(self.wide, self.at["values"], mine, seen, None),
                    lambda: self._add_values(pages, values, mine, seen, ahead[1]),
                )

    def _unpack(self, keys: Value, values: Value, seen: Value) -> None:
        """Bring the first `seen` values of a page to float32, and float keys too."""
        e, lanes = self.e, self.lanes
        if self.shape.kv == "f16":
            with e.loop(0, PAGE * self.shape.head_dim, lanes) as i:
                e.store(e.load(keys + i * 2, vec(F16, lanes)).to(F32), self.at["keys"] + i * 4)
        with e.loop(0, seen) as p:
            for column, width in self.pages.columns(lanes):
                value = self.pages.value(e, self.pages.row(e, values, p), column, width)
                e.store(value, self.at["values"] + p * (4 * self.shape.head_dim) + 4 * column)

    def _mask(self, head: Value, first: Value, own: list[Value], last: list[Value]) -> None:
        """Scores as the rows see them: capped, with ALiBi's slopes, without the positions hidden from them."""
        is_cut = last[0] < PAGE - 1
        if self.shape.window:
            is_cut = is_cut | (own[-1] >= self.a.window)
        if self.shape.capped:
            self._cap()
        if self.shape.slopes:
            self._bend(head, first, own)
        with self.e.when(is_cut):
            self._hide(own, last)

    def _hide(self, own: list[Value], last: list[Value]) -> None:
        """Give the positions that a query may not see a score that weighs nothing."""
        e, lanes = self.e, self.lanes
        lane = e.const(vec(I32, lanes), list(range(lanes)))
        with e.loop(0, PAGE, lanes) as position:
            for i in range(self.n):
                at = self.at["scores"] + position * 4 + 4 * PAGE * i
                is_seen = lane <= (last[i] - position).to(I32).splat(lanes)
                if self.shape.window:
                    is_seen = is_seen & (lane > (own[i] - position - self.a.window).to(I32).splat(lanes))
                score = e.load(at, vec(F32, lanes))
                e.store(e.select(is_seen, score, e.const(score.type, HIDDEN)), at)

    def _cap(self) -> None:
        """Keep the scores inside +-cap."""
        e, lanes = self.e, self.lanes
        cap = self.a.float32("cap").splat(lanes)
        with e.loop(0, PAGE * self.n, lanes) as i:
            at = self.at["scores"] + i * 4
            e.store(tanh(e, e.load(at, vec(F32, lanes)) / cap) * cap, at)

    def _bend(self, head: Value, first: Value, own: list[Value]) -> None:
        """Add slope * (position - own position) to the scores."""
        e, lanes = self.e, self.lanes
        lane = e.const(vec(I32, lanes), list(range(lanes)))
        slopes = [self.a.slopes + self._query_head(head, first + i) * 4 for i in range(self.n)]
        with e.loop(0, PAGE, lanes) as position:
            for i in range(self.n):
                at = self.at["scores"] + position * 4 + 4 * PAGE * i
                distance = (lane + (position - own[i]).to(I32).splat(lanes)).to(F32)
                slope = e.broadcast(slopes[i], F32, lanes)
                e.store(e.fma(distance, slope, e.load(at, vec(F32, lanes))), at)

    def _add_values(self, pages: PageFormat, values: Value, states: Value, seen: Value, ahead: Ahead | None) -> None:
        """sums[i] += sum over the page's first `seen` positions of weight[i] * value, a few columns at a time."""
        e, n = self.e, self.n
        columns = self.pages.columns(self.lanes)
        most = max(1, (28 if self.lanes >= 16 else 14) // (n + 1))  # n sums for each column, the column, a weight
        per_pass = -(-len(columns) // -(-len(columns) // most))

        weights_at = self.at["weights" if self.pages.scales else "scores"]
        for k in range(0, len(columns), per_pass):
            now = columns[k : k + per_pass]
            places = [states + i * self.state.nbytes + self.state.sums + 4 * c for i in range(n) for c, _ in now]
            widths = [width for _ in range(n) for _, width in now]
            sums = [e.var(e.load(at, vec(F32, width))) for at, width in zip(places, widths, strict=True)]
            whole = seen // UNROLL * UNROLL
            for start, end, step in ((e.i64(0), whole, UNROLL), (whole, seen, 1)):
                with e.loop(start, end, step) as position:
                    if ahead and step > 1 and k == 0:
                        ahead.turn(e, position // UNROLL, PAGE // UNROLL)
                    row = e.opaque(pages.row(e, values, position))
                    weights = e.opaque(weights_at + position * 4)
                    for p in range(step):
                        value = [pages.value(e, row + pages.row_bytes * p, column, width) for column, width in now]
                        for i in range(n):
                            for c, (column, width) in enumerate(now):
                                block = column // BLOCK if self.pages.scales else 0
                                weight = e.broadcast(weights + 4 * (PAGE * (block * n + i) + p), F32, width)
                                total = sums[i * len(now) + c]
                                total.set(e.fma(value[c], weight, total.value))
            for total, at in zip(sums, places, strict=True):
                e.store(total.value, at)


def attention_kernel(shape: Shape) -> Kernel:
    return Kernel(attention, dataclasses.astuple(shape))
