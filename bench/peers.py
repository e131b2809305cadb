"""llama.cpp beside halfbyte.  Enters: a GGUF file; leaves: llama.cpp's tokens, logits and speed on it.

llama.cpp is driven through the C interface of llama-cpp-python (extra `peers`), with the settings of llama-bench: a
polling thread pool, batch 2048, ubatch 512.  Run as a module it measures both in turns, each in a process of its own:

    python -m halfbyte.bench.peers MODEL [-t THREADS] [-p PROMPT] [-n GENERATE] [-d DEPTH] [-r TURNS]
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

UBATCH = 512


@functools.cache
def _no_log() -> Any:
    """A log callback that drops all; llama.cpp keeps its address for good, so it must live as long as the process."""
    import llama_cpp

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


class LlamaCpp:
    """A model in llama.cpp.

    repack: let llama.cpp lay the weights out for the CPU (its default and fastest).  On CPUs with AMX, builds of
    llama.cpp by GCC 12 die there with a general protection fault (their tile configuration is optimised away).
    """

    def __init__(self, path: str | Path, threads: int = 1, context: int = 512, repack: bool = True):
        import llama_cpp

        self._lib = llama_cpp
        llama_cpp.llama_backend_init()
        llama_cpp.llama_log_set(_no_log(), None)
        params = llama_cpp.llama_model_default_params()
        params.use_extra_bufts = repack
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise ValueError(f"llama.cpp does not load {path}")
        wanted = llama_cpp.llama_context_default_params()
        wanted.n_ctx, wanted.n_batch, wanted.n_ubatch = context, 2048, UBATCH
        wanted.n_threads = wanted.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, wanted)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._attach_polling_threads(threads)

    def _attach_polling_threads(self, threads: int) -> None:
        folder = Path(self._lib.__file__).parent / "lib"
        suffix = {"darwin": ".dylib"}.get(sys.platform, ".so")
        base, cpu, llama = (ctypes.CDLL(str(folder / f"lib{n}{suffix}")) for n in ("ggml-base", "ggml-cpu", "llama"))
        base.ggml_threadpool_params_default.restype = _ThreadpoolParams
        cpu.ggml_threadpool_new.restype = ctypes.c_void_p
        params = base.ggml_threadpool_params_default(ctypes.c_int(threads))
        pool = ctypes.c_void_p(cpu.ggml_threadpool_new(ctypes.byref(params)))
        context = ctypes.c_void_p(ctypes.cast(self._context, ctypes.c_void_p).value)
        llama.llama_attach_threadpool(context, pool, pool)

    def clear(self) -> None:
        """Forget all tokens."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def feed(self, ids: list[int]) -> None:
        """Evaluate token ids after those before."""
        for first in range(0, len(ids), 2048):
            part = ids[first : first + 2048]
            tokens = (self._lib.llama_token * len(part))(*part)  # the batch points to it
            if self._lib.llama_decode(self._context, self._lib.llama_batch_get_one(tokens, len(part))):
                raise ValueError("llama_decode failed")
        self._lib.llama_synchronize(self._context)

    def logits(self) -> NDArray[np.float32]:
        """Return float32 [n_vocab] after the last token."""
        found = self._lib.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(found, (self.n_vocab,)).copy()

    def greedy(self, ids: list[int], n: int) -> list[int]:
        """Return `n` most likely tokens after `ids`."""
        self.clear()
        out: list[int] = []
        for _ in range(n):
            self.feed(ids if not out else out[-1:])
            out.append(int(self.logits().argmax()))
        return out

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Return the token ids of `text`."""
        raw = text.encode()
        room = (self._lib.llama_token * (len(raw) + 8))()
        n = self._lib.llama_tokenize(self._vocab, raw, len(raw), room, len(room), add_special, parse_special)
        return list(room[:n])


def _time_peer(model: Path, a: argparse.Namespace, repack: bool) -> dict[str, float]:
    peer = LlamaCpp(model, a.threads, a.depth + a.prompt + a.generate + 8, repack)
    return _measure(peer.n_vocab, peer.clear, peer.feed, a)


def _time_halfbyte(model: Path, a: argparse.Namespace) -> dict[str, float]:
    from ..quant.gguf_reader import open_gguf
    from ..runtime.engine.engine import Engine
    from ..runtime.options import RuntimeOptions

    context = a.depth + a.prompt + a.generate + 8
    engine = Engine(open_gguf(model), RuntimeOptions(threads=a.threads, context=context))
    sequence = engine.new_sequence()
    try:
        return _measure(engine.model.n_vocab, lambda: sequence.truncate(0), lambda ids: engine.feed(sequence, ids), a)
    finally:
        engine.close()


def _measure(n_vocab: int, clear: Any, feed: Any, a: argparse.Namespace) -> dict[str, float]:
    """Time one warmed-up prompt and one generation: tokens per second."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, n_vocab, a.prompt).tolist()
    speeds = {}
    for warm in (True, False):
        clear()
        if a.depth:
            feed(rng.integers(0, n_vocab, a.depth).tolist())
        start = time.perf_counter()
        feed(ids)
        speeds["pp"] = a.prompt / (time.perf_counter() - start)
        clear()
        if a.depth:
            feed(rng.integers(0, n_vocab, a.depth).tolist())
        start = time.perf_counter()
        for token in rng.integers(0, n_vocab, 2 if warm else a.generate).tolist():
            feed([token])
        speeds["tg"] = a.generate / (time.perf_counter() - start)
    return speeds


def _in_turns(a: argparse.Namespace, arguments: list[str]) -> int:
    """Start halfbyte and llama.cpp alternately; print each turn and the ratio of medians."""
    results: dict[str, list[dict[str, float]]] = {"halfbyte": [], "llama.cpp": [], "llama.cpp, no repack": []}
    for turn in range(a.turns):
        for engine, runs in results.items():
            command = [sys.executable, "-m", "halfbyte.bench.peers", *arguments, "--one", engine]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                runs.append(json.loads(done.stdout))
                print(f"{turn + 1}  {engine:22} pp {runs[-1]['pp']:8.2f}  tg {runs[-1]['tg']:8.2f}", flush=True)
            else:
                print(f"{turn + 1}  {engine:22} ended with {done.returncode}: {done.stderr.strip()[-200:]}", flush=True)
    ours = {k: statistics.median(r[k] for r in results["halfbyte"]) for k in ("pp", "tg")}
    for engine, runs in results.items():
        if runs:
            theirs = {k: statistics.median(r[k] for r in runs) for k in ("pp", "tg")}
            ratios = "  ".join(f"{k} {theirs[k]:8.2f} (x{ours[k] / theirs[k]:.2f})" for k in theirs)
            print(f"median  {engine:22} {ratios}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Compare the two on one file."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m halfbyte.bench.peers", description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-p", "--prompt", type=int, default=512)
    parser.add_argument("-n", "--generate", type=int, default=128)
    parser.add_argument("-d", "--depth", type=int, default=0)
    parser.add_argument("-r", "--turns", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    a = parser.parse_args(arguments)
    if a.one is None:
        return _in_turns(a, arguments)
    speeds = _time_halfbyte(a.model, a) if a.one == "halfbyte" else _time_peer(a.model, a, a.one == "llama.cpp")
    print(json.dumps(speeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
