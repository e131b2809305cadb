"""The one tree of errors.  Enters: what was found and what is allowed; leaves: one clear line and an exit code.

Library code raises these; the command line prints `str(error)` on one line and exits with `error.exit_code`.
What the user should know although it goes on is a `HalfbyteWarning`: one line at the command line, too.
"""

from __future__ import annotations

from os import PathLike


def printable(text: object, limit: int = 120) -> str:
    """Return `text` on one line with control characters escaped, cut to `limit` characters (names come from files)."""
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return escaped if len(escaped) <= limit else escaped[: limit - 3] + "..."


class HalfbyteError(Exception):
    """Base of every error that halfbyte raises on purpose."""

    exit_code = 2


class HalfbyteWarning(UserWarning):
    """Something was not as it should be, and a way around it was found."""


class UsageError(HalfbyteError):
    """An option, argument or path that cannot be used as given (exit code 2)."""


class OutputExistsError(UsageError):
    """The output is there already and `--force` was not given (exit code 2)."""


class ContextLengthError(UsageError):
    """A prompt does not fit the context (exit code 2); the message gives both numbers."""


class UnsupportedError(HalfbyteError):
    """An architecture, tensor type, tokenizer or option that is not supported (exit code 3).

    what       e.g. "architecture"
    found      the name that was found
    supported  the names that are supported
    """

    exit_code = 3

    def __init__(self, what: str, found: object, supported: list[str] | tuple[str, ...], where: object = None):
        self.what, self.found, self.supported = what, found, tuple(supported)
        prefix = f"{where}: " if where is not None else ""
        super().__init__(f"{prefix}{what} {printable(found)!r} is not supported; supported: {', '.join(supported)}")


class ModelFileError(HalfbyteError):
    """A checkpoint or GGUF file is damaged, foreign or contradicts itself (exit code 3).

    path    the file
    place   section, key or tensor, as text (None for the file as a whole)
    offset  byte offset of the field in the file, where one is known
    """

    exit_code = 3

    def __init__(self, path: str | PathLike[str], message: str, *, place: str | None = None, offset: int | None = None):
        self.path, self.place, self.offset = str(path), place, offset
        where = f"{self.path}: "
        if place is not None:
            where += printable(place)
        if offset is not None:
            where += f" at byte {offset} ({offset:#x})"
        super().__init__(where.rstrip() + (": " if place is not None or offset is not None else " ") + message)
