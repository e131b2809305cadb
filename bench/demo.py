"""One checkpoint in several types, compared.  Enters: their GGUF files, a text and questions; leaves: a row a type.

The first file is the reference: what the others predict is held against what it predicts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelFileError
from ..runtime.llm import LLM, ModelInfo
from . import speed
from .accuracy import CONTEXT, Accuracy, Progress, measure_accuracy
from .questions import Question, Score, ask_all
from .report import columns, size_text

EXAMPLES = ("What is halfbyte?", "What does Q4_0 mean?", "How do I convert a checkpoint to GGUF?")
"""What the demonstration asks."""

CHECKED = 64
"""Tokens of the check."""
PROMPT, GENERATED = 256, 64
"""Tokens of the two measurements of speed."""

_REPETITIONS = 3
_HEADERS = ("type", "size", "bits/w", "perplexity", "KL to {}", "top-1", "right", "prefill t/s", "decode t/s")


@dataclass(frozen=True)
class Row:
    """One type, measured.

    file_bytes        size of the file
    bits_per_weight   bits of tensor data for each weight
    perplexity        of the text, and its standard error
    mean_kl           divergence of its predictions from the reference's, in nats; None for the reference itself
    same_top          part of the positions (0 to 1) with the reference's likeliest token; None as before
    right, questions  questions answered right, questions asked
    prefill, decode   tokens per second
    """

    type: str
    file_bytes: int
    bits_per_weight: float
    perplexity: float
    perplexity_error: float
    mean_kl: float | None
    same_top: float | None
    right: int
    questions: int
    prefill: float
    decode: float


def check(llm: LLM, text: str) -> NDArray[np.int64]:
    """Run the first CHECKED tokens of `text` through a model twice, all at once and one by one.

    Returns the likeliest token after each, int64 [CHECKED].  Raises ModelFileError when a logit is not finite or the
    two ways differ.
    """
    ids = llm.tokenize(text)[:CHECKED]
    logits = llm.logits(ids)
    if not np.isfinite(logits).all():
        raise ModelFileError(llm.model.path, "gives logits that are not finite")
    tokens = logits.argmax(axis=1)
    sequence = llm.engine.new_sequence()
    one_by_one = [int(llm.engine.feed(sequence, [token]).argmax()) for token in ids]
    sequence.close()
    if one_by_one != tokens.tolist():
        raise ModelFileError(llm.model.path, "gives other tokens one by one than all at once")
    return tokens


def compare(
    files: Mapping[str, Path],
    text: str,
    questions: Sequence[Question],
    *,
    progress: Progress | None = None,
    **options: Any,
) -> list[Row]:
    """Return the row of each of `files`, type -> GGUF file, the reference first.

    text       what perplexity and divergence are measured on
    progress   hears of what takes long, with the type in front
    options    fields of RuntimeOptions, for every file

    Raises what opening a model raises, and UsageError when `text` is too short.
    """
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="halfbyte-") as folder:
        logits = Path(folder) / "reference"
        for type, path in files.items():
            reference, kept = (logits, None) if rows else (None, logits)
            tell = partial(_tell, progress, type)
            with LLM(path, progress=tell, **options) as llm:
                n_ctx = min(CONTEXT, llm.n_ctx)
                accuracy = measure_accuracy(
                    llm, text, n_ctx=n_ctx, reference=reference, save_logits=kept, progress=tell
                )
                score = ask_all(llm, questions, tell)
            rows.append(_row(type, llm.model, accuracy, score, *_speeds(path, options)))
    return rows


def _tell(progress: Progress | None, type: str, what: str, done: int, total: int, note: str = "") -> None:
    if progress:
        progress(f"{type}: {what}", done, total, note)


def _speeds(path: Path, options: Mapping[str, Any]) -> tuple[float, float]:
    """Return tokens per second, read and generated; a second's work."""
    others = {name: value for name, value in options.items() if name not in ("threads", "context")}
    tests = speed.tests([PROMPT], [GENERATED], [0])
    prefill, decode = speed.measure(path, tests, [options.get("threads", 0)], _REPETITIONS, **others)
    return prefill["avg_ts"], decode["avg_ts"]


def _row(type: str, model: ModelInfo, accuracy: Accuracy, score: Score, prefill: float, decode: float) -> Row:
    divergence = accuracy.divergence
    return Row(
        type=type,
        file_bytes=model.file_bytes,
        bits_per_weight=8 * model.size_bytes / model.n_params,
        perplexity=accuracy.perplexity,
        perplexity_error=accuracy.perplexity_error,
        mean_kl=divergence.kl.value if divergence else None,
        same_top=divergence.same_top.value if divergence else None,
        right=score.right,
        questions=score.total,
        prefill=prefill,
        decode=decode,
    )


def table(rows: Sequence[Row]) -> str:
    """Return the rows as plain columns; the first is the reference."""
    lines = [tuple(header.format(rows[0].type) for header in _HEADERS)]
    lines += [
        (
            row.type,
            size_text(row.file_bytes),
            f"{row.bits_per_weight:.2f}",
            f"{row.perplexity:.3f} ± {row.perplexity_error:.3f}",
            "-" if row.mean_kl is None else f"{row.mean_kl:.5f}",
            "-" if row.same_top is None else f"{100 * row.same_top:.1f} %",
            f"{row.right} of {row.questions}",
            f"{row.prefill:.0f}",
            f"{row.decode:.0f}",
        )
        for row in rows
    ]
    return columns(lines, [False] + [True] * (len(_HEADERS) - 1))
