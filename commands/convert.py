"""Convert a checkpoint to GGUF: SRC [OUT].

SRC is a Hugging Face folder: config.json, a tokenizer, and safetensors (or .bin/.pt with the extra `torch`).  OUT is
the file to write, <SRC>-<TYPE>.gguf in the current folder when it is left out.  At the end a table shows what was
written and, for each type, the tensor that lost most in rounding.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator

from ..bench.report import columns, json_text, size_text
from ..convert import ConversionReport, convert_checkpoint
from ..convert.conversion import DEFAULT_TYPE, Progress
from ..errors import printable
from ..quant.recipe import ALIASES, RECIPES
from . import _options


def main(argv: list[str]) -> int:
    """Run `halfbyte convert`."""
    parser = _options.command_parser("convert", __doc__, "SRC [OUT]")
    parser.add_argument("src", metavar="SRC", help=argparse.SUPPRESS)
    parser.add_argument("out", metavar="OUT", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument(
        "--type",
        type=str.lower,
        choices=[*RECIPES, *ALIASES],
        default=DEFAULT_TYPE,
        metavar="TYPE",
        help=f"type of the file: {', '.join(RECIPES)} (default: {DEFAULT_TYPE})",
    )
    parser.add_argument("--pure", action="store_true", help="one format for all matrices, instead of a mixture")
    parser.add_argument(
        "--tensor-type",
        metavar="REGEX=FORMAT",
        action="append",
        default=[],
        help="format of the tensors in whose name REGEX is found; may be repeated, the first that is found counts",
    )
    parser.add_argument("--force", action="store_true", help="replace OUT when it is there")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_intermixed_args(argv)
    with _progress_bar() as progress:
        report = convert_checkpoint(
            arguments.src,
            arguments.out,
            arguments.type,
            arguments.force,
            progress,
            pure=arguments.pure,
            tensor_types=arguments.tensor_type,
        )
    print(json_text(report.to_json()) if arguments.json else _table(report))
    return 0


@contextlib.contextmanager
def _progress_bar() -> Iterator[Progress | None]:
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
                summary.worst.name if error else "",
            )
        )
    memory = f", memory grew by {size_text(report.peak_growth)}" if report.peak_growth is not None else ""
    return (
        f"{columns(rows, [False, True, True, True, True, False])}\n"
        f"{printable(report.path)}: {size_text(report.file_bytes)}, {report.bits_per_weight:.2f} bits per weight, "
        f"{report.seconds:.1f} s{memory}" + "".join(f"\nnote: {note}" for note in report.notes)
    )
