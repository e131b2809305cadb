"""Arithmetic and word tasks for the sample model.  Enters: a random generator, whether held-out tasks are wanted, and
the lists and templates of tasks.toml; leaves: one question, its answer, and the keys that tell a right answer.

A task is held out in one of two ways.  Where a rule can be learnt (sums, made-up words), its operands decide: a stable
hash keeps one item in twelve out of training, in every wording and, for sums and comparisons, in either order.  Where
things are known by heart (opposites, colors), all items are trained, and one wording of the kind is held out.
Spelling a real word is by heart, because a tokenizer hides the letters of a common word; a made-up word is a rule.
"""

import tomllib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

Item = tuple[dict[str, str], str]  # the fields of the templates; the item's identity, "" if it is known by heart
Draw = Callable[[Random], Item]

DATA: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
WORDS: dict[str, list[str]] = {name: text.split() for name, text in DATA["words"].items()}
THINGS: dict[str, list[str]] = {name: text.split() for name, text in DATA["things"].items()}
NOUNS = sorted({word for words in THINGS.values() for word in words})
UNITS = ("", "", " bits", " bytes", " tokens", " apples")


@dataclass(frozen=True)
class Task:
    """A question, an answer, and words or phrases that the answer contains (up to case) and every right one does."""

    question: str
    answer: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """Templates over the fields of `draw`; `held` is the wording of held-out tasks with items known by heart."""

    draw: Draw
    weight: float
    ask: list[str]
    answer: str
    keys: list[str]
    held: str = ""


def held_out_item(identity: str) -> bool:
    return zlib.crc32(identity.encode()) % 12 == 0


def with_article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def by_heart(pairs: dict[str, str]) -> Draw:
    """Draws a pair: fields `x` (also `X` with a capital, `an` with its article) and `y`."""
    items = list(pairs.items())

    def draw(random: Random) -> Item:
        x, y = random.choice(items)
        return {"x": x, "X": x[0].upper() + x[1:], "an": with_article(x), "y": y}, ""

    return draw


def add(random: Random) -> Item:
    a, b = random.randint(0, 20), random.randint(0, 20)
    return {"a": f"{a}", "b": f"{b}", "c": f"{a + b}"}, f"add {min(a, b)} {max(a, b)}"


def subtract(random: Random) -> Item:
    b, a = sorted((random.randint(0, 20), random.randint(0, 20)))
    return {"a": f"{a}", "b": f"{b}", "c": f"{a - b}"}, f"subtract {a} {b}"


def with_things(numbers: Draw) -> Draw:
    """Those items of `add` or `subtract` in which no number is 0 or 1, with things that are counted."""

    def draw(random: Random) -> Item:
        while True:
            fields, identity = numbers(random)
            if min(map(int, fields.values())) >= 2:
                return fields | {"things": random.choice(WORDS["goods"])}, identity

    return draw


def compare(random: Random) -> Item:
    a, b = random.sample(range(random.choice((21, 101))), 2)
    low, high = sorted((a, b))
    larger, smaller = ("Yes", "No") if a > b else ("No", "Yes")
    fields = {"low": f"{low}", "high": f"{high}", "larger": larger, "smaller": smaller}
    return fields | {"a": f"{a}", "b": f"{b}", "is": "larger" if a > b else "smaller"}, f"compare {low} {high}"


def neighbor(step: int) -> Draw:
    def draw(random: Random) -> Item:
        a = random.randint(max(0, -step), 100 - max(0, step))
        return {"a": f"{a}", "b": f"{a + step}"}, f"neighbor {a} {step}"

    return draw


def count(random: Random) -> Item:
    low, length, step = random.randint(0, 94), random.randint(3, 6), random.choice((1, 1, -1))
    row = range(low, low + length)[::step]
    return {"a": f"{row[0]}", "b": f"{row[-1]}", "row": ", ".join(map(str, row))}, f"count {row[0]} {row[-1]}"


def parity(random: Random) -> Item:
    a = random.randint(0, 100)
    even, odd = ("Yes", "No") if a % 2 == 0 else ("No", "Yes")
    return {"a": f"{a}", "is": "odd" if a % 2 else "even", "even": even, "odd": odd}, f"parity {a}"


def scale(name: str) -> Draw:
    """Twice a number of things, or half of one; a single thing has no unit."""

    def draw(random: Random) -> Item:
        small = random.randint(0, 50)
        a, b = (small, 2 * small) if name == "twice" else (2 * small, small)
        return {"a": f"{a}", "b": f"{b}", "u": random.choice(UNITS) if small > 1 else ""}, f"{a} {name}"

    return draw


def letters(name: str) -> Draw:
    """A real word, known by heart, or a made-up one of one or two syllables."""

    def draw(random: Random) -> Item:
        syllables = range(random.choice((1, 2, 2)))
        made_up = "".join(random.choice(WORDS["onsets"]) + random.choice(WORDS["rimes"]) for _ in syllables)
        word = random.choice((random.choice(WORDS["real"]), made_up))
        fields = {"w": word, "W": word.upper(), "first": word[0], "last": word[-1], "spelled": "-".join(word)}
        return fields, "" if word in WORDS["real"] else f"{name} {word}"

    return draw


def say(random: Random) -> Item:
    words = f"{random.choice(WORDS['adjectives'])} {random.choice(NOUNS)}"
    words += f" and {random.choice(WORDS['adjectives'])} {random.choice(NOUNS)}" if random.random() < 0.3 else ""
    return {"w": words}, f"say {words}"


def category(random: Random) -> Item:
    """A thing, its own category, and one that is asked for: the same in half of all tasks and a little more."""
    own = random.choice(list(THINGS))
    thing, asked = random.choice(THINGS[own]), random.choice((own, random.choice(list(THINGS))))
    fields = {"an": with_article(thing), "asked": with_article(asked), "own": with_article(own)}
    return fields | {"verdict": "Yes" if own == asked else "No"}, f"category {thing} {asked}"


def pairs() -> dict[str, dict[str, str]]:
    """Everything known by heart, by name: the lists of tasks.toml, and those that follow from a rule."""
    found = {
        name: {x.replace("_", " "): y for x, y in (pair.split("=") for pair in text.split())}
        for name, text in DATA["pairs"].items()
    }
    found["opposite"] |= {y: x for x, y in found["opposite"].items()}
    found["sort"] = {thing: with_article(own) for own, things in THINGS.items() for thing in things}
    found["bits"] = {"a byte": "8"} | {
        f"{n} {unit}s": f"{n * b}" for n in range(2, 11) for unit, b in (("byte", 8), ("nibble", 4))
    }
    for name in ("day", "month", "letter"):
        row = WORDS[name] if name == "letter" else [*WORDS[name], WORDS[name][0]]  # after Sunday comes Monday
        found[f"{name} after"] = dict(pairwise(row))
        found[f"{name} before"] = dict(pairwise(row[::-1]))
    return found


DRAWS: dict[str, Draw] = {name: by_heart(items) for name, items in pairs().items()}
DRAWS |= {draw.__name__: draw for draw in (add, subtract, compare, count, parity, say, category)}
DRAWS |= {"add_things": with_things(add), "subtract_things": with_things(subtract)}
DRAWS |= {"next_number": neighbor(1), "number_before": neighbor(-1)}
DRAWS |= {name: scale(name) for name in ("twice", "half")}
DRAWS |= {name: letters(name) for name in ("spell", "first_letter", "last_letter", "capitals")}
KINDS = [Kind(**kind | {"draw": DRAWS[kind["draw"]]}) for kind in DATA["kind"]]


def task(random: Random, held_out: bool) -> Task:
    """A task of a kind drawn by weight: one of those for training, or one that training never shows."""
    kind = random.choices(KINDS, [kind.weight for kind in KINDS])[0]
    fields, identity = kind.draw(random)
    while identity and held_out_item(identity) != held_out:
        fields, identity = kind.draw(random)
    question = kind.held if held_out and not identity else random.choice(kind.ask)
    answer = kind.answer.format(**fields)
    if " " in answer:
        answer = answer[0].upper() + answer[1:]
    return Task(question.format(**fields), answer, tuple(key.format(**fields) for key in kind.keys))
