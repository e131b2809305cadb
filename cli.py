"""The command line.  Enters: the arguments after `halfbyte`; leaves: the exit code of the command that they name.

A command is a file `commands/<name>.py` with a function `main(argv) -> int`; it is found by name and only it is
imported, so that starting up costs what is used.  A file whose name begins with an underscore is a helper.
Exit codes: 0 done, 2 wrong use, 3 a file that cannot be used, 130 interrupted, 141 the reader of the output has left.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import HalfbyteError, HalfbyteWarning, UsageError, printable

_COMMANDS = Path(__file__).parent / "commands"
_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
_OUTPUT_CLOSED = 141  # 128 + SIGPIPE


def main(argv: list[str] | None = None) -> int:
    """Run the command named by `argv` (default: the process's arguments) and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal's encoding may lack a character
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", HalfbyteWarning)  # whatever PYTHONWARNINGS says of others
            warnings.showwarning = _teller(warnings.showwarning)
            code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except HalfbyteError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes standard output once more at exit: give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _OUTPUT_CLOSED
    except OSError as error:
        return _fail(str(error), UsageError.exit_code)
    except MemoryError as error:
        return _fail(f"not enough memory: {error}" if str(error) else "not enough memory", UsageError.exit_code)


def _teller(usual: Callable[..., None]) -> Callable[..., None]:
    """Return what shows a warning: one of ours as one line, another library's as `usual` does."""

    def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if issubclass(category, HalfbyteWarning):
            print("note: " + printable(message, 2000), file=sys.stderr, flush=True)
        else:
            usual(message, category, *where)

    return show


def _fail(message: str, code: int) -> int:
    print("error: " + printable(message, 2000), file=sys.stderr)
    return code


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if argv else UsageError.exit_code
    if argv[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"halfbyte {version('halfbyte')}")
        return 0
    name = argv[0]
    if name not in command_names():
        known = ", ".join(command_names())
        raise UsageError(f"{printable(name)!r} is not a command of halfbyte; there are: {known}")
    from importlib import import_module

    return import_module(f".commands.{name}", __package__).main(argv[1:])


def command_names() -> list[str]:
    """Return the names of the commands, sorted, found without importing any."""
    return sorted(file.stem for file in _COMMANDS.glob("[!_]*.py"))


def _overview() -> str:
    """Return the help text: every command with the first sentence of its module's docstring."""
    import ast

    lines = ["usage: halfbyte COMMAND [options]    (halfbyte COMMAND --help tells a command's options)", ""]
    for name in command_names():
        doc = ast.get_docstring(ast.parse((_COMMANDS / f"{name}.py").read_text("utf-8"))) or ""
        lines.append(f"  {name:10} {doc.splitlines()[0] if doc else ''}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
