"""The sampling options.  Enters: keywords from Python, a command line or a request; leaves: checked, immutable values.

Every name, default, range and help text is written here once; command-line flags and request fields derive from
`dataclasses.fields(SamplingParams)` and each field's `metadata`: `help`, `flags`, `minimum`, `maximum`, `above`.
Names and defaults follow llama.cpp (common/common.h, common_params_sampling).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import Field, dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from ...errors import UsageError, printable
from ...quant.gguf_reader import GgufFile

_LARGEST_INT = 2**63 - 1


def _option(
    default: Any,
    help: str,
    *flags: str,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
) -> Any:
    limits = {"minimum": minimum, "maximum": maximum, "above": above}
    return field(default=default, metadata={"help": help, "flags": flags, **limits})


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen, and when to stop.

    Raises UsageError, naming the option, the value and what is allowed, for a value of another type or out of range.
    """

    max_tokens: int = _option(
        -1,
        "tokens to generate; -1: until the end of the answer or the context",
        "-n",
        "--predict",
        minimum=-1,
        maximum=_LARGEST_INT,
    )
    temperature: float = _option(0.8, "spread of the choice; 0 always takes the most likely token", "--temp")
    top_k: int = _option(40, "keep the k most likely tokens; 0 keeps all", "--top-k", minimum=0, maximum=_LARGEST_INT)
    top_p: float = _option(
        0.95, "keep the most likely tokens that reach this probability; 1 keeps all", "--top-p", minimum=0, maximum=1
    )
    min_p: float = _option(
        0.05,
        "keep tokens at least this likely relative to the most likely one; 0 keeps all",
        "--min-p",
        minimum=0,
        maximum=1,
    )
    repeat_penalty: float = _option(
        1.0, "penalise tokens that were used before; 1 does nothing", "--repeat-penalty", above=0, maximum=1000
    )
    frequency_penalty: float = _option(
        0.0, "subtract this for every earlier use of a token", "--frequency-penalty", minimum=-1000, maximum=1000
    )
    presence_penalty: float = _option(
        0.0, "subtract this once from every token used before", "--presence-penalty", minimum=-1000, maximum=1000
    )
    repeat_last_n: int = _option(
        64,
        "how many of the last tokens the penalties look at; -1: all, 0: none",
        "--repeat-last-n",
        minimum=-1,
        maximum=_LARGEST_INT,
    )
    seed: int = _option(
        -1, "seed of the random choice; -1: a new one each time", "-s", "--seed", minimum=-1, maximum=_LARGEST_INT
    )
    stop: tuple[str, ...] = _option((), "end the answer before this text", "-r", "--reverse-prompt", "--stop")
    ignore_eos: bool = _option(False, "never choose an end token", "--ignore-eos")

    def __post_init__(self) -> None:
        for option in fields(self):
            checked = _check(option, getattr(self, option.name))
            object.__setattr__(self, option.name, checked)

    @property
    def penalizes(self) -> bool:
        """Whether the penalties change anything."""
        neutral = self.repeat_penalty == 1.0 and self.frequency_penalty == 0.0 and self.presence_penalty == 0.0
        return self.repeat_last_n != 0 and not neutral


# field -> the end of the key `general.sampling.*` with which a file recommends it (gguf-py constants)
_FILE_KEYS = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "penalty_repeat",
    "repeat_last_n": "penalty_last_n",
}


def recommended(file: GgufFile) -> dict[str, Any]:
    """Return the sampling options that a GGUF file recommends, by field: they stand where the user says nothing.

    ModelFileError, naming the key, for a value of another type or out of range.
    """
    found: dict[str, Any] = {}
    for name, ending in _FILE_KEYS.items():
        key = f"general.sampling.{ending}"
        if key in file.metadata:
            here: dict[str, Any] = {name: file.metadata[key]}
            try:
                SamplingParams(**here)
            except UsageError as error:
                raise file.bad_value(key, str(error)) from error
            found |= here
    return found


def _check(option: Field[Any], value: Any) -> Any:
    """Return `value` in the type of the option's default, or raise UsageError."""
    kind: Any = type(option.default)
    if kind is tuple:
        return _check_stop(option.name, value)
    if kind is bool:
        if not isinstance(value, bool):
            raise UsageError(f"{option.name} is {printable(repr(value))}; allowed: true or false")
        return value
    allowed = _describe_range(option, "an integer" if kind is int else "a finite number")
    number = Integral if kind is int else Real
    if isinstance(value, bool) or not isinstance(value, number):
        raise UsageError(f"{option.name} is {printable(repr(value))}; allowed: {allowed}")
    limits = option.metadata
    try:
        converted = kind(value)
        inside = converted - converted == 0  # not for NaN and infinity
    except OverflowError:
        inside = False
    if (
        not inside
        or (limits["minimum"] is not None and converted < limits["minimum"])
        or (limits["maximum"] is not None and converted > limits["maximum"])
        or (limits["above"] is not None and converted <= limits["above"])
    ):
        raise UsageError(f"{option.name} is {_show(value)}; allowed: {allowed}")
    return converted


def _show(value: Any) -> str:
    """Return the number as text; Python refuses to write integers of more than 4300 digits."""
    return (
        f"an integer of {value.bit_length()} bits" if isinstance(value, int) and abs(value) > 1 << 99 else repr(value)
    )


def _describe_range(option: Field[Any], kind: str) -> str:
    limits = option.metadata
    lower = f" from {limits['minimum']}" if limits["minimum"] is not None else ""
    if limits["above"] is not None:
        lower = f" above {limits['above']}"
    upper = limits["maximum"]
    return kind + lower + ("" if upper is None or upper == _LARGEST_INT else f" to {upper}")


def _check_stop(name: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Iterable) or isinstance(texts, bytes):
        raise UsageError(f"{name} is {printable(repr(value))}; allowed: a text or a list of texts")
    texts = tuple(texts)
    for text in texts:
        if not isinstance(text, str) or not text:
            raise UsageError(f"{name} contains {printable(repr(text))}; allowed: texts that are not empty")
    return texts
