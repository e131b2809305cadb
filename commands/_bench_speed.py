"""Measure speed: MODEL.

Prints llama-bench's table: prompt tokens (pp) and generated tokens (tg) per second, mean and deviation, and the memory
that is read for it.  Sizes and threads may be lists: -p 128,512 -t 1,2.  An encoder reads only: -n 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import UsageError
from ..runtime.options import RuntimeOptions
from . import _options
from ._progress import Progress


def main(argv: list[str]) -> int:
    """Run `halfbyte bench speed`."""
    parser = _options.command_parser("bench speed", __doc__, "MODEL")
    _options.add_model(parser)
    parser.add_argument("-p", "--n-prompt", metavar="LIST", default="512", help="prompt tokens; 0: none (default: 512)")
    parser.add_argument("-n", "--n-gen", metavar="LIST", default="128", help="generated tokens; 0: none (default: 128)")
    parser.add_argument("-d", "--n-depth", metavar="LIST", default="0", help="tokens in the cache before (default: 0)")
    parser.add_argument("-t", "--threads", metavar="LIST", default="0", help="threads; 0: one for each usable core")
    parser.add_argument("-r", "--repetitions", metavar="N", type=int, default=5, help="runs of each test (default: 5)")
    _options.add_fields(parser, RuntimeOptions, leave_out=("threads", "context"))
    parser.add_argument("-o", "--output", choices=("md", "json", "csv"), default="md", help="form of the output")
    arguments = parser.parse_intermixed_args(argv)
    model, _ = _options.model_and_word(arguments)
    if arguments.repetitions < 1:
        raise UsageError(f"-r is {arguments.repetitions}; allowed: 1 or more")
    prompts, generations, depths, threads = (
        _options.numbers(flag, text)
        for flag, text in (
            ("-p", arguments.n_prompt),
            ("-n", arguments.n_gen),
            ("-d", arguments.n_depth),
            ("-t", arguments.threads),
        )
    )

    from ..bench import speed
    from ..bench.report import csv_text, json_text

    wanted = speed.tests(prompts, generations, depths)
    options = _options.given(arguments, RuntimeOptions, leave_out=("threads", "context"))
    with Progress() as progress:
        measured = speed.measure(model, wanted, threads, arguments.repetitions, progress=progress, **options)
        records = list(measured)
    forms: dict[str, Callable[[list[dict[str, Any]]], str]] = {"md": speed.table, "json": json_text, "csv": csv_text}
    print(forms[arguments.output](records))
    return 0
