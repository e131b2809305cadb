"""Flags.  Enters: the option dataclasses and the words typed; leaves: the options given, checked.

A default, a range, a help text and flags are written once, in the dataclass's fields and their metadata; the parsers
here derive from them.  Only options that were typed are handed on.
argparse, because typer would take longer to start than a warm `run` takes to its first token (docs/architecture.md).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from ..errors import UsageError, printable


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose mistakes are UsageErrors: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print with its usage text."""
        raise UsageError(f"{message}; see '{self.prog} --help'")


def command_parser(name: str, doc: str | None, words: str) -> Parser:
    """Return the parser of `halfbyte <name>`; the help is the command module's docstring, `words` its arguments."""
    return Parser(
        prog=f"halfbyte {name}",
        usage=f"halfbyte {name} [options] {words}",
        description=doc,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_model(parser: Parser) -> None:
    """Add MODEL, as the first word or with llama.cpp's -m."""
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("-m", "--model", metavar="MODEL", help="GGUF file or pulled model (or the first argument)")


def model_and_word(arguments: argparse.Namespace, name: str | None = None) -> tuple[str, str | None]:
    """Return MODEL's path and the word after it, called `name` (None: no such word), from the words and -m.

    Raises UsageError when MODEL is missing or words are left over, or what `model_path` raises.
    """
    words: list[str] = [arguments.model] if arguments.model is not None else []
    words += arguments.words
    allowed = ["MODEL", *([name] if name else [])]
    if not words:
        raise UsageError("MODEL is missing: name a GGUF file or a model that was pulled")
    if len(words) > len(allowed):
        raise UsageError(f"unexpected argument {words[len(allowed)]!r}: the arguments are {' '.join(allowed)}")
    return model_path(words[0]), words[1] if len(words) > 1 else None


def model_path(word: str, default: str | None = None) -> str:
    """Return the path that MODEL or SRC stands for: `word` itself, or where the pulled model of that name lies.

    default  the kind that OWNER/REPO alone means; None: that of a model to run
    Raises UsageError for a name under which several models were pulled, or none.
    """
    if Path(word).exists():
        return word
    from ..hub.names import DEFAULT_KIND, parse_name
    from ..hub.store import find_path

    path = find_path(word, default or DEFAULT_KIND)
    if path == word and parse_name(word) and not word.endswith(".gguf"):
        raise UsageError(f"{word}: no such file, and no model of this name was pulled (halfbyte pull brings one)")
    return path


def add_fields(parser: Parser, options: type, *, leave_out: tuple[str, ...] = ()) -> None:
    """Add a flag for each field of the dataclass `options` but those in `leave_out`."""
    hints = get_type_hints(options)
    for field in dataclasses.fields(options):
        if field.name not in leave_out:
            parser.add_argument(*field.metadata["flags"], dest=field.name, **_argument(field, hints[field.name]))


def _argument(field: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    """Return argparse's keywords for one field; it stays out of the namespace unless it is given."""
    text = str(field.metadata["help"])
    argument: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    if hint is bool:
        return argument | {"action": argparse.BooleanOptionalAction}
    if hint == tuple[str, ...]:
        return argument | {"action": "append", "metavar": "TEXT"}
    if field.default is not None:
        argument["help"] += f" (default: {field.default})"
    if "choices" in field.metadata:
        return argument | {"metavar": "|".join(field.metadata["choices"])}
    kind = next(kind for kind in (int, float, str) if kind in (hint, *getattr(hint, "__args__", ())))
    return argument | {"type": kind, "metavar": {int: "N", float: "X", str: "TEXT"}[kind]}


def given(arguments: argparse.Namespace, options: type, *, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the fields of the dataclass `options` that were typed, as keywords for it."""
    names = [field.name for field in dataclasses.fields(options) if field.name not in leave_out]
    found = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def numbers(flag: str, text: str, minimum: int = 0) -> list[int]:
    """Return the numbers of a list like "128,512"; raises UsageError, naming `flag`, for anything else."""
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < minimum:
        raise UsageError(f"{flag} is {printable(text)!r}; allowed: numbers from {minimum} with commas between")
    return found


def json_object(flag: str, text: str | None) -> dict[str, Any] | None:
    """Return the object that `text` is in JSON, None for no text; UsageError, naming `flag`, for anything else."""
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UsageError(f'{flag} is {printable(text, 80)!r}; allowed: a JSON object, as {{"name": true}}')
    return found


def text_or_input(word: str | None, what: str) -> str:
    """Return the argument `word`, or all of standard input when it is missing or "-".

    Raises UsageError when that is not UTF-8, or when there is neither a word nor an input other than the keyboard.
    """
    if word is not None and word != "-":
        try:
            word.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(f"{what} is not valid UTF-8: character {error.start} cannot be read") from None
        return word
    if word is None and sys.stdin.isatty():
        raise UsageError(f'{what} is missing: give it as an argument, or "-" to type it')
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not valid UTF-8: byte {error.start} cannot be read") from None
