"""torch and transformers in the comparison.  Enters: a checkpoint folder; leaves: a `Peer` of bfloat16."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from .base import Files, Peer

_BATCH = 2048  # tokens of one forward pass, as llama.cpp's


class Transformers(Peer):
    """The model as `generate` runs it: its own attention, a cache that grows, logits of the last token only."""

    weight_bytes = 2

    def __init__(self, folder: str, threads: int):
        torch.set_num_threads(threads)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True).eval()
        self.n_vocab = self._model.config.vocab_size
        self._cache, self._length = DynamicCache(), 0

    @classmethod
    def load(cls, files: Files, threads: int, context: int, sequences: int) -> Transformers:
        """`files` has a checkpoint.  Raises what transformers raises."""
        return cls(str(files.checkpoint), threads)

    def feed(self, *rows: list[int]) -> None:
        step = _BATCH // len(rows)
        with torch.inference_mode():
            for first in range(0, len(rows[0]), step):
                ids = torch.tensor([row[first : first + step] for row in rows])
                self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._length += len(rows[0])

    def truncate(self, length: int) -> None:
        if length == 0:
            self._cache = DynamicCache()  # the next rows may be more or fewer
        elif length < self._length:
            self._cache.crop(length - self._length)  # a negative number is what goes
        self._length = min(length, self._length)
