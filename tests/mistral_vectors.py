"""Conversations of mistral-common with their ids.  Enters: the folder of test data; leaves: samples, texts, tokenizers.

Version 1 of the vocabulary is not among the data as a file.  Versions 2 and 3 are version 1 with 768 pieces put in
behind </s>, all others in the same order and with the same scores; so it is there, and version 1's ids say whether.

mistral-common's tokenizer and its published templates differ in two rules, whatever renders the template: the
tokenizer takes a tool's answer for JSON and writes an object as an object, the template writes the string that it was
given; and in version 2 the tokenizer joins answers that follow each other into one list, the template writes one each.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tiny_vocab as vocab

from halfbyte.convert.vocab.protobuf import fields
from halfbyte.runtime.templates import ChatTemplate
from halfbyte.runtime.tokenizer import Tokenizer, load_tokenizer

MODEL = "tokenizers/mistral/mistral_instruct_tokenizer_240323.model.v3"
VERSIONS = ("v1", "v2", "v3")
FIRST_PIECE, ADDED = 3, 768
_ANSWERS = re.compile(r"\[TOOL_RESULTS\] (.*?)\[/TOOL_RESULTS\]", re.DOTALL)


@dataclass(frozen=True)
class Sample:
    """A conversation, and what mistral-common's tokenizer makes of it in one version."""

    name: str
    version: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    text: str
    ids: list[int]

    def template(self) -> str:
        return (_folder() / f"chat_templates/{self.version}_spm.jinja").read_text("utf-8")

    def rendered(self) -> str:
        """The messages through the published template, in our renderer."""
        # a small vocabulary with the same <s> and </s> holds the template
        content = vocab.spm(**{"tokenizer.chat_template": self.template()})
        with tempfile.TemporaryDirectory() as folder:
            chat = ChatTemplate(load_tokenizer(vocab.write(Path(folder, "t.gguf"), content)))
        return chat.render(self.messages, tools=self.tools)

    def as_the_template_has_it(self) -> str:
        """The published text by the template's two rules: an answer is a string, and has a list of its own."""
        given = [message["content"] for message in self.messages if message["role"] == "tool"]

        def section(found: re.Match[str]) -> str:
            answers = json.loads(found[1])
            for answer in answers if isinstance(answers, list) else [answers]:
                if isinstance(answer["content"], dict):
                    answer["content"] = next(text for text in given if json.loads(text) == answer["content"])
            alone = [[answer] for answer in answers] if isinstance(answers, list) else [answers]
            return "".join(f"[TOOL_RESULTS] {json.dumps(answer)}[/TOOL_RESULTS]" for answer in alone)

        return _ANSWERS.sub(section, self.text)


@cache
def samples() -> tuple[Sample, ...]:
    """Every published conversation and version, the arguments of calls as JSON with mistral-common's spaces.

    Given as objects, these templates write the quotation marks around them as entities (in transformers too).
    """
    return tuple(_read())


def _read() -> Iterator[Sample]:
    for folder in sorted((_folder() / "samples").iterdir()):
        content = json.loads((folder / "sample.json").read_text("utf-8"))
        for message in content["messages"]:
            for call in message.get("tool_calls") or ():
                function = call["function"]
                function["arguments"] = json.dumps(json.loads(function["arguments"]), ensure_ascii=False)
        for version in VERSIONS:
            file = folder / f"tokens_{version}.json"
            if file.exists():
                text = (folder / f"text_{version}.txt").read_text("utf-8")
                text = text.replace("\u2581", " ").replace("<0x0A>", "\n")
                ids = json.loads(file.read_text("utf-8"))["tokens"]
                yield Sample(folder.name, version, content["messages"], content.get("tools"), text, ids)


def _folder() -> Path:
    return vocab.data_folder() / "vectors/mistral"


def model_bytes(version: str) -> bytes:
    """The SentencePiece model of `version`."""
    data = (vocab.data_folder() / MODEL).read_bytes()
    if version != "v1":
        return data
    parts, piece = [], 0
    for number, value, _ in fields(data):  # all fields of a model are messages, and number 1 is a piece
        assert isinstance(value, bytes)
        dropped = number == 1 and FIRST_PIECE <= piece < FIRST_PIECE + ADDED
        piece += number == 1
        if not dropped:
            parts.append(bytes([number << 3 | 2]) + _length(len(value)) + value)
    return b"".join(parts)


def _length(count: int) -> bytes:
    low, rest = count & 127, count >> 7
    return bytes([low | 128]) + _length(rest) if rest else bytes([low])


# ------------------------------------------------------------------------------------------------------------- cases

Cases = Iterator[tuple[str, bool]]  # name of the sample, whether the ids are equal


def text_cases(tokenizer: Callable[[str], Tokenizer]) -> Cases:
    """Published text to published ids; `tokenizer` gives that of a version."""
    for sample in samples():
        found = tokenizer(sample.version).encode(sample.text, parse_special=True)
        yield f"{sample.name} {sample.version}", found == sample.ids


def message_cases(tokenizer: Callable[[str], Tokenizer]) -> Cases:
    """Messages through the template of the version to published ids, where both have the same rules."""
    for sample in samples():
        if sample.as_the_template_has_it() == sample.text:
            found = tokenizer(sample.version).encode(sample.rendered(), parse_special=True)
            yield f"{sample.name} {sample.version}", found == sample.ids


def answer_cases(tokenizer: Callable[[str], Tokenizer]) -> Cases:
    """The others: messages through the template to the ids of the published text by the template's rules."""
    for sample in samples():
        expected = sample.as_the_template_has_it()
        if expected != sample.text:
            encode = tokenizer(sample.version).encode
            found = encode(sample.rendered(), parse_special=True)
            yield f"{sample.name} {sample.version}", found == encode(expected, parse_special=True)
