"""Write a random model of a published shape: SHAPE [OUT.gguf].

Shapes: 135m (SmolLM2), 0.5b (Qwen2.5, computed as Llama does), 1b and 3b (Llama 3.2), 8b (Llama 3.1).  Speed and memory
depend on the sizes, not on what the weights are; all layers have the same, so that they are made and rounded once.
With --checkpoint the same weights are written as Hugging Face lays them out, in bf16.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

from ..bench.report import count_text, size_text
from ..errors import UsageError, printable
from . import _options
from ._progress import Progress

_SEEDS = 1 << 63  # from 0


def main(argv: list[str]) -> int:
    """Run `halfbyte bench shapes`."""
    parser = _options.command_parser("bench shapes", __doc__, "SHAPE [OUT.gguf]")
    parser.add_argument("shape", metavar="SHAPE", help=argparse.SUPPRESS)
    parser.add_argument("out", metavar="OUT", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--type", metavar="TYPE", help="type of OUT, as for `halfbyte convert`")
    parser.add_argument("--pure", action="store_true", help="one format for all matrices, instead of a mixture")
    parser.add_argument("--checkpoint", metavar="FOLDER", help="write the checkpoint into FOLDER, which holds none yet")
    parser.add_argument("--seed", metavar="N", type=int, default=1, help="other weights (default: 1)")
    parser.add_argument("--force", action="store_true", help="replace OUT when it is there")
    arguments = parser.parse_intermixed_args(argv)

    from ..bench.synthetic.checkpoint import write_checkpoint
    from ..bench.synthetic.gguf import write_gguf
    from ..bench.synthetic.shapes import shape_by_name

    shape = shape_by_name(arguments.shape)
    if arguments.out is None and arguments.checkpoint is None:
        raise UsageError("there is nothing to write: name a GGUF file after the shape, or --checkpoint FOLDER")
    if (arguments.out is None) != (arguments.type is None):
        raise UsageError("a GGUF file needs its --type, and --type a GGUF file after the shape")
    if not 0 <= arguments.seed < _SEEDS:
        raise UsageError(f"--seed is {arguments.seed}; allowed: 0 to {_SEEDS - 1}")
    started = time.perf_counter()
    with Progress() as progress:
        if arguments.out is not None:
            told = partial(progress, f"writing {printable(arguments.out)}")
            write_gguf(
                arguments.out, shape, arguments.type.lower(), arguments.seed, arguments.force, told, arguments.pure
            )
        if arguments.checkpoint is not None:
            told = partial(progress, f"writing {printable(arguments.checkpoint)}")
            write_checkpoint(arguments.checkpoint, shape, arguments.seed, told)
    seconds = time.perf_counter() - started
    said = f"shape of {shape.model}, {count_text(shape.parameters)} parameters, {seconds:.1f} s"
    if arguments.out is not None:
        print(f"{printable(arguments.out)}: {size_text(Path(arguments.out).stat().st_size)}, {said}")
    if arguments.checkpoint is not None:
        print(f"{printable(arguments.checkpoint)}: bf16 checkpoint, {said}")
    return 0
