"""llama.cpp in the comparison, and as the oracle of tests.  Enters: a GGUF file; leaves: a `Peer`, tokens, logits.

It is driven through the C interface of llama-cpp-python (extra `peers`), with the settings of llama-bench: a polling
thread pool, batch 2048, ubatch 512.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from .base import Files, Peer

BATCH, UBATCH = 2048, 512


@functools.cache
def _no_log() -> Any:
    """A log callback that drops all; llama.cpp keeps its address for good, so it must live as long as the process."""
    return llama_cpp.llama_log_callback(lambda level, text, data: None)


class _ThreadpoolParams(ctypes.Structure):
    """ggml_threadpool_params of ggml.h."""

    _fields_ = (
        ("cpumask", ctypes.c_bool * 512),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


class LlamaCpp(Peer):
    """A model in llama.cpp.

    repack: let llama.cpp lay the weights out for the CPU (its default and mostly its fastest).  On CPUs with AMX,
    builds of llama.cpp by GCC 12 die there with a general protection fault (their tile configuration is optimised
    away).
    """

    def __init__(self, path: str | Path, threads: int = 1, context: int = 512, repack: bool = True, sequences: int = 1):
        llama_cpp.llama_backend_init()
        llama_cpp.llama_log_set(_no_log(), None)
        params = llama_cpp.llama_model_default_params()
        params.use_extra_bufts = repack
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise ValueError(f"llama.cpp does not load {path}")
        wanted = llama_cpp.llama_context_default_params()
        wanted.n_ctx, wanted.n_batch, wanted.n_ubatch = context * sequences, BATCH, UBATCH
        wanted.n_seq_max = sequences
        wanted.n_threads = wanted.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, wanted)
        if not self._context:
            raise ValueError(f"llama.cpp makes no context of {sequences} x {context} tokens")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._lengths = [0] * sequences
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self._attach_polling_threads(threads)

    @classmethod
    def load(cls, files: Files, threads: int, context: int, sequences: int) -> LlamaCpp:
        """Raises ValueError when llama.cpp does not take the model."""
        return cls(files.model, threads, context, sequences=sequences)

    def _attach_polling_threads(self, threads: int) -> None:
        folder = Path(llama_cpp.__file__).parent / "lib"
        form = {"darwin": "lib{}.dylib", "win32": "{}.dll"}.get(sys.platform, "lib{}.so")
        base, cpu, llama = (ctypes.CDLL(str(folder / form.format(n))) for n in ("ggml-base", "ggml-cpu", "llama"))
        base.ggml_threadpool_params_default.restype = _ThreadpoolParams
        cpu.ggml_threadpool_new.restype = ctypes.c_void_p
        params = base.ggml_threadpool_params_default(ctypes.c_int(threads))
        pool = ctypes.c_void_p(cpu.ggml_threadpool_new(ctypes.byref(params)))
        context = ctypes.c_void_p(ctypes.cast(self._context, ctypes.c_void_p).value)
        llama.llama_attach_threadpool(context, pool, pool)

    def feed(self, *rows: list[int]) -> None:
        """Append rows[i] to sequence i; raises ValueError where llama.cpp fails."""
        step = BATCH // len(rows)
        for first in range(0, len(rows[0]), step):
            n, last = 0, min(first + step, len(rows[0])) - 1
            for sequence, row in enumerate(rows):
                for i in range(first, last + 1):
                    self._batch.token[n] = row[i]
                    self._batch.pos[n] = self._lengths[sequence] + i
                    self._batch.n_seq_id[n] = 1
                    self._batch.seq_id[n][0] = sequence
                    self._batch.logits[n] = i == len(row) - 1
                    n += 1
            self._batch.n_tokens = n
            if llama_cpp.llama_decode(self._context, self._batch):
                raise ValueError("llama_decode failed")
        for sequence, row in enumerate(rows):
            self._lengths[sequence] += len(row)
        llama_cpp.llama_synchronize(self._context)

    def truncate(self, length: int) -> None:
        for sequence, held in enumerate(self._lengths):
            if held > length:
                llama_cpp.llama_memory_seq_rm(self._memory, sequence, length, -1)
                self._lengths[sequence] = length

    def logits(self) -> NDArray[np.float32]:
        """Return float32 [n_vocab] after the last token."""
        found = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(found, (self.n_vocab,)).copy()

    def greedy(self, ids: list[int], n: int) -> list[int]:
        """Return `n` most likely tokens after `ids`."""
        self.truncate(0)
        out: list[int] = []
        for _ in range(n):
            self.feed(ids if not out else out[-1:])
            out.append(int(self.logits().argmax()))
        return out

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Return the token ids of `text`."""
        raw = text.encode()
        room = (llama_cpp.llama_token * (len(raw) + 8))()
        n = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), room, len(room), add_special, parse_special)
        return list(room[:n])


class LlamaCppPlain(LlamaCpp):
    """With weights as they lie in the file: slower mostly, but no build dies of it."""

    @classmethod
    def load(cls, files: Files, threads: int, context: int, sequences: int) -> LlamaCppPlain:
        """Raises ValueError when llama.cpp does not take the model."""
        return cls(files.model, threads, context, repack=False, sequences=sequences)
