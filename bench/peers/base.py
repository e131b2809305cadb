"""What every engine of the comparison can do.  Enters: token ids; leaves: nothing but the time that it took."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

FIRST_PROMPT = 128
"""Tokens that are read before the first token of an answer."""


class Peer(ABC):
    """A loaded model with sequences 0, 1, ... that are empty at first; one file of this folder for each engine.

    n_vocab             ids are 0 to n_vocab - 1
    weight_bytes        bytes of one weight in memory; None: as in the GGUF file
    cache_bytes         bytes of one element of the KV cache
    """

    n_vocab: int
    weight_bytes: float | None = None
    cache_bytes: float = 2

    @classmethod
    @abstractmethod
    def load(cls, files: Files, threads: int, context: int, sequences: int) -> Peer:
        """Load the model for `sequences` sequences of up to `context` tokens each, computed by `threads` threads."""

    @abstractmethod
    def feed(self, *rows: list[int]) -> None:
        """Append rows[i] to sequence i, every row of the same length, and compute the logits after the last of each."""

    @abstractmethod
    def truncate(self, length: int) -> None:
        """Forget what sequences hold from position `length` on."""

    def close(self) -> None:
        """End the engine's threads."""
        return


class Files:
    """The same weights in the forms that engines read: a GGUF file, and (None: not given) a checkpoint folder."""

    def __init__(self, model: Path, checkpoint: Path | None):
        self.model, self.checkpoint = model, checkpoint
