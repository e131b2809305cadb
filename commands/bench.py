"""Measure speed or accuracy, also beside other engines: speed MODEL, accuracy MODEL --text FILE, peers MODEL...

  speed      how many tokens a second it reads and generates: llama-bench's table
  accuracy   how well it predicts a text, and how far it is from a reference: llama-perplexity's figures
  peers      the speed of llama.cpp and others beside it, in turns, and of the machine itself
  shapes     a random model of a published shape, as large as the real one, without a download

`halfbyte bench speed --help` tells the options, and so do the others.
"""

from __future__ import annotations

from importlib import import_module

from ..errors import UsageError
from . import _options

_KINDS = {"speed": "MODEL", "accuracy": "MODEL", "peers": "MODEL...", "shapes": "SHAPE"}  # the modules _bench_<name>.py


def main(argv: list[str]) -> int:
    """Run `halfbyte bench`."""
    if argv and argv[0] in _KINDS:
        return import_module(f"._bench_{argv[0]}", __package__).main(argv[1:])
    if "-h" in argv or "--help" in argv:
        _options.command_parser("bench", __doc__, f"{'|'.join(_KINDS)} ...").print_help()
        return 0
    known = ", ".join(f"halfbyte bench {name} {word}" for name, word in _KINDS.items())
    raise UsageError(f"the first word says what to measure: {known}")
