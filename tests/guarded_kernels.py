"""Every kernel on guarded memory, against NumPy in float64.  Enters: an instruction set, GGUF files; leaves: a line for
each case that begins and one for its end.

A program of its own, because a kernel that steps beyond its buffers ends it: test_guard_pages.py runs it and tells in
which case that was.  Inputs are read-only once they are filled; matrices come as a mapped file has them.
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from attention_layer import Layer
from expert_layer import Layer as ExpertLayer
from expert_layer import write_layer
from gguf_models import logits, opened
from guarded import SIDES, GuardedHeap, GuardedMemory
from kernel_bench import INTEGER, Bench, Codes, Product, address, meaning, random_blocks

from halfbyte.runtime.engine import engine as engine_module
from halfbyte.runtime.engine.batch import N_ITEMS
from halfbyte.runtime.engine.memory import Memory
from halfbyte.runtime.kernels import elementwise as ew
from halfbyte.runtime.kernels import norms
from halfbyte.runtime.kernels.activations import Sink
from halfbyte.runtime.kernels.layouts import Correction
from halfbyte.runtime.kernels.panels import LAYOUTS
from halfbyte.runtime.models.mixture import Mixture

CORRECTIONS = (Correction(-8), Correction(-32, 2), Correction(sums=True), Correction(-16, 2, True, True))
Case = Callable[[Bench, GuardedHeap], None]


def near(got: np.ndarray, want: np.ndarray, error: float = 2e-6) -> None:
    """Assert that the largest difference is at most `error` of the largest value."""
    found = np.abs(got - want).max() / max(np.abs(want).max(), 1e-30)
    assert found <= error, f"off by {found:.1e} of the largest value"


def frozen(heap: GuardedHeap, array: np.ndarray) -> np.ndarray:
    """Return a guarded copy that nobody can write to."""
    placed = heap.place(array)
    heap.freeze(placed)
    return placed


def product(bench: Bench, heap: GuardedHeap, name: str, activations: str) -> None:
    """Matrices that fill no panel, one block and several; batches that fill tiles and that do not; bias and add."""
    rng = np.random.default_rng(31)
    step = LAYOUTS[name].step_columns
    shapes = ((37, 35), (1, 1), (16, 64)) if step == 1 else ((37, 2 * step), (1, step), (16, step))
    for rows, columns in shapes:
        raw = random_blocks(name, rows, columns, rng)
        w = meaning(name, raw)
        for n in (1, 3, 13, 62):
            made = Product(bench, name, raw, columns, n, activations, heap)
            x = frozen(heap, rng.standard_normal((n, columns)).astype(np.float32))
            want = made.quantize(x) @ w.T
            y = made.output(n)
            near(made(x, y), want)
            bias = np.zeros(made.count * bench.lanes, np.float32)
            bias[:rows] = rng.standard_normal(rows)
            near(made(x, y, add=True, bias=frozen(heap, bias)), 2 * want + bias[:rows])


def embed(bench: Bench, heap: GuardedHeap, name: str) -> None:
    """Rows of a table, the first and the last among them."""
    rng = np.random.default_rng(32)
    columns = 35 if LAYOUTS[name].is_float else LAYOUTS[name].step_columns * 2
    raw = random_blocks(name, 7, columns, rng)
    table, tokens = frozen(heap, raw), frozen(heap, np.array([6, 0, 3, 6, 1], np.int64))
    out, n = heap.place(np.zeros((5, columns), np.float32)), frozen(heap, np.array([5], np.int64))
    record = ew.EMBED.make(
        n_rows=address(n), index=address(tokens), scale=1.0, table=address(table), row_bytes=raw.shape[1],
        columns=columns, out=address(out), out_stride=out.strides[0],
    )  # fmt: skip
    bench.run(ew.embed_kernel(name), frozen(heap, record))
    near(out, meaning(name, raw)[tokens], 1e-6)


class Outputs:
    """What a row-wise kernel writes: float32 rows and, where 32 divides `columns`, int8 codes."""

    def __init__(self, heap: GuardedHeap, n: int, columns: int, tile: int):
        codes = columns % 32 == 0
        self.sink = Sink(True, codes, CORRECTIONS if codes else ())
        self.out = heap.place(np.zeros((n, columns), np.float32))
        self.codes = Codes(self.sink, n if codes else 0, columns, tile, heap)

    def fields(self) -> dict[str, int]:
        return {"out": address(self.out), "out_stride": self.out.strides[0], **self.codes.written()}

    def check(self, want: np.ndarray) -> None:
        """Compare the rows with float64 `want`, and the codes with the rows."""
        near(self.out, want, 3e-6)
        if not self.sink.codes:
            return
        blocks = self.out.reshape(len(self.out), -1, 32)
        largest = np.abs(blocks).max(axis=2, keepdims=True)
        inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
        codes = np.rint(blocks * inverse).astype(np.int32)
        scales = (largest[..., 0] * np.float32(1 / 127)).astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(self.codes.codes(), codes)
        np.testing.assert_array_equal(self.codes.scales(), scales)
        for correction in CORRECTIONS:
            fours = codes.reshape(*codes.shape[:2], correction.groups, -1, 2, 2)
            if correction.factor:
                totals = fours.sum(axis=(3, 5)) if correction.halves else fours.sum(axis=(3, 4, 5))[..., None]
                np.testing.assert_array_equal(self.codes.products(correction), totals * correction.factor)
            if correction.sums:
                totals = fours.sum(axis=(3, 4, 5)) * scales[..., None]
                np.testing.assert_array_equal(self.codes.sums(correction), totals)


def norm(bench: Bench, heap: GuardedHeap, columns: int) -> None:
    rng = np.random.default_rng(33)
    x = frozen(heap, rng.standard_normal((7, columns)).astype(np.float32) * 3)
    weight = frozen(heap, rng.standard_normal(columns).astype(np.float32))
    n = frozen(heap, np.array([len(x)], np.int64))
    outputs = Outputs(heap, len(x), columns, bench.tile)
    record = norms.NORM.make(
        n_rows=address(n), x=address(x), x_stride=x.strides[0], columns=columns, weight=address(weight), bias=0,
        epsilon=1e-5, **outputs.fields(),
    )  # fmt: skip
    bench.run(norms.norm_kernel("rms", outputs.sink), frozen(heap, record))
    exact = x.astype(np.float64)
    outputs.check(exact / np.sqrt((exact**2).mean(axis=1, keepdims=True) + 1e-5) * weight)


def swiglu(bench: Bench, heap: GuardedHeap, columns: int) -> None:
    rng = np.random.default_rng(34)
    gate, up = (frozen(heap, rng.standard_normal((3, columns)).astype(np.float32) * 20) for _ in range(2))
    n, outputs = frozen(heap, np.array([3], np.int64)), Outputs(heap, 3, columns, bench.tile)
    record = ew.ACTIVATE.make(
        n_rows=address(n), row_index=0, x=address(gate), up=address(up), x_stride=gate.strides[0], columns=columns,
        **outputs.fields(),
    )  # fmt: skip
    bench.run(ew.activate_kernel("silu", True, outputs.sink), frozen(heap, record))
    g = gate.astype(np.float64)
    outputs.check(g / (1 + np.exp(-g)) * up)


def quantize(bench: Bench, heap: GuardedHeap, columns: int) -> None:
    rng = np.random.default_rng(35)
    x = frozen(heap, rng.standard_normal((5, columns)).astype(np.float32))
    n, outputs = frozen(heap, np.array([5], np.int64)), Outputs(heap, 5, columns, bench.tile)
    record = ew.QUANTIZE.make(
        n_rows=address(n), x=address(x), x_stride=x.strides[0], columns=columns, **outputs.fields()
    )
    bench.run(ew.quantize_kernel(outputs.sink), frozen(heap, record))
    outputs.check(x.astype(np.float64))


# ---------------------------------------------------------------------------------------------------------------------
# attention


def attention(bench: Bench, heap: GuardedHeap, rows: int, options: dict[str, Any]) -> None:
    """`rows` at a time until the pool is full to its last position; nothing in it is a number but what was written."""
    layer = Layer(bench.library, context=128, max_rows=rows, allocate=GuardedMemory, heap=heap, **options)
    for addresses in layer.pool.layers:
        for start in addresses:
            ctypes.memset(start, 0xFF, layer.pool.n_pages * layer.pool.page_bytes)
    tokens = layer.random(128, seed=36, sharp=1.0)
    np.testing.assert_allclose(layer.feed(tokens, rows), layer.expected(tokens), atol=1e-5, rtol=0)
    layer.close()


def encoder_attention(bench: Bench, heap: GuardedHeap, window: int) -> None:
    """A sequence that ends with its page beside one that does not; what is behind the end is not a number."""
    layer = Layer(
        bench.library, 24, 2, "f16", context=192, max_rows=165, window=window, causal=False, allocate=GuardedMemory,
        heap=heap,
    )  # fmt: skip
    for addresses in layer.pool.layers:
        for start in addresses:
            ctypes.memset(start, 0xFF, layer.pool.n_pages * layer.pool.page_bytes)
    texts = [layer.random(n, seed=n) for n in (37, 128)]
    for rows, tokens in zip(layer.step([(layer.sequence(), tokens) for tokens in texts]), texts, strict=True):
        np.testing.assert_allclose(rows, layer.expected(tokens), atol=1e-5, rtol=0)
    layer.close()


def split_attention(bench: Bench, heap: GuardedHeap) -> None:
    """One row each of two sequences of two chunks: threads take chunks of a row, and the last one joins them."""
    layer = Layer(
        bench.library, 16, 3, "f16", n_kv_heads=1, context=768, max_rows=100, allocate=GuardedMemory, heap=heap
    )
    both = [(layer.sequence(), layer.random(300, seed)) for seed in (38, 39)]
    for sequence, tokens in both:
        layer.feed(tokens[:-1], 100, sequence)
    found = layer.step([(sequence, tokens[-1:]) for sequence, tokens in both])
    assert (layer.inputs.items[: layer.inputs.counts[N_ITEMS], -1] >= 0).all(), "no row was split"
    for rows, (_, tokens) in zip(found, both, strict=True):
        np.testing.assert_allclose(rows[0], layer.expected(tokens)[-1], atol=1e-5, rtol=0)
    layer.close()


LAYERS: list[dict[str, Any]] = [
    {"head_dim": 16, "group": 2, "kv": "f16"},
    {"head_dim": 16, "group": 2, "kv": "f32", "window": 40, "slopes": np.array([0.5, 0.01, 0.002, 0.1], np.float32)},
    {"head_dim": 6, "group": 1, "kv": "f32", "n_kv_heads": 8},
    {"head_dim": 80, "group": 3, "kv": "f16", "n_kv_heads": 1},
    {"head_dim": 32, "group": 2, "kv": "q8_0"},
    {"head_dim": 64, "group": 7, "kv": "q4_0", "n_kv_heads": 1},
]


# ---------------------------------------------------------------------------------------------------------------------
# layers of experts


def experts(bench: Bench, heap: GuardedHeap, type: str, n_ff: int) -> None:
    """Experts that fill no panel, rows that fill no tile, more experts than lanes; one row and the most."""
    mixture, n_embd, n = Mixture(19, 3, n_ff), 64, 7
    with tempfile.TemporaryDirectory() as folder:
        file = write_layer(Path(folder) / "layer.gguf", mixture, n_embd, type, 41, biases=True, picks=False)
        layer = ExpertLayer(bench.library, file, mixture, n_embd, "int8", 2, n, GuardedMemory, heap)
    x = np.random.default_rng(40).standard_normal((n, n_embd)).astype(np.float32)
    want, zeros = layer.expected(x), np.zeros_like(x)
    for rows in (n, 1):
        near(layer(x[:rows], zeros[:rows]), want[:rows], 1e-5 if type == "f32" else 3e-2)
    layer.close()


def unused_experts(bench: Bench, heap: GuardedHeap) -> None:
    """A row's result when nobody may touch the experts that it does not go to."""
    mixture, n_embd = Mixture(8, 2, 64), 64  # an expert's matrix is four pages
    with tempfile.TemporaryDirectory() as folder:
        file = write_layer(Path(folder) / "layer.gguf", mixture, n_embd, "f32", 41, biases=False, picks=False)
        layer = ExpertLayer(bench.library, file, mixture, n_embd)
    x = np.random.default_rng(40).standard_normal((1, n_embd)).astype(np.float32)
    want = layer(x, np.zeros_like(x))
    order = np.argsort(-(layer.tensors["ffn_gate_inp.weight"] @ x[0]))
    for matrix in layer.matrices:
        size = matrix.n_panels * matrix.panel_bytes
        for expert in order[mixture.used :].tolist():
            heap.forbid(matrix.panels + expert * size, size)
    np.testing.assert_array_equal(layer(x, np.zeros_like(x)), want)
    layer.close()


# ---------------------------------------------------------------------------------------------------------------------
# whole models


def model(bench: Bench, heap: GuardedHeap, file: Path, activations: str) -> None:
    """A prompt and some tokens: the bits that the engine gives on ordinary memory."""
    ids = np.random.default_rng(37).integers(0, 400, 64).tolist()
    found = []
    for memory in (Memory, GuardedMemory):
        engine_module.Memory = memory
        with opened(file, bench.library, threads=2, context=64, ubatch=40, activations=activations) as engine:
            sequence = engine.new_sequence()
            found.append(
                [logits(engine, ids[:60], sequence, at_once=40), logits(engine, ids[60:], sequence, at_once=1)]
            )
    for plain, guarded in zip(*found, strict=True):
        np.testing.assert_array_equal(plain, guarded)
        assert np.isfinite(guarded).all()


def cases(files: list[Path]) -> Iterator[tuple[str, Case]]:
    """Name and function of each case."""
    for name in LAYOUTS:
        modes = ("int8", "f32") if name in INTEGER else ("f32",)
        for activations in modes:
            label = f"pack and matmul {name} x {activations}"
            yield label, functools.partial(product, name=name, activations=activations)
        yield f"embed {name}", functools.partial(embed, name=name)
    for columns in (1, 35, 64, 160):
        yield f"norm of {columns}", functools.partial(norm, columns=columns)
        yield f"swiglu of {columns}", functools.partial(swiglu, columns=columns)
        yield f"quantize of {columns}", functools.partial(quantize, columns=columns)
    for options in LAYERS:
        for rows in (64, 1):
            kind = f"heads of {options['head_dim']} by {options['group']}, {options['kv']}"
            label = f"rope and attention, {kind}, {rows} rows"
            yield label, functools.partial(attention, rows=rows, options=options)
    yield "attention of split rows", split_attention
    for window in (0, 30):
        yield f"attention of an encoder, window {window}", functools.partial(encoder_attention, window=window)
    for type, n_ff in (("f32", 37), ("q8_0", 32)):
        yield f"experts of {n_ff}, {type}", functools.partial(experts, type=type, n_ff=n_ff)
    yield "experts that no row goes to", unused_experts
    for file in files:
        for activations in ("int8", "f32"):
            yield f"model {file.stem} x {activations}", functools.partial(model, file=file, activations=activations)


def main(target: str, after: str, *files: str) -> None:
    """Run the cases that come behind the one called `after` ("": all)."""
    faulthandler.enable()
    bench, wanted = Bench(target), not after
    for name, case in cases([Path(file) for file in files]):
        for side in SIDES:
            label = f"{name}, {side}"
            if wanted:
                print(f"begin {label}", flush=True)
                heap = GuardedMemory.heap = GuardedHeap(side)
                try:
                    case(bench, heap)
                    heap.check()
                except AssertionError as error:
                    print(f"failed {' '.join(str(error).split())}", flush=True)
                else:
                    print("passed", flush=True)
            wanted = wanted or label == after
    bench.pool.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
