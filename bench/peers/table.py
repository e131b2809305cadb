"""A comparison as Markdown and as JSON.  Enters: rows and what is known of model and machine; leaves: text, records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from ..report import markdown
from .comparison import Comparison
from .engines import OURS
from .figures import BYTES, MachineLimits, Result, Row, Spread


def text(comparison: Comparison) -> str:
    """Return a Markdown document: who ran, the machine's limits, the table, what failed and what is missing."""
    parts = [f"## {comparison.title}", _who(comparison), _limits(comparison.limits), _table(comparison)]
    if comparison.failures:
        lines = [(f.engine, str(f.threads), f.figure, f.reason.replace("|", "/")) for f in comparison.failures]
        parts.append(markdown(("failed", "threads", "from", "why"), lines, (False, True, False, False)))
    parts += [f"Not compared: {peer}: {needs}." for peer, needs in comparison.missing.items()]
    return "\n\n".join(parts)


def _who(comparison: Comparison) -> str:
    engines = ", ".join(f"{peer} {version}".rstrip() for peer, version in comparison.versions.items())
    machine = comparison.machine
    return f"{engines}; {machine['cpu']}, {machine['instruction_set']}, {machine['usable_cores']} cores"


def _limits(limits: Iterable[MachineLimits]) -> str:
    rows = [(str(limit.threads), _spread(limit.read, 1e9, 1), _spread(limit.operations, 1e9, 0)) for limit in limits]
    return markdown(("threads", "plain read, GB/s", "integer peak, Gop/s"), rows, (True, True, True))


def _table(comparison: Comparison) -> str:
    header = ["threads", "test", OURS, "of limit"]
    for peer in comparison.peers:
        header += [peer, "of limit", f"{OURS} / {peer}"]
    lines = []
    for row in comparison.rows:
        ours = row.results[OURS]
        line = [str(row.threads), f"{row.figure}, {_unit(row)}", _value(row, ours), _part(ours)]
        for peer in comparison.peers:
            theirs = row.results[peer]
            line += [_value(row, theirs), _part(theirs), _spread(theirs.ratio) if theirs.ratio else ""]
        lines.append(line)
    return markdown(header, lines, [i != 1 for i in range(len(header))])


def _unit(row: Row) -> str:
    """The unit of a row's values."""
    return "t/s" if row.case else "MiB" if row.figure in BYTES else "s"


def _value(row: Row, result: Result) -> str:
    if result.value is None:
        return "none"
    digits = 2 if row.case is None else 1
    return f"{result.value.middle / (1 << 20):.0f}" if row.figure in BYTES else f"{result.value.middle:.{digits}f}"


def _part(result: Result) -> str:
    return f"{100 * result.of_limit:.0f} %" if result.of_limit is not None else ""


def _spread(found: Spread, unit: float = 1.0, digits: int = 2) -> str:
    middle, low, high = (f"{x / unit:.{digits}f}" for x in (found.middle, found.low, found.high))
    return f"{middle} ({low} to {high})"


def record(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as a JSON object: medians with the values of every turn, in tokens per second, seconds,
    bytes; parts of the limit and ratios as numbers.
    """
    figures = []
    for row in comparison.rows:
        case = asdict(row.case) if row.case else None
        unit = {"t/s": "tokens/s", "MiB": "bytes", "s": "s"}[_unit(row)]
        results = {peer: asdict(result) for peer, result in row.results.items()}
        figures.append({"threads": row.threads, "figure": row.figure, "unit": unit, "case": case, "results": results})
    return {
        "model": comparison.model,
        "machine": comparison.machine,
        "versions": comparison.versions,
        "missing": comparison.missing,
        "limits": [asdict(limit) for limit in comparison.limits],
        "figures": figures,
        "failures": [asdict(failure) for failure in comparison.failures],
    }
