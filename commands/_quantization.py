"""What `convert` and `quantize` share: options, the bar, the tables.  Enters: words typed; leaves: text."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ..bench.report import columns, json_text, size_text
from ..errors import printable
from ..quant.recipe import ALIASES, RECIPES
from ..quant.report import ConversionReport, TensorPlan, bits_per_weight
from ..quant.tensor_stream import Progress
from ._options import Parser
from ._type_costs import types_text


def add_options(parser: Parser, default: str | None) -> None:
    """Add --type (without a default it must be given), --pure, --tensor-type, --dry-run, --force and --json."""
    parser.epilog = types_text()
    parser.add_argument(
        "--type",
        type=str.lower,
        choices=[*RECIPES, *ALIASES],
        default=default,
        required=default is None,
        metavar="TYPE",
        help="type of the file: one of those below" + (f" (default: {default})" if default else ""),
    )
    parser.add_argument("--pure", action="store_true", help="one format for all matrices, instead of a mixture")
    parser.add_argument(
        "--tensor-type",
        metavar="REGEX=FORMAT",
        action="append",
        default=[],
        help="format of the tensors in whose name REGEX is found; may be repeated, the first that is found counts",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the format of every tensor, and write nothing")
    parser.add_argument("--force", action="store_true", help="replace OUT when it is there")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")


def choice(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the keywords that choose the formats."""
    return {"pure": arguments.pure, "tensor_types": arguments.tensor_type}


def print_plan(tensors: Sequence[TensorPlan], arguments: argparse.Namespace) -> None:
    """Print what would be written."""
    nbytes, bits = sum(tensor.nbytes for tensor in tensors), bits_per_weight(tensors)
    if arguments.json:
        record = {"type": arguments.type, "bytes": nbytes, "bits_per_weight": bits}
        print(json_text(record | {"tensors": [tensor.to_json() for tensor in tensors]}))
        return
    rows = [("tensor", "shape", "format", "bytes", "")]
    for tensor in tensors:
        shape = " x ".join(map(str, tensor.shape))
        source = f"{tensor.scheme}, {tensor.repacked}" if tensor.scheme else ""
        rows.append((printable(tensor.name), shape, tensor.format.upper(), str(tensor.nbytes), source))
    print(columns(rows, [False, True, False, True, False]))
    print(f"{arguments.type}: {size_text(nbytes)}, {bits:.2f} bits per weight; not written")


def print_report(report: ConversionReport, arguments: argparse.Namespace) -> None:
    """Print what was written."""
    print(json_text(report.to_json()) if arguments.json else _table(report))


def _table(report: ConversionReport) -> str:
    rows = [("type", "tensors", "size", "bits/weight", "worst relative error", "in tensor")]
    for summary in report.by_type():
        error = summary.worst.relative_error
        rows.append(
            (
                summary.format.upper(),
                str(summary.tensors),
                size_text(summary.nbytes),
                f"{summary.bits_per_weight:.2f}",
                f"{error:.2e}" if error else "exact",
                printable(summary.worst.name) if error else "",
            )
        )
    memory = f", memory grew by {size_text(report.peak_growth)}" if report.peak_growth is not None else ""
    return (
        f"{columns(rows, [False, True, True, True, True, False])}\n"
        f"{printable(report.path)}: {size_text(report.file_bytes)}, {report.bits_per_weight:.2f} bits per weight, "
        f"{report.seconds:.1f} s{memory}" + "".join(f"\nnote: {note}" for note in report.notes)
    )


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """Give the callback that moves a bar on standard error; None where no terminal would show it."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    shown = (
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*shown, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def move(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=name)

        yield move
