"""Questions with checkable answers.  Enters: a model and a file of questions; leaves: how many it answers right.

A line of the file is a JSON object, {"question": "How many ...?", "keys": ["4.5", "32|thirty-two"]}.  An answer is
right when it holds every key, in upper or lower case; `|` stands between alternatives.  A key that begins or ends with
a letter or digit does so at the edge of a word or number: "4 bits" is not in "14 bits", nor "32" in "32.5".  A key
with a hyphen inside does so at the edge of the hyphenated word: "c-a-t" is not in "c-a-t-s".
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelFileError, UsageError, printable

if TYPE_CHECKING:
    from ..runtime.engine.engine import Progress
    from ..runtime.llm import LLM
    from ..runtime.steps import GenerationStep

MAX_ANSWER = 64
"""Tokens of an answer at most."""

_MAX_FILE = 16 << 20
_FORM = '{"question": text, "keys": [text, ...]}'


@dataclass(frozen=True)
class Question:
    """A question and its keys: of each key, the alternatives."""

    text: str
    keys: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Answer:
    """What a model answered to a question, and whether that is right."""

    question: Question
    text: str
    right: bool


@dataclass(frozen=True)
class Score:
    """The answers to all questions, in their order."""

    answers: tuple[Answer, ...]

    @property
    def right(self) -> int:
        """How many are right."""
        return sum(answer.right for answer in self.answers)

    @property
    def total(self) -> int:
        """How many there are."""
        return len(self.answers)


def load_questions(path: str | os.PathLike[str]) -> list[Question]:
    """Return the questions of a file, at least one; empty lines are left out.

    Raises UsageError when it cannot be read, ModelFileError, naming the line, for anything but questions.
    """
    file = Path(path)
    try:
        with file.open("rb") as opened:
            content = opened.read(_MAX_FILE + 1)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    if len(content) > _MAX_FILE:
        raise ModelFileError(file, f"has more than {_MAX_FILE} bytes; questions in JSON lines are wanted")
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ModelFileError(file, "is not UTF-8", offset=error.start) from None
    questions = [_question(file, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise ModelFileError(file, f"has no questions; a line is {_FORM}")
    return questions


def _question(file: Path, number: int, line: str) -> Question:
    place = f"line {number}"
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(file, f"is not JSON ({printable(error)})", place=place) from None
    if not isinstance(found, dict) or set(found) != {"question", "keys"}:
        raise ModelFileError(file, f"is {printable(line)}; allowed: {_FORM}", place=place)
    text, keys = found["question"], found["keys"]
    if not _is_text(text):
        raise ModelFileError(file, f"question is {printable(repr(text))}; allowed: a text", place=place)
    if not isinstance(keys, list) or not keys or not all(_is_text(key) for key in keys):
        raise ModelFileError(file, f"keys is {printable(repr(keys))}; allowed: a list of texts", place=place)
    split = tuple(tuple(part.strip() for part in key.split("|")) for key in keys)
    if not all(all(parts) for parts in split):
        raise ModelFileError(file, f"keys is {printable(repr(keys))}; an alternative is empty", place=place)
    return Question(text, split)


def _is_text(value: object) -> bool:
    """Whether it is a text that is not blank, without halves of surrogate pairs."""
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= c <= "\udfff" for c in value)


def answered(question: Question, text: str) -> bool:
    """Whether `text` holds one alternative of every key of `question`."""
    plain = _plain(text)
    return all(any(re.search(_pattern(part), plain) for part in parts) for parts in question.keys)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _pattern(key: str) -> str:
    """Return the expression that finds a key in a plain text."""
    key = _plain(key)
    within = r"[\w-]" if "-" in key.strip("-") else r"\w"
    before = rf"(?<!{within})" if re.match(r"\w", key) else ""
    after = rf"(?!{within})" if re.search(r"\w\Z", key) else ""
    if key[0].isdigit():
        before += r"(?<!\d\.)"  # a number goes on behind its point
    if key[-1].isdigit():
        after += r"(?!\.\d)"
    return before + re.escape(key) + after


def ask(llm: LLM, text: str) -> Iterator[GenerationStep]:
    """Yield the steps of the model's likeliest answer to `text`, the first message of a conversation."""
    return llm.stream_chat(
        [{"role": "user", "content": text}], temperature=0, repeat_penalty=1.0, max_tokens=MAX_ANSWER
    )


def ask_all(llm: LLM, questions: Sequence[Question], progress: Progress | None = None) -> Score:
    """Ask every question and score the answers.  The model needs a chat template; `progress` hears of each answer."""
    answers: list[Answer] = []
    if progress:
        progress("asking questions", 0, len(questions))
    for question in questions:
        text = "".join(step.text for step in ask(llm, question.text))
        answers.append(Answer(question, text, answered(question, text)))
        if progress:
            progress("asking questions", len(answers), len(questions))
    return Score(tuple(answers))
