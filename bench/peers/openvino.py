"""openvino-genai in the comparison.  Enters: a GGUF file; leaves: a `Peer`.

OpenVINO makes a graph of its own of the file; types that it does not know it refuses.  Activations and the KV cache
have 8 bits there, the rest is bfloat16 where the CPU has it: its defaults.  It is driven through its continuous
batching, as `LLMPipeline` is by default.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
import openvino_genai
from numpy.typing import NDArray

from .base import Files, Peer

_BLOCK = 32  # positions of a block of its cache
_CACHES = 3  # blocks of what was forgotten stay until there is no room


class OpenVino(Peer):
    """Sequences are requests: a prompt begins one for each, and a step appends the token that each has chosen itself.

    What stands before a prompt is part of its request, and comes from the cache of prefixes.  So that the prompt itself
    never does, its first token is another one every time.
    """

    cache_bytes = 1

    def __init__(self, path: str, threads: int, context: int, sequences: int):
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.max_num_batched_tokens = context * sequences  # a prompt at once
        scheduler.num_kv_blocks = _CACHES * sequences * (context // _BLOCK + 2)
        properties = {"INFERENCE_NUM_THREADS": threads}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(path, scheduler, "CPU", properties)
        self._options = openvino_genai.GenerationConfig(max_new_tokens=context, ignore_eos=True)
        self.n_vocab = len(self._pipeline.get_tokenizer().get_vocab())
        # int64 [n] of each sequence: the tokens that it was given, and that it chose itself
        self._held: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * sequences
        self._lengths = [0] * sequences
        self._requests: list[Any] = []
        self._n_requests = 0

    @classmethod
    def load(cls, files: Files, threads: int, context: int, sequences: int) -> OpenVino:
        """Raises what OpenVINO raises."""
        return cls(str(files.model), threads, context, sequences)

    def feed(self, *rows: list[int]) -> None:
        if len(rows[0]) > 1 or len(rows) != len(self._requests):
            self._begin(rows)
        self._lengths[: len(rows)] = [length + len(rows[0]) for length in self._lengths[: len(rows)]]
        waiting = list(enumerate(self._requests))
        while waiting:
            self._pipeline.step()
            for i, request in waiting:
                if request.can_read():
                    [output] = request.read().values()
                    self._held[i] = np.concatenate([self._held[i], output.generated_ids])
            waiting = [(i, request) for i, request in waiting if len(self._held[i]) <= self._lengths[i]]

    def _begin(self, rows: tuple[list[int], ...]) -> None:
        self._end()
        for i, row in enumerate(rows):
            self._n_requests += 1
            held = self._held[i][: self._lengths[i]]
            self._held[i] = np.array([*held, self._n_requests % self.n_vocab, *row[1:]], np.int64)
            prompt = openvino.Tensor(self._held[i][None])
            self._requests.append(self._pipeline.add_request(self._n_requests, prompt, self._options))

    def _end(self) -> None:
        for request in self._requests:
            request.stop()
        if self._requests:
            self._pipeline.step()  # which forgets them
        self._requests = []

    def truncate(self, length: int) -> None:
        self._end()
        self._lengths = [min(length, held) for held in self._lengths]

    def close(self) -> None:
        self._end()
