"""halfbyte in the comparison.  Enters: a GGUF file; leaves: a `Peer`."""

from __future__ import annotations

from ...quant.gguf_reader import open_gguf
from ...runtime.engine.batch import Part
from ...runtime.engine.engine import Engine
from ...runtime.kernels.page_format import PAGE
from ...runtime.options import RuntimeOptions
from .base import Files, Peer


class Halfbyte(Peer):
    """The engine with its default options."""

    def __init__(self, engine: Engine, sequences: int):
        self._engine = engine
        self._sequences = [engine.new_sequence() for _ in range(sequences)]
        self.n_vocab = engine.model.n_vocab
        self.cache_bytes = engine.cache_bytes

    @classmethod
    def load(cls, files: Files, threads: int, context: int, sequences: int) -> Halfbyte:
        """Raises what opening the model raises."""
        pages = -(-context // PAGE) * PAGE * sequences  # a page belongs to one sequence
        return cls(Engine(open_gguf(files.model), RuntimeOptions(threads=threads, context=pages)), sequences)

    def feed(self, *rows: list[int]) -> None:
        step = self._engine.n_ubatch // len(rows)
        for first in range(0, len(rows[0]), step):
            last = first + step >= len(rows[0])
            parts = [
                Part(sequence, row[first : first + step], outputs=int(last))
                for sequence, row in zip(self._sequences, rows, strict=False)
            ]
            self._engine.step(parts)

    def truncate(self, length: int) -> None:
        for sequence in self._sequences:
            sequence.truncate(length)

    def close(self) -> None:
        self._engine.close()
