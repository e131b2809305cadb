"""Loading.  Enters: an open GGUF file and options; leaves: its tokenizer and its engine, made at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Thread

from ..quant.adapter import Adapter
from ..quant.gguf_reader import GgufFile
from .engine.engine import Engine, Progress
from .options import RuntimeOptions
from .tokenizer import Tokenizer, load_tokenizer


def load_both(
    file: GgufFile, options: RuntimeOptions, progress: Progress | None, adapters: Sequence[tuple[Adapter, float]]
) -> tuple[Tokenizer, Engine]:
    """Load the tokenizer, half a second of one thread's work where the vocabulary is large, while weights are packed.

    Raises what both raise; the tokenizer's error as soon as the engine tells of any progress.
    """
    tokenizer = _TokenizerThread(file)

    def heard(what: str, done: int, total: int) -> None:
        tokenizer.check()
        if progress:
            progress(what, done, total)

    engine = Engine(file, options, heard, adapters=adapters, before_packing=tokenizer.begin)
    try:
        return tokenizer.result(), engine
    except BaseException:
        engine.close()
        raise


class _TokenizerThread(Thread):
    """Loads the tokenizer of `file`."""

    def __init__(self, file: GgufFile):
        super().__init__(name="halfbyte-tokenizer")
        self._file = file
        self._tokenizer: Tokenizer | None = None
        self._error: BaseException | None = None

    def begin(self) -> None:
        """Begin, on the calling thread where the system gives no other."""
        try:
            self.start()
        except RuntimeError:
            self.run()

    def run(self) -> None:
        """Load; what is raised is kept for who wants the result."""
        try:
            self._tokenizer = load_tokenizer(self._file)
        except BaseException as error:
            self._error = error

    def check(self) -> None:
        """Raise what loading has raised by now."""
        if self._error is not None:
            raise self._error

    def result(self) -> Tokenizer:
        """Wait, and return the tokenizer or raise why there is none."""
        if self.ident is not None:
            self.join()
        self.check()
        assert self._tokenizer is not None
        return self._tokenizer
