"""Measure speed or accuracy: speed MODEL, accuracy MODEL --text FILE.

  speed      how many tokens a second it reads and generates: llama-bench's table
  accuracy   how well it predicts a text, and how far it is from a reference: llama-perplexity's figures

`halfbyte bench speed --help` and `halfbyte bench accuracy --help` tell the options.
"""

from __future__ import annotations

from importlib import import_module

from ..errors import UsageError
from . import _options

_MEASUREMENTS = ("speed", "accuracy")  # the modules _bench_<name>.py


def main(argv: list[str]) -> int:
    """Run `halfbyte bench`."""
    if argv and argv[0] in _MEASUREMENTS:
        return import_module(f"._bench_{argv[0]}", __package__).main(argv[1:])
    if "-h" in argv or "--help" in argv:
        _options.command_parser("bench", __doc__, "speed|accuracy MODEL").print_help()
        return 0
    known = ", ".join(f"halfbyte bench {name} MODEL" for name in _MEASUREMENTS)
    raise UsageError(f"the first word says what to measure: {known}")
