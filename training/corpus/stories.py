"""A grammar of short stories.  Enters: a `random.Random`, and the words and plots of stories.toml and stories/*.toml.

Leaves: a story of 60 to 220 words, its paragraphs separated by one newline, or a request with the story that fits it.
A plot casts its roles from lists (a hero, a friend, a thing, a place) and writes one alternative of every beat; the
roles carry their names, pronouns and belongings through all beats. The notation of the texts is told in stories.toml.
"""

from __future__ import annotations

import random
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SHORTEST, LONGEST = 60, 220
SHE = {"he": "she", "him": "her", "his": "her", "himself": "herself", "man": "woman"}
HE = {word: word for word in SHE}
MARKS = ("?", "+", "?+")
SLOT = re.compile(r"\{([*@]?)(\w+)(?:\.(\w+))?\}")
CHOICE = re.compile(r"\[([^\[\]]*)\]")
# Spoken with a vowel in spite of the letter, and the other way round.
AN_WORDS = ("hour", "honest")
A_WORDS = ("one", "use", "uni", "once")
# Words of a topic that need not stand in its story.
SMALL_WORDS = frozenset(("a", "an", "the", "and", "in", "on", "by", "at", "of", "for", "to", "who", "with", "named"))
# Topics that every plot has where it has the roles; those of the plot itself come on top.
TOPICS = (
    "a {hero.kind}",
    "{hero}",
    "a {hero.kind} named {hero}",
    "{hero} and {friend}",
    "a {hero.kind} and a {friend.kind}",
    "{hero} and a {thing}",
    "a {hero.kind} and a {thing}",
    "a {thing}",
)

Fields = dict[str, str]
Plot = dict[str, Any]


@cache
def lines(block: str) -> tuple[str, ...]:
    """Return the lines of a text block that hold something."""
    return tuple(line.strip() for line in block.splitlines() if line.strip())


@cache
def data() -> dict[str, Any]:
    """Return the tables of stories.toml."""
    return tomllib.loads((HERE / "stories.toml").read_text("utf-8"))


@cache
def plots() -> list[Plot]:
    """Return the plots of stories/*.toml, in the order of the files' names."""
    files = sorted((HERE / "stories").glob("*.toml"))
    return [plot for file in files for plot in tomllib.loads(file.read_text("utf-8"))["plot"]]


def capital(text: str) -> str:
    """Return the text with a capital as its first letter."""
    return text[:1].upper() + text[1:]


def polish(text: str) -> str:
    """Return the text with one space between words, a or an as the next word wants it, and capitals at the starts."""

    def article(match: re.Match[str]) -> str:
        following = match[2].lower()
        vowel = following.startswith(AN_WORDS) or (following[0] in "aeiou" and not following.startswith(A_WORDS))
        return f"{match[1]}{'n' if vowel else ''} {match[2]}"

    text = re.sub(r" +", " ", text).replace(" \n", "\n").replace("\n ", "\n").strip()
    text = re.sub(r"\b([Aa])n? (\w+)", article, text)
    return re.sub(r"((?:^|[.!?] |\.\" |\n)\"?|(?<=\s)\")([a-z])", lambda found: found[1] + found[2].upper(), text)


class Teller:
    """One story in the making: who plays which role, and which word was drawn for which name."""

    def __init__(self, rng: random.Random, plot: Plot) -> None:
        """Cast the roles of `plot`; all that is drawn is drawn from `rng`."""
        self.rng = rng
        self.plot = plot
        self.roles: dict[str, Fields] = {}
        self.manners: dict[str, dict[str, str]] = {}
        for role, wanted in plot["cast"].items():
            self.cast(role, wanted.split())

    def cast(self, role: str, wanted: list[str]) -> None:
        """Give `role` a person, a thing or a place of one of the kinds `wanted` that no other role has."""
        taken = {fields[key] for fields in self.roles.values() for key in ("", "kind") if key in fields}
        while True:
            kind = self.rng.choice(wanted)
            alone = " " not in data()["people"].get(kind, {}).get("kinds", " ")
            if kind in data()["people"]:
                fields = self.person(role, kind)
            elif kind in data()["things"]:
                noun, _, adjectives = self.rng.choice(lines(data()["things"][kind])).partition(":")
                fields = {"": noun, "full": f"{self.rng.choice(adjectives.split())} {noun}"}
            else:
                where, _, noun = self.rng.choice(lines(data()["places"][kind])).partition(" ")
                fields = {"": noun, "in": f"{where} the {noun}"}
            if fields and fields[""] not in taken and (alone or fields.get("kind") not in taken):
                self.roles[role] = fields
                return

    def person(self, role: str, group: str) -> Fields:
        """Return a person of the group, or nothing where the friend would have the hero's sex."""
        table = data()["people"][group]
        sex = table.get("sex") or self.rng.choice("fm")
        if role == "friend" and self.roles["hero"]["sex"] == sex:
            return {}
        known = table.get("names") or table.get(f"names_{sex}", "")
        names = known.split("|") if "|" in known else known.split()
        kind = self.rng.choice(table["kinds"].split())
        manner = data()["manner"][table["like"]]
        own = self.plot.get("adj") if role == "hero" else None
        adjective = self.rng.choice((own or table.get("adj") or manner["adj"]).split())
        home = self.plot.get("home") if role == "hero" else None
        self.manners[role] = manner
        return {
            "": self.rng.choice(names) if names else f"the {kind}",
            "sex": sex,
            "kind": kind,
            "adj": adjective,
            "a": f"a {adjective} {kind}",
            "home": self.rng.choice(lines(home or manner["home"])),
            **(SHE if sex == "f" else HE),
        }

    def drawn(self, name: str) -> Fields:
        """Return a row of the plot's own list, or of the common list, called `name`."""
        rows = self.plot.get("sets", {}).get(name) or data()["words"][name]
        row = self.rng.choice(lines(rows) if isinstance(rows, str) else rows)
        return {"": row} if isinstance(row, str) else row

    def slot(self, match: re.Match[str]) -> str:
        """Return what stands for one slot of a text."""
        mark, role, field = match[1], match[2], match[3] or ""
        name, key = role.lower(), field.lower()
        if mark == "@":
            return self.fill(self.rng.choice(lines(data()["shared"][name])))
        if mark == "*":
            text = self.drawn(name)[key]
        elif key in ("joy", "sad", "rest", "hand"):
            text = self.rng.choice(lines(self.manners[name][key])).replace("{self.", f"{{{name}.")
        else:
            if name not in self.roles:
                self.roles[name] = self.drawn(name)
            text = self.roles[name][key]
        text = self.fill(text)
        return capital(text) if role[0].isupper() or field[:1].isupper() else text

    def fill(self, text: str) -> str:
        """Return the text with its choices made and its slots filled."""
        while (choice := CHOICE.search(text)) is not None:
            text = text[: choice.start()] + self.rng.choice(choice[1].split("|")) + text[choice.end() :]
        return SLOT.sub(self.slot, text)

    def beat(self, block: str) -> str:
        """Return one alternative of a beat, or several with words that lead them in, or nothing, as its mark says."""
        options = lines(block)
        mark, options = (options[0], options[1:]) if options[0] in MARKS else ("", options)
        if "?" in mark and self.rng.random() < 0.5:
            return ""
        several = self.rng.sample(options, self.rng.choice((1, 2, 2, 3)) if "+" in mark else 1)
        leads = self.drawn("lead")[""].split("|") if len(several) > 1 else [""]
        return capital(
            " ".join(f"{lead} {self.fill(text)}" for lead, text in zip(leads, several, strict=False)).strip()
        )

    def text(self) -> str:
        """Return the whole story."""
        told = ""
        for block in self.plot["beats"].strip().split("\n\n"):
            gap = self.rng.choice((" ", "\n", "\n"))
            if beat := self.beat(block):
                told += (gap if told else "") + beat
        return polish(told)

    def topics(self, story: str) -> list[str]:
        """Return what the story is about, in a few words each: only topics whose words all stand in it."""
        own = [polish(self.fill(topic)) for topic in lines(self.plot["about"])]
        roles = {name for name in ("hero", "friend", "thing") if name in self.plot["cast"]}
        common = [topic for topic in TOPICS if {name for _, name, _ in SLOT.findall(topic)} <= roles]
        if "friend" in roles and self.roles["friend"]["kind"] == self.roles["hero"]["kind"]:
            common.remove("a {hero.kind} and a {friend.kind}")
        found = [*own, *own, *(polish(self.fill(topic)) for topic in common)]
        known = set(re.findall(r"[a-z]+", story.lower()))
        topics = [topic for topic in found if set(re.findall(r"[a-z]+", topic.lower())) - SMALL_WORDS <= known]
        # A topic stands within a sentence: it keeps its capital only where it opens with a name.
        names = tuple(name for fields in self.roles.values() if (name := fields.get("", ""))[:1].isupper())
        return [t if t.startswith(names) else t[:1].lower() + t[1:] for t in topics]


def tell(rng: random.Random) -> tuple[str, Teller]:
    """Return a story of a fitting length, and its teller."""
    while True:
        teller = Teller(rng, rng.choice(plots()))
        story = teller.text()
        if SHORTEST <= len(story.split()) <= LONGEST:
            return story, teller


def story(random: random.Random) -> str:
    """Return a story; equal states of `random` give equal stories."""
    return tell(random)[0]


def request(random: random.Random) -> tuple[str, str]:
    """Return a user's request for a story, about something in nine of ten, and a story that fits it."""
    told, teller = tell(random)
    if random.random() < 0.1:
        return random.choice(lines(data()["shared"]["anything"])), told
    asked = random.choice(lines(data()["shared"]["request"]))
    return asked.replace("{topic}", random.choice(teller.topics(told))), told
