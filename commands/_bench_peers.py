"""Measure halfbyte and other engines in turns on the same weights: MODEL...

Each engine runs in a process of its own, and they take turns run by run, so that all see the same machine: halfbyte,
llama.cpp (pip install llama-cpp-python; its better way of two to lay out weights counts), OpenVINO (pip install
openvino-genai), and with --checkpoint FOLDER transformers on torch in bf16.  What the machine itself can do, a plain
read of memory and byte products in registers, is measured in the same turns, and each figure shows how much of it was
used: prompts (pp) of the products, generation (tg) of the read.  Figures are medians; the ratio's spread is that of
single turns.

As it stands, a 1B model takes about half an hour: choose with -p -n -d -t --batch -r.  All engines are in memory at
the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError, printable
from . import _options
from ._progress import Progress

if TYPE_CHECKING:
    from ..bench.peers.comparison import Comparison

_TURNS = 5


def main(argv: list[str]) -> int:
    """Run `halfbyte bench peers`."""
    parser = _options.command_parser("bench peers", __doc__, "MODEL...")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="GGUF files")
    parser.add_argument("--checkpoint", metavar="FOLDER", type=Path, help="the models' checkpoint, for transformers")
    parser.add_argument(
        "--peers", metavar="LIST", default="", help="llama.cpp, openvino-genai, transformers (default: all)"
    )
    parser.add_argument(
        "-p", "--n-prompt", metavar="LIST", default="128,512", help="prompt tokens; 0: none (default: 128,512)"
    )
    parser.add_argument("-n", "--n-gen", metavar="LIST", default="64", help="generated tokens; 0: none (default: 64)")
    parser.add_argument(
        "-d", "--n-depth", metavar="LIST", default="0,1024,4096", help="tokens before (default: 0,1024,4096)"
    )
    parser.add_argument("--batch", metavar="LIST", default="1,4,8", help="sequences generated at once (default: 1,4,8)")
    parser.add_argument(
        "-t", "--threads", metavar="LIST", default="1,0", help="threads; 0: one for each usable core (default: 1,0)"
    )
    parser.add_argument("-r", "--turns", metavar="N", type=int, default=_TURNS, help=f"(default: {_TURNS})")
    parser.add_argument("-o", "--output", choices=("md", "json"), default="md", help="form of the output")
    parser.add_argument("--picture", metavar="FILE", type=Path, help="draw the ratios into a PNG")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.turns < 1:
        raise UsageError(f"-r is {arguments.turns}; allowed: 1 or more")
    prompts, generations, depths, threads = (
        _options.numbers(flag, text)
        for flag, text in (
            ("-p", arguments.n_prompt),
            ("-n", arguments.n_gen),
            ("-d", arguments.n_depth),
            ("-t", arguments.threads),
        )
    )
    batches = _options.numbers("--batch", arguments.batch, minimum=1)

    from ..bench.peers.base import Files
    from ..bench.peers.comparison import compare, known_peers
    from ..bench.peers.table import record, text
    from ..bench.peers.turns import cases
    from ..bench.report import json_text

    peers = known_peers([name.strip() for name in arguments.peers.split(",") if name.strip()])
    wanted = cases(prompts, generations, depths, batches)
    if not wanted:
        raise UsageError("there is nothing to measure: both -p and -n are 0")
    if arguments.picture is not None and not arguments.picture.parent.is_dir():
        raise UsageError(f"{arguments.picture.parent}: no such folder")
    files = [Files(Path(_options.model_path(model)), arguments.checkpoint) for model in arguments.models]
    comparisons = []
    with Progress() as progress:
        for one in files:
            comparisons.append(compare(one, peers, wanted, threads, arguments.turns, progress))
    forms = {
        "md": lambda: "\n\n".join(map(text, comparisons)),
        "json": lambda: json_text(list(map(record, comparisons))),
    }
    print(forms[arguments.output]())
    if arguments.picture is not None:
        _draw(arguments.picture, comparisons)
    return 0


def _draw(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Draw the ratios into the PNG `path`; raises UsageError where that is not possible."""
    try:
        from ..bench.picture import draw_ratios

        path.write_bytes(draw_ratios(comparisons))
    except ImportError as error:
        raise UsageError(f"no picture: matplotlib cannot be imported: {error}") from error
    except OSError as error:
        raise UsageError(f"{printable(path)}: {error.strerror or error}") from error
