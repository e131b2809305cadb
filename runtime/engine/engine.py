"""The engine.  Enters: a GGUF file, then steps (parts of sequences); leaves: logits, of an encoder embeddings.

One engine owns one model: its threads, weights, KV pages and program.  It is used from one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ...quant.adapter import Adapter
from ...quant.gguf_reader import GgufFile
from ..kernels.attention import Shape
from ..kernels.jit import Kernel, Library, host_library
from ..kernels.page_format import PAGE
from ..kernels.pages import PAGE_FORMATS
from ..kernels.sync import alone_kernel, lead_kernel, work_kernel
from ..machine import available_memory, default_threads
from ..models import read_model
from ..options import RuntimeOptions
from .adapters import AdapterMatrices, AdapterScales
from .batch import Division, Part, StepInputs
from .buffers import Rows
from .kv_pages import PagePool, Sequence
from .memory import Maps, Tally
from .program import Builder
from .steps import Program
from .threads import ThreadPool
from .weights import Weights

MAX_OUTPUTS = 64  # rows of logits that one step can give: 33 MB for 128k tokens
MAX_ENCODED = 1 << 16  # tokens of an encoder's context, all of which one step has room for
MAX_SEQUENCES = 64  # that one step of an encoder can have: each holds a page or more
# Bytes of weights times rows below which one thread does it alone.  Two threads against one, generating with 2.1 MiB:
# 2.8 against 3.6 thousand tokens a second, 3.9 MiB: 2.5 against 2.2, 7.4 MiB: 1.7 against 1.0, and no fewer beside a
# busy neighbour.
SHARED_WORK = 3 << 20

Progress = Callable[[str, int, int], None]  # (what is being done, done, total)


def _cache_type(file: GgufFile, head_dim: int, options: RuntimeOptions) -> str:
    """What pages hold: who keeps weights or activations in float32 wants the digits of the keys too."""
    if options.cache_type == "auto":
        exact = options.activations == "f32" or all(view.layout.name == "f32" for view in file.tensors.values())
        return "f32" if exact else "f16"
    if head_dim % PAGE_FORMATS[options.cache_type].multiple:
        fit = [name for name, pages in PAGE_FORMATS.items() if head_dim % pages.multiple == 0]
        raise UsageError(
            f"cache_type is {options.cache_type!r}; for this model's heads of {head_dim} it must be one of "
            f"{', '.join(fit)} (the others want a multiple of 8)"
        )
    return options.cache_type


class _Stopped(Exception):
    """Compiling was given up: nobody wants the kernels any more."""


@dataclass(frozen=True)
class _Pass:
    """A forward pass: its program, and where it leaves results, float32 [most, columns]: the first rows of it."""

    program: Program
    results: NDArray[np.float32]

    @classmethod
    def of(cls, program: Program, out: Rows, most: int, columns: int) -> _Pass:
        """A program that leaves up to `most` rows of `columns` numbers in `out`."""
        return cls(program, out.memory.array(np.float32, (most, out.stride // 4))[:, :columns])


class Engine:
    """A model ready to run.

    model     its hyper-parameters
    n_ctx     positions that all sequences together can hold
    n_ubatch  most rows of one step; an encoder's is the context, since it takes whole sequences
    """

    def __init__(
        self,
        file: GgufFile,
        options: RuntimeOptions,
        progress: Progress | None = None,
        library: Library | None = None,
        adapters: Items[tuple[Adapter, float]] = (),
        before_packing: Callable[[], None] | None = None,
    ):
        """Load the model of `file`, which stays open as long as the engine, with adapters that fit it.

        A new sequence sees so much of each adapter as is said here, until its `adapt` says otherwise.
        `progress` hears of what takes long.  `before_packing` is called when only compiled code is left to run: other
        threads have the interpreter lock from then on.  Raises ModelFileError, UnsupportedError, UsageError.
        """
        self.model = read_model(file)
        self.n_ctx = options.context or self.model.n_ctx_train
        self.n_ubatch = min(options.ubatch, self.n_ctx) if self.model.causal else self.n_ctx
        if self.n_ubatch > MAX_ENCODED:
            raise UsageError(f"a context of {self.n_ctx} tokens; an encoder's is at most {MAX_ENCODED} here (-c)")
        self.n_threads = options.threads or default_threads()
        self.max_outputs = min(MAX_OUTPUTS, self.n_ubatch) if self.model.causal else self.n_ubatch
        self.library = library or host_library()
        self.cache_type = _cache_type(file, self.model.head_dim, options)
        self._activations = options.activations
        self._closed = False
        self.adapters = tuple(adapter for adapter, _ in adapters)
        self._usual_scales = tuple(scale for _, scale in adapters)
        need = Tally()
        self._lay_out(file, need)
        need.check(available_memory(), self.n_ctx, self.n_ubatch)

        def stage(what: str) -> Callable[[int, int], None] | None:
            return (lambda done, total: progress(what, done, total)) if progress else None

        weights, builder, low_rank = self._lay_out(file, need.maps())
        pool = [lead_kernel(), alone_kernel(), work_kernel()]
        self.library.load(pool + weights.kernels() + low_rank.kernels(), stage("compiling kernels"))
        self._threads = ThreadPool(self.library, self.n_threads)
        try:
            with self._compiled_meanwhile(builder.kernels(), stage("compiling kernels")):
                if before_packing:
                    before_packing()
                weights.pack(self._threads, stage("loading weights"))
                low_rank.pack(self._threads)
        except BaseException:
            self._threads.close()
            raise
        self._weights = weights
        self._builder = builder
        self._main = _Pass.of(builder.finish(), self._out, self.max_outputs, self.model.n_out)
        self._embedding = None if self.model.causal else self._main

    @contextmanager
    def _compiled_meanwhile(self, kernels: list[Kernel], stage: Callable[[int, int], None] | None) -> Iterator[None]:
        """Load `kernels` while the body runs; `stage` hears of it from the body's end on.

        The body's threads and the compiler's hold the interpreter lock only in between.
        """
        if not self.library.missing(kernels):  # a thread is not worth it
            self.library.load(kernels)
            yield
            return
        from concurrent.futures import ThreadPoolExecutor  # a warm start needs it not

        over, failed = Event(), Event()

        def heard(done: int, total: int) -> None:
            if failed.is_set():
                raise _Stopped
            if over.is_set() and stage:
                stage(done, total)

        with ThreadPoolExecutor(1) as compiler:
            loading = compiler.submit(self.library.load, kernels, heard)
            try:
                yield
                over.set()
                loading.result()
            except BaseException:
                failed.set()
                raise

    def _lay_out(self, file: GgufFile, maps: Maps | Tally) -> tuple[Weights, Builder, AdapterMatrices]:
        """Describe the program, on memory that is there or is only counted; the weights are not filled yet."""
        model = self.model
        self._pages = PagePool(
            model.n_cached,
            model.n_kv_heads,
            model.head_dim,
            self.n_ctx,
            self.cache_type,
            maps.cache,
            sequences=1 if model.causal else MAX_SEQUENCES,
        )
        shape = Shape(model.head_dim, model.n_heads // model.n_kv_heads, self.cache_type)
        division = Division(model.n_kv_heads, shape.tile_rows, self.n_threads, self.n_ctx, model.causal)
        self._inputs = StepInputs(self.n_ubatch, model.rotations, division)
        weights = Weights(file, self.library, self._activations, maps.weights)
        self._scales = AdapterScales(len(self.adapters), self.n_ubatch)
        low_rank = AdapterMatrices(self.adapters, self._scales, self.library, maps.weights)
        builder = Builder(
            self.library,
            self.n_threads,
            self._inputs,
            self._pages,
            self.max_outputs,
            maps.buffers,
            low_rank,
        )
        self._out = model.build(builder, weights)
        weights.check_complete()
        low_rank.check_used()
        return weights, builder, low_rank

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that decoding one token reads."""
        return self._weights.matrix_bytes

    @property
    def cache_bytes(self) -> float:
        """Bytes of one element of the KV cache, scales counted in."""
        return self._pages.page_bytes / (PAGE * self.model.n_kv_heads * self.model.head_dim)

    @property
    def activation_type(self) -> str:
        """What the weights are multiplied with: "f32", "int8" (blocks of 32 with a scale), or "f32+int8"."""
        return "+".join(sorted(self._weights.activation_types))

    def new_sequence(self) -> Sequence:
        """Return an empty sequence."""
        return Sequence(self._pages, self._usual_scales)

    def step(self, parts: Items[Part]) -> NDArray[np.float32]:
        """Run one forward pass; return the logits, float32 [n_outputs, n_vocab], of each part's last `outputs` rows.

        Of an encoder, a part is all of an empty sequence, every row is an output, and what returns are embeddings,
        float32 [n_outputs, n_embd].
        The array is the engine's own: the next step overwrites it.  At most n_ubatch rows and max_outputs outputs.
        Raises ContextLengthError when a part does not fit, and ValueError for parts that cannot be; no sequence has
        changed then.
        """
        return self._run(parts, self._main)

    def embed(self, parts: Items[Part]) -> NDArray[np.float32]:
        """As `step`, and return embeddings of a decoder too, float32 [n_outputs, n_embd]: what logits are made of.

        At most n_ubatch outputs.
        """
        if self._embedding is None:  # a decoder that was not asked before: the layers are the same
            out = self._builder.end_at_output_norm()
            self.library.load(self._builder.kernels())
            self._embedding = _Pass.of(self._builder.finish(), out, self.n_ubatch, self.model.n_embd)
        return self._run(parts, self._embedding)

    def _run(self, parts: Items[Part], forward: _Pass) -> NDArray[np.float32]:
        if self._closed:
            raise UsageError("the model is closed; load it again to use it")
        rows = self._checked_rows(parts, len(forward.results))
        lengths = [len(part.sequence) for part in parts]
        try:
            n_outputs = self._inputs.fill(parts)
            self._scales.fill(parts)
            self._threads.run(forward.program.steps, alone=rows * self._weights.matrix_bytes < SHARED_WORK)
        except BaseException:  # also Ctrl-C: a sequence never holds tokens whose keys were not computed
            for part, length in zip(parts, lengths, strict=True):
                part.sequence.truncate(length)
            raise
        return forward.results[:n_outputs]

    def _checked_rows(self, parts: Items[Part], most_outputs: int) -> int:
        """Return how many rows `parts` have; compiled code believes what it is told, so all of it is checked here."""
        rows, outputs = sum(len(part.tokens) for part in parts), sum(part.outputs for part in parts)
        if rows > self.n_ubatch or outputs > most_outputs:
            allowed = f"allowed are {self.n_ubatch} and {most_outputs}"
            raise ValueError(f"a step of {rows} rows and {outputs} outputs; {allowed}")
        n_vocab = self.model.n_vocab
        if not self.model.causal and len(parts) > MAX_SEQUENCES:
            raise ValueError(f"a step of {len(parts)} sequences; allowed are {MAX_SEQUENCES}")
        for part in parts:
            if not 0 <= part.outputs <= len(part.tokens):
                raise ValueError(f"{part.outputs} outputs of {len(part.tokens)} tokens")
            if part.tokens and (min(part.tokens) < 0 or max(part.tokens) >= n_vocab):
                raise ValueError(f"tokens {part.tokens} are not all of the {n_vocab} in the vocabulary")
            if not self.model.causal and (len(part.sequence) or part.outputs < len(part.tokens)):
                raise ValueError("an encoder takes whole sequences, and gives all of their rows")
        return rows

    def check_generates(self) -> None:
        """Raise UsageError when the model is an encoder."""
        if not self.model.causal:
            raise UsageError("this model is an encoder: it gives embeddings (halfbyte embed, LLM.embed), not text")

    def feed(self, sequence: Sequence, tokens: list[int]) -> NDArray[np.float32]:
        """Append `tokens` (at least one), a ubatch at a time; return the logits after the last, float32 [n_vocab].

        Raises UsageError when the model is an encoder, and what `step` raises.
        """
        self.check_generates()
        for first in range(0, len(tokens), self.n_ubatch):
            part = tokens[first : first + self.n_ubatch]
            last = first + len(part) == len(tokens)
            logits = self.step([Part(sequence, part, outputs=int(last))])
        return logits[0]

    def close(self) -> None:
        """End the engine's threads; `step` raises UsageError from now on."""
        self._closed = True
        self._threads.close()
