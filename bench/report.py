"""Tables and figures as text.  Enters: rows and numbers; leaves: Markdown, CSV or JSON, in llama-bench's forms.

Sizes count in binary units (MiB), parameters in decimal ones (M, B), as llama-bench writes them.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..runtime.steps import Timings


def size_text(n_bytes: int) -> str:
    """Return a number of bytes as text: 727.75 MiB."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.2f} {unit}"
    return f"{n_bytes} B"


def count_text(n: int) -> str:
    """Return a number of parameters as text: 1.24 B."""
    for unit, scale in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if n >= scale:
            return f"{n / scale:.2f} {unit}"
    return str(n)


def mean_and_deviation(samples: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation (0 for one sample)."""
    mean = math.fsum(samples) / len(samples)
    if len(samples) == 1:
        return mean, 0.0
    return mean, math.sqrt(math.fsum((x - mean) ** 2 for x in samples) / (len(samples) - 1))


def speed_text(timings: Timings) -> str:
    """Return one line about the speed of a generation."""
    computed = timings.prompt_tokens - timings.cached_tokens
    cached = f" (+ {timings.cached_tokens} cached)" if timings.cached_tokens else ""
    return (
        f"prompt: {computed} tokens{cached}, {timings.prompt_per_second:.1f} t/s | "
        f"generated: {timings.generated_tokens} tokens, {timings.generation_per_second:.1f} t/s"
    )


def timings_record(timings: Timings) -> dict[str, float]:
    """Return the timings of a generation as a JSON object: counts, seconds, and tokens per second."""
    return {
        **dataclasses.asdict(timings),
        "prompt_per_second": timings.prompt_per_second,
        "generation_per_second": timings.generation_per_second,
    }


def markdown(headers: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[bool]) -> str:
    """Return a Markdown table whose columns also line up as plain text; `right` says which are right-aligned."""
    table = [list(headers), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["| " + " | ".join(map(_cell, row, widths, right)) + " |" for row in table]
    rule = "| " + " | ".join("-" * (w - r) + ":" * r for w, r in zip(widths, right, strict=True)) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])


def columns(rows: Iterable[Sequence[str]], right: Sequence[bool], indent: str = "  ") -> str:
    """Return rows as plain columns, two spaces apart; `right` says which are right-aligned."""
    table = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)] if table else []
    return "\n".join((indent + "  ".join(map(_cell, row, widths, right))).rstrip() for row in table)


def _cell(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else text.ljust(width)


def csv_text(records: Sequence[Mapping[str, Any]]) -> str:
    """Return records with the same keys as CSV, lists as JSON in their cell."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in record.items()})
    return out.getvalue().rstrip("\n")


def json_text(value: Any, indent: int | None = 2) -> str:
    """Return strict JSON; a float that JSON cannot hold becomes a string ("nan", "inf")."""
    return json.dumps(_strict(value), indent=indent, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
