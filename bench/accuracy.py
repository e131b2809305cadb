"""How well a model predicts a text.  Enters: a loaded model and a text; leaves: perplexity, and the divergence from a
reference: another model, or a file of its logits.

The protocol is llama-perplexity's, so that figures and files can be compared: the text is cut into chunks, each is read
from an empty cache, and the positions of its second half are scored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ContextLengthError, ModelFileError, UnsupportedError, UsageError
from ..quant.whole_file import check_target
from ..runtime.llm import LLM
from ..runtime.tokenizer.base import Tokenizer
from .divergence import MIN_POSITIONS, Divergence, Positions, compare, log_sums, perplexity, summarize
from .logits_file import (
    MIN_CONTEXT,
    WAY_OUT,
    LogitsReader,
    LogitsWriter,
    file_bytes,
    first_scored,
    is_logits_file,
    scored_rows,
)
from .report import size_text

CONTEXT = 512
_SLICE = 1 << 21  # logits that are worked on at a time: 8 MiB of float32


class Progress(Protocol):
    """Hears what is being done, how much of how many parts is done, and a note on how it goes."""

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None: ...


@dataclass(frozen=True)
class Accuracy:
    """How well a model predicts a text.

    perplexity         exp of the mean -ln p of the tokens that follow the scored positions
    perplexity_error   its standard error
    n_ctx, n_chunks    tokens of a chunk, and chunks
    n_scored           scored positions in all
    tokens             of all chunks
    divergence         from the reference; None without one
    """

    perplexity: float
    perplexity_error: float
    n_ctx: int
    n_chunks: int
    n_scored: int
    tokens: int
    divergence: Divergence | None


def read_text(path: str | os.PathLike[str]) -> tuple[str, str]:
    """Return a file's text without one line feed at its end, and the first 12 digits of the file's SHA-256.

    Raises UsageError when it cannot be read or is not UTF-8.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not valid UTF-8: byte {error.start} cannot be read") from None
    return text.removesuffix("\n"), hashlib.sha256(data).hexdigest()[:12]


def check_sizes(n_ctx: int, n_chunks: int | None) -> None:
    """Raise UsageError for chunks that cannot be: tokens of one, and how many (None: all)."""
    if n_ctx < MIN_CONTEXT:
        raise UsageError(f"a context of {n_ctx} tokens has no position to score; allowed: {MIN_CONTEXT} or more")
    if n_chunks is not None and n_chunks < 1:
        raise UsageError(f"{n_chunks} chunks cannot be measured; allowed: 1 or more")


def check_files(reference: Path | None, save_logits: Path | None) -> None:
    """Raise UsageError for a reference that cannot be read, OutputExistsError for a file of logits that is there."""
    if reference is not None:
        is_logits_file(reference)
    if save_logits is not None:
        check_target(save_logits, WAY_OUT)


def text_chunks(tokenizer: Tokenizer, text: str, n_ctx: int, n_chunks: int | None = None) -> NDArray[np.int32]:
    """Return the tokens of `text`, int32 [n_chunks, n_ctx]: all that fill whole chunks, or of the first `n_chunks`.

    The whole text is tokenized once, with BOS where the vocabulary adds it.  Raises UsageError for sizes out of range
    and for a text of fewer than 2 n_ctx tokens, UnsupportedError for a vocabulary that adds EOS.
    """
    check_sizes(n_ctx, n_chunks)
    if tokenizer.add_eos:
        where = tokenizer.vocabulary.path
        raise UnsupportedError("for texts in chunks, tokenizer.ggml.add_eos_token", "true", ("false",), where=where)
    ids = tokenizer.encode(text, add_special=True)
    if len(ids) < 2 * n_ctx:
        raise UsageError(f"the text has {len(ids)} tokens; a context of {n_ctx} needs {2 * n_ctx} or more")
    count = min(len(ids) // n_ctx, n_chunks or len(ids))
    return np.array(ids[: count * n_ctx], np.int32).reshape(count, n_ctx)


def measure_accuracy(
    llm: LLM,
    text: str,
    *,
    n_ctx: int = CONTEXT,
    n_chunks: int | None = None,
    reference: Path | None = None,
    save_logits: Path | None = None,
    progress: Progress | None = None,
) -> Accuracy:
    """Measure how well `llm` predicts `text`.

    n_ctx        tokens of a chunk
    n_chunks     the most chunks; None: all of the text, or those that the reference's file holds
    reference    a GGUF file, or a file of logits (logits_file.py), to tell the divergence from.  A GGUF file is loaded
                 beside `llm` and run first; its logits go to a temporary file
    save_logits  where to write this model's logits, as a reference for others
    progress     hears of loading, and of each chunk

    Raises what text_chunks raises; ContextLengthError; UsageError when reference and model have not the same tokens or
    the positions are too few for statistics; ModelFileError for a damaged file, or logits that are not numbers.
    """
    chunks = text_chunks(llm.tokenizer, text, n_ctx, n_chunks)
    if n_ctx > llm.n_ctx:
        raise ContextLengthError(f"chunks of {n_ctx} tokens do not fit the model's context of {llm.n_ctx} tokens")
    with contextlib.ExitStack() as stack:
        base = None
        if reference is not None and is_logits_file(reference):
            base = stack.enter_context(LogitsReader(reference))
            chunks = _common_chunks(base, llm, chunks)
        n_scored = len(chunks) * scored_rows(n_ctx)
        if reference is not None and n_scored < MIN_POSITIONS:
            raise UsageError(
                f"{len(chunks)} chunks of {n_ctx} tokens have {n_scored} positions to score; "
                f"to tell a divergence, {MIN_POSITIONS} are needed"
            )
        save = None
        if save_logits is not None:
            save = stack.enter_context(LogitsWriter(save_logits, chunks, llm.model.n_vocab))
        if reference is not None and base is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="halfbyte-")))
            file = _run_reference(reference, llm, text, chunks, folder, progress)
            base = stack.enter_context(LogitsReader(file))
        nll, compared = _score(llm, chunks, base, save, progress)
    value, error = perplexity(nll)
    return Accuracy(
        perplexity=value,
        perplexity_error=error,
        n_ctx=n_ctx,
        n_chunks=len(chunks),
        n_scored=n_scored,
        tokens=chunks.size,
        divergence=summarize(compared) if compared else None,
    )


def _common_chunks(base: LogitsReader, llm: LLM, chunks: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the chunks that the reference's file holds too; UsageError when its tokens are others."""
    n_ctx = chunks.shape[1]
    for what, theirs, ours in (
        ("chunks of {} tokens", base.n_ctx, n_ctx),
        ("a vocabulary of {} tokens", base.n_vocab, llm.model.n_vocab),
    ):
        if theirs != ours:
            raise UsageError(f"{base.path}: has {what.format(theirs)}, and this measurement {what.format(ours)}")
    chunks = chunks[: base.n_chunks]
    different = np.argwhere(base.tokens[: len(chunks)] != chunks)
    if len(different):
        chunk, token = different[0]
        found = f"{base.tokens[chunk, token]} and not {chunks[chunk, token]}"
        raise UsageError(f"{base.path}: is of another text: token {token} of chunk {chunk} is {found}")
    return chunks


def _run_reference(
    path: Path, llm: LLM, text: str, chunks: NDArray[np.int32], folder: Path, progress: Progress | None
) -> Path:
    """Write the logits of the model `path` into a file in `folder` and return its path."""
    n_chunks, n_ctx = chunks.shape
    file = folder / "reference.logits"
    options = dataclasses.replace(llm.options, context=n_ctx)
    with LLM(path, progress=progress, **dataclasses.asdict(options)) as base:
        _check_vocabulary(llm, base)
        if not np.array_equal(text_chunks(base.tokenizer, text, n_ctx, n_chunks), chunks):
            raise UsageError(f"{path}: the reference cuts the text into other tokens than the model")
        size = size_text(file_bytes(n_chunks, n_ctx, base.model.n_vocab))
        what = f"running the reference ({size} on disk)"
        with LogitsWriter(file, chunks, base.model.n_vocab) as writer:
            if progress:
                progress(what, 0, n_chunks)
            for part in _scored_logits(base, chunks):
                writer.append(part.logits)
                if progress and part.rows.stop == scored_rows(n_ctx):
                    progress(what, part.chunk + 1, n_chunks)
    return file


def _check_vocabulary(llm: LLM, base: LLM) -> None:
    """Raise UsageError unless both models have the same tokens."""
    ours, theirs = llm.tokenizer.vocabulary.tokens, base.tokenizer.vocabulary.tokens
    if (len(ours), llm.model.n_vocab) != (len(theirs), base.model.n_vocab):
        found = f"a vocabulary of {base.model.n_vocab} tokens, and the model {llm.model.n_vocab}"
        raise UsageError(f"{base.model.path}: the reference has {found}")
    different = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), None)
    if different is not None:
        found = f"{base.tokenizer.token_text(different)!r}, and the model's {llm.tokenizer.token_text(different)!r}"
        raise UsageError(f"{base.model.path}: token {different} of the reference is {found}")


@dataclass(frozen=True)
class _Scored:
    """Some scored positions of chunk `chunk`: `rows` of them, counted from the first.

    logits  float32 [n, n_vocab], the engine's own
    sums    float64 [n], their log_sums
    """

    chunk: int
    rows: slice
    logits: NDArray[np.float32]
    sums: NDArray[np.float64]


def _scored_logits(llm: LLM, chunks: NDArray[np.int32]) -> Iterator[_Scored]:
    """Run the model over the chunks, a few positions at a time.

    Where the vocabulary adds BOS, it stands in the place of a chunk's first token.  Raises ModelFileError for logits
    that are not finite numbers.
    """
    tokenizer, n_ctx = llm.tokenizer, chunks.shape[1]
    at_once = max(1, _SLICE // llm.model.n_vocab)
    for number, chunk in enumerate(chunks):
        ids = chunk[:-1].tolist()
        if tokenizer.add_bos and tokenizer.bos_id is not None:
            ids[0] = tokenizer.bos_id
        row = 0
        for block in llm.stream_logits(ids, first_scored(n_ctx)):
            for start in range(0, len(block), at_once):
                logits = block[start : start + at_once]
                sums = log_sums(logits)
                if not np.isfinite(logits).all():
                    raise ModelFileError(llm.model.path, f"gives logits that are not finite numbers, in chunk {number}")
                yield _Scored(number, slice(row, row + len(logits)), logits, sums)
                row += len(logits)


def _score(
    llm: LLM,
    chunks: NDArray[np.int32],
    base: LogitsReader | None,
    save: LogitsWriter | None,
    progress: Progress | None,
) -> tuple[NDArray[np.float64], Positions | None]:
    """Run the model over the chunks; return -ln p of each scored token, float64 [n], and with `base` the comparison."""
    n_chunks, n_ctx = chunks.shape
    following = chunks[:, first_scored(n_ctx) + 1 :]
    nll = np.zeros((n_chunks, scored_rows(n_ctx)))
    compared: list[Positions] = []
    if progress:
        progress("measuring", 0, n_chunks)
    for part in _scored_logits(llm, chunks):
        tokens = following[part.chunk, part.rows]
        nll[part.chunk, part.rows] = part.sums - part.logits[np.arange(len(tokens)), tokens]
        if base is not None:
            compared.append(compare(part.logits, part.sums, base.log_probabilities(part.chunk, part.rows), tokens))
        if save is not None:
            save.append(part.logits)
        if progress and part.rows.stop == scored_rows(n_ctx):
            done = part.chunk + 1
            running = perplexity(nll[:done]).value
            progress("measuring", done, n_chunks, f"chunk {done} of {n_chunks}, perplexity {running:.4f}")
    return nll.ravel(), Positions.joined(compared) if base is not None else None
