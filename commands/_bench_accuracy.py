"""Measure accuracy on a text: MODEL --text FILE.

Prints the perplexity as llama-perplexity computes it: the text in chunks, the second half of each scored.  With
--reference also how far the model is from another: KL divergence, change of probabilities, equal most likely tokens.
A reference is a GGUF file, or a file of its logits that --save-logits wrote here or --kl-divergence-base in
llama-perplexity; one file serves any number of models.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..bench.accuracy import CONTEXT, check_files, check_sizes, measure_accuracy, read_text
from ..bench.accuracy_report import record, table
from ..bench.report import csv_text, json_text
from ..runtime.llm import LLM
from ..runtime.options import RuntimeOptions
from . import _options
from ._progress import Progress


def main(argv: list[str]) -> int:
    """Run `halfbyte bench accuracy`."""
    parser = _options.command_parser("bench accuracy", __doc__, "MODEL --text FILE")
    _options.add_model(parser)
    parser.add_argument("--text", metavar="FILE", required=True, help="the text, in UTF-8")
    parser.add_argument("--reference", metavar="FILE", type=Path, help="a model or its logits, to compare with")
    parser.add_argument(
        "-c", "--ctx", metavar="N", type=int, default=CONTEXT, help=f"tokens of a chunk (default: {CONTEXT})"
    )
    parser.add_argument("--chunks", metavar="N", type=int, help="the most chunks (default: the whole text)")
    parser.add_argument("--save-logits", metavar="FILE", type=Path, help="write the logits, as a reference for others")
    _options.add_fields(parser, RuntimeOptions, leave_out=("context",))
    parser.add_argument("-o", "--output", choices=("md", "json", "csv"), default="md", help="form of the output")
    arguments = parser.parse_intermixed_args(argv)
    model, _ = _options.model_and_word(arguments)
    check_sizes(arguments.ctx, arguments.chunks)
    check_files(arguments.reference, arguments.save_logits)
    text, text_sha256 = read_text(arguments.text)
    options = _options.given(arguments, RuntimeOptions, leave_out=("context",))
    with Progress() as progress, LLM(model, context=arguments.ctx, progress=progress, **options) as llm:
        found = measure_accuracy(
            llm,
            text,
            n_ctx=arguments.ctx,
            n_chunks=arguments.chunks,
            reference=arguments.reference,
            save_logits=arguments.save_logits,
            progress=progress,
        )
        measured = record(llm, found, text_sha256, str(arguments.reference) if arguments.reference else None)
    forms: dict[str, Callable[[list[dict[str, Any]]], str]] = {"md": table, "json": json_text, "csv": csv_text}
    print(forms[arguments.output]([measured]))
    return 0
