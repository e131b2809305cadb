"""One attention layer without a model, and its slow twin.  Enters: float32 queries, keys and values of sequences;
leaves: what the kernels make of them over several steps, and what float64 makes of the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from kernel_bench import Heap

from halfbyte.runtime.engine.batch import Division, Part, StepInputs
from halfbyte.runtime.engine.kv_pages import PagePool, Sequence
from halfbyte.runtime.engine.memory import Allocate, Memory
from halfbyte.runtime.engine.program import Builder
from halfbyte.runtime.engine.threads import ThreadPool
from halfbyte.runtime.kernels.attention import Shape
from halfbyte.runtime.kernels.jit import Library
from halfbyte.runtime.kernels.layouts import FloatLayout
from halfbyte.runtime.models.rotation import Rotation

# What comes next reads float32 rows.
FLOAT_MATRIX: Any = SimpleNamespace(layout=FloatLayout("f32", 4), activations="f32")


@dataclass
class Tokens:
    """Queries float32 [n, heads, head_dim], keys and values float32 [n, kv_heads, head_dim] of one sequence."""

    queries: np.ndarray
    keys: np.ndarray
    values: np.ndarray

    @classmethod
    def random(cls, n: int, heads: int, kv_heads: int, head_dim: int, seed: int, sharp: float = 2.0) -> Tokens:
        rng = np.random.default_rng(seed)
        draw = lambda count: rng.standard_normal((n, count, head_dim)).astype(np.float32)  # noqa: E731
        return cls(draw(heads) * np.float32(sharp), draw(kv_heads), draw(kv_heads))

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, which: slice) -> Tokens:
        return Tokens(self.queries[which], self.keys[which], self.values[which])


@dataclass
class Layer:
    """`rope_store` (with angles of zero) and `attention` on `threads` threads.

    allocate, heap: where pages and buffers lie, and the arrays of a step.
    """

    library: Library
    head_dim: int
    group: int = 2
    kv: str = "f16"
    n_kv_heads: int = 2
    threads: int = 2
    context: int = 1024
    max_rows: int = 200
    window: int = 0
    cap: float = 0.0
    slopes: np.ndarray | None = None
    sinks: np.ndarray | None = None
    causal: bool = True
    allocate: Allocate = Memory
    heap: Heap = field(default_factory=Heap)
    pool: PagePool = field(init=False)

    def __post_init__(self) -> None:
        shape = Shape(self.head_dim, self.group, self.kv)
        division = Division(self.n_kv_heads, shape.tile_rows, self.threads, self.context, self.causal)
        self.pool = PagePool(1, self.n_kv_heads, self.head_dim, self.context, self.kv, self.allocate)
        self.inputs = StepInputs(self.max_rows, (Rotation(np.zeros(self.head_dim // 2), halves=False),), division)
        for name in ("tokens", "pages", "slots", "items", "counts"):
            setattr(self.inputs, name, self.heap.place(getattr(self.inputs, name)))
        self.inputs.angles = [self.heap.place(angles) for angles in self.inputs.angles]
        self.build()

    def build(self) -> None:
        """Lay the program out over the pool's layers."""
        builder = Builder(self.library, self.threads, self.inputs, self.pool, 1, self.allocate)
        heads = self.n_kv_heads * self.group
        self._rows = [
            builder._rows(use, self.head_dim * n)
            for use, n in (("query", heads), ("key", self.n_kv_heads), ("value", self.n_kv_heads))
        ]
        query, key, value = self._rows
        builder.rope_store(0, query, key, value, self.head_dim)
        out = builder.attention(
            0,
            query,
            self.n_kv_heads,
            self.head_dim,
            (FLOAT_MATRIX,),
            window=self.window,
            cap=self.cap,
            slopes=self.slopes,
            sinks=self.sinks,
        )
        assert out.rows is not None
        self._out = out.rows
        self.program = builder.finish()
        self.workers = ThreadPool(self.library, self.threads)

    def close(self) -> None:
        self.workers.close()

    def random(self, n: int, seed: int, **options: Any) -> Tokens:
        return Tokens.random(n, self.n_kv_heads * self.group, self.n_kv_heads, self.head_dim, seed, **options)

    def sequence(self) -> Sequence:
        made = Sequence(self.pool)
        made.offsets = self.heap.place(made.offsets)
        made.offsets_address = int(made.offsets.ctypes.data)
        return made

    def step(self, parts: list[tuple[Sequence, Tokens]]) -> list[np.ndarray]:
        """Return float32 [n, heads, head_dim] of each part."""
        self.inputs.fill([Part(sequence, [0] * len(tokens), len(tokens)) for sequence, tokens in parts])
        first = 0
        for _, tokens in parts:
            for rows, values in zip(self._rows, (tokens.queries, tokens.keys, tokens.values), strict=True):
                view = rows.memory.array(np.float32, (self.max_rows, rows.stride // 4))
                view[first : first + len(tokens), : rows.columns] = values.reshape(len(tokens), -1)
            first += len(tokens)
        self.workers.run(self.program.steps)
        out = self._out.memory.array(np.float32, (self.max_rows, self._out.stride // 4))[:first, : self._out.columns]
        ends = np.cumsum([len(tokens) for _, tokens in parts])[:-1]
        shape = (-1, self.n_kv_heads * self.group, self.head_dim)
        return [part.reshape(shape).copy() for part in np.split(out, ends)]

    def feed(self, tokens: Tokens, at_once: int, sequence: Sequence | None = None) -> np.ndarray:
        """Return float32 [n, heads, head_dim], fed some rows at a time to `sequence` (None: a new one, then closed)."""
        held = sequence if sequence is not None else self.sequence()
        found = [self.step([(held, tokens[i : i + at_once])])[0] for i in range(0, len(tokens), at_once)]
        if sequence is None:
            held.close()
        return np.concatenate(found)

    def expected(self, tokens: Tokens) -> np.ndarray:
        """Float64 [n, heads, head_dim], with every rounding that the page type stands for."""
        turn = hadamard if self.kv == "q4_0" else lambda x: x
        keys, values = rounded(turn(tokens.keys), self.kv), rounded(tokens.values, self.kv)
        queries = rounded(turn(tokens.queries), "q8_0" if self.kv in ("q8_0", "q4_0") else "f32")
        n, heads = len(tokens), queries.shape[1]
        distance = np.arange(n) - np.arange(n)[:, None]  # [own position, position]
        seen = distance <= 0 if self.causal else np.ones_like(distance, bool)
        if self.window:
            seen &= np.abs(distance) < self.window
        out = np.empty(queries.shape)
        for h in range(heads):
            scores = queries[:, h] @ keys[:, h // self.group].T / np.sqrt(self.head_dim)
            if self.cap:
                scores = self.cap * np.tanh(scores / self.cap)
            if self.slopes is not None:
                scores += self.slopes[h] * distance
            scores[~seen] = -np.inf
            sink = -np.inf if self.sinks is None else self.sinks[h]
            top = np.maximum(scores.max(axis=1, keepdims=True), sink)
            shares = np.exp(scores - top)
            total = shares.sum(axis=1, keepdims=True) + np.exp(sink - top)
            out[:, h] = shares / total @ values[:, h // self.group]
        return out


def hadamard(x: np.ndarray) -> np.ndarray:
    """x [..., head_dim] times Sylvester's matrices of the largest power of two in head_dim: sums and differences.

    Float32 stays float32, added in the kernel's order, so that what is rounded to 4 bits next is the same number.
    """
    head_dim = x.shape[-1]
    size = head_dim & -head_dim
    reach = 1
    while reach < size:
        pairs = x.reshape(*x.shape[:-1], head_dim // (2 * reach), 2, reach)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        x = np.stack([a + b, a - b], axis=-2).reshape(x.shape)
        reach *= 2
    return x * x.dtype.type(1 / np.sqrt(size))


def rounded(x: np.ndarray, kv: str) -> np.ndarray:
    """Float64 like the float32 x [..., head_dim], as pages of type `kv` hold it: GGUF's rules for blocks of 32."""
    if kv in ("f32", "f16"):
        return x.astype(np.float32 if kv == "f32" else np.float16).astype(np.float64)
    columns = x.shape[-1]
    blocks = np.zeros((*x.shape[:-1], -(-columns // 32), 32), np.float32)
    blocks.reshape(*x.shape[:-1], -1)[..., :columns] = x
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1, keepdims=True), axis=-1)
    largest[largest == 0] = 1  # a block of zeros: codes of zero, whatever the scale
    if kv == "q8_0":
        step = np.abs(largest) * np.float32(1 / 127)
        codes = np.rint(blocks * (np.float32(127) / np.abs(largest)))
    else:
        step = largest * np.float32(-0.125)
        codes = np.minimum(np.trunc(blocks * (np.float32(1) / step) + np.float32(8.5)), 15) - 8
    values = codes * step.astype(np.float16).astype(np.float64)
    return values.reshape(*x.shape[:-1], -1)[..., :columns]
