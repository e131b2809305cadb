"""Facts and small talk.  Enters: facts/*.toml and talk.toml; leaves: questions with answers, in many wordings.

facts/*.toml   [[fact]] with `ask` (wordings that are trained), `held_out` (two that never are), `answer` (wordings) and
               `keys`: words of which every right answer has all; "|" separates alternatives
talk.toml      [[talk]]: one exchange, [[dialogue]]: turns in alternation, [slots]: what fills the {braces}
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

FOLDER = Path(__file__).parent

# What people say before and after a question.
_BEFORE = (
    "Hello. ", "Hi! ", "Hi, ", "Hey, ", "Please tell me: ", "Tell me: ", "I have a question. ", "One question: ",
    "Next question: ", "Thanks. ", "Good. ", "And ", "Okay, ", "So, ", "Quick question: ", "I want to know: ",
)  # fmt: skip
_AFTER = (" Thanks.", " Thank you.", " please", " Please help.", " Please tell me.", " I am new to this.")
_DROPPED = frozenset(("the", "a", "an", "is", "are", "do", "does", "i", "me", "of", "to", "can", "you", "my", "for"))


@dataclass(frozen=True)
class Fact:
    """One fact: trained and held-out wordings of the question, wordings of the answer, keys of a right answer."""

    id: str
    ask: tuple[str, ...]
    held_out: tuple[str, ...]
    answer: tuple[str, ...]
    keys: tuple[str, ...]


def plain(text: str) -> str:
    """Return the words of a text, lower case, without punctuation: two questions alike in it count as the same."""
    return " ".join(re.findall(r"[a-z0-9_.\-/]*[a-z0-9_]", text.lower()))


@cache
def facts() -> tuple[Fact, ...]:
    """Return all facts, by file and place."""
    found = []
    for path in sorted((FOLDER / "facts").glob("*.toml")):
        for entry in tomllib.loads(path.read_text("utf-8"))["fact"]:
            found.append(Fact(**{key: value if key == "id" else tuple(value) for key, value in entry.items()}))
    return tuple(found)


@cache
def held_out_questions() -> frozenset[str]:
    """Return the plain words of every held-out question."""
    return frozenset(plain(question) for fact in facts() for question in fact.held_out)


def reworded(question: str, random: Random) -> str:
    """Return a trained question as people type it: with a greeting, in lower case, a word or a letter amiss.

    Never a held-out one.
    """
    words = question.split(" ")
    if random.random() < 0.08 and len(words) > 3:
        small = [number for number, word in enumerate(words) if word.lower() in _DROPPED]
        if small:
            del words[random.choice(small)]
    if random.random() < 0.04:
        number = random.randrange(len(words))
        word = words[number]
        if len(word) > 4 and word.isalpha():
            at = random.randrange(1, len(word) - 2)
            words[number] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    changed = " ".join(words)
    if random.random() < 0.15:
        changed = changed.rstrip("?.!")
    if random.random() < 0.10:
        before = random.choice(_BEFORE)
        first_word = changed.split(" ")[0]
        lower = before[-2] not in ".!" and first_word[1:].islower()
        changed = before + (changed[0].lower() + changed[1:] if lower else changed)
    elif random.random() < 0.06:
        changed += random.choice(_AFTER)
    if random.random() < 0.2:
        changed = changed.lower()
    return question if plain(changed) in held_out_questions() else changed


def exchange(random: Random) -> tuple[str, str]:
    """Return a trained question about a fact, and an answer."""
    fact = random.choice(facts())
    return reworded(random.choice(fact.ask), random), random.choice(fact.answer)


@cache
def _talk() -> dict[str, Any]:
    return tomllib.loads((FOLDER / "talk.toml").read_text("utf-8"))


def _filled(texts: list[str], random: Random) -> list[str]:
    slots = _talk()["slots"]
    values = {name: random.choice(slots[name]) for name in sorted(set(re.findall(r"{(\w+)}", " ".join(texts))))}
    return [re.sub(r"{(\w+)}", lambda found: values[found[1]], text) for text in texts]


def small_talk(random: Random) -> tuple[str, str]:
    """Return one exchange of small talk."""
    entry = random.choice(_talk()["talk"])
    user, assistant = _filled([random.choice(entry["user"]), random.choice(entry["assistant"])], random)
    return user, assistant


def dialogue(random: Random) -> list[tuple[str, str]]:
    """Return the exchanges of one conversation whose later turns need the earlier ones."""
    entry = random.choice(_talk()["dialogue"])
    turns = _filled([random.choice(wordings) for wordings in entry["turns"]], random)
    return list(zip(turns[::2], turns[1::2], strict=True))
