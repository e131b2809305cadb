"""Published vectors of every family, and random texts against the libraries; docs/tokenizers.md has the counts.

HALFBYTE_TOKENIZER_TEXTS is how many random and hostile texts each pair gets (default 200).  With 100000 or more the
run notes its counts in golden/tokenizer_texts.json, of which the table in the documentation is made.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import tokenizer_sources as sources

COUNT = int(os.environ.get("HALFBYTE_TOKENIZER_TEXTS", "200"))
ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs/tokenizers.md"
LONG_RUNS = ROOT / "tests/golden/tokenizer_texts.json"
LONG = 100_000

SETS = [(family, name) for family, sets in sources.vector_sets().items() for name in sets]
PAIRS = [(family, name) for family, pairs in sources.pairs().items() for name in pairs]


@pytest.fixture(scope="module")
def passed() -> dict[tuple[str, str], tuple[int, int]]:
    """(family, set) -> (vectors passed, vectors), filled by the tests of this file."""
    sources.data()
    return {}


@pytest.mark.parametrize(("family", "name"), SETS)
def test_published_vectors(family: str, name: str, passed: dict[tuple[str, str], tuple[int, int]]) -> None:
    cases = list(sources.vector_sets()[family][name]())
    failed = [text for text, equal in cases if not equal]
    assert cases and not failed, failed[:3]
    passed[family, name] = len(cases) - len(failed), len(cases)


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_random_and_hostile_texts(family: str, name: str) -> None:
    sources.data()
    ours, reference = sources.pairs()[family][name]()
    different = [text for text in sources.texts(COUNT, seed=7) if ours(text) != reference(text)]
    if COUNT >= LONG:
        noted = json.loads(LONG_RUNS.read_text("utf-8")) if LONG_RUNS.exists() else {}
        noted[f"{family}: {name}"] = {"texts": COUNT, "different": len(different)}
        LONG_RUNS.write_text(json.dumps(noted, indent=1, sort_keys=True) + "\n", "utf-8")
    assert not different, ascii(min(different, key=len))


def test_texts_are_hostile() -> None:
    """The texts reach what goes wrong: control characters, marks, all planes, runs, special tokens' spellings."""
    found = "".join(sources.texts(2000, seed=7))
    assert all(
        piece in found for piece in ("\0", "\u200d", "\ufffd", "\u2581", "</s>", "<|endoftext|>", "\r\n", " " * 20)
    )
    assert {ord(character) >> 16 for character in found} >= {0, 1, 2, 16}


def table(passed: dict[tuple[str, str], tuple[int, int]]) -> str:
    """Return docs/tokenizers.md."""
    noted = json.loads(LONG_RUNS.read_text("utf-8"))
    lines = [
        "# Tokenizers: what was compared",
        "",
        "Written by `tests/test_tokenizer_vectors.py` (`HALFBYTE_WRITE_DOCS=1`), which also checks it.",
        "",
        "## Published vectors",
        "",
        "Ids equal to those that others published with a text.",
        "",
        "| family | vectors | passed |",
        "|---|---|---|",
        *(f"| {family} | {name} | {good} of {count} |" for (family, name), (good, count) in passed.items()),
        "",
        "mistral-common, messages: rendered by the template of that version. *By the template's rules*: conversations",
        "that mistral-common's tokenizer writes in another way than its own template does, whoever renders it",
        "(transformers gives the text that we give). The tokenizer writes a tool's answer that is a JSON object as an",
        "object, the template as the string that it was given; in version 2 the tokenizer joins two answers into one",
        "list, the template writes one each. Those texts are brought to the template's rules before their ids are",
        "compared. Version 1's vocabulary is version 3's less the 768 pieces that were added to it.",
        "",
        f"transformers.js has vectors of {sources.absent()} more tokenizers, whose files the test data does not hold.",
        "",
        "## Random and hostile texts",
        "",
        "Words and characters of many scripts, control characters, marks without a letter, long runs, spellings of",
        "special tokens: `HALFBYTE_TOKENIZER_TEXTS=100000 pytest tests/test_tokenizer_vectors.py`. *Keys* means a file",
        "without tokenizer.json, as other converters write it.",
        "",
        "| family | compared | texts | different |",
        "|---|---|---|---|",
    ]
    for family, name in PAIRS:
        run = noted[f"{family}: {name}"]
        lines.append(f"| {family} | {name} | {run['texts']} | {run['different']} |")
    return "\n".join([*lines, ""])


def test_the_table_in_the_documentation_is_up_to_date(passed: dict[tuple[str, str], tuple[int, int]]) -> None:
    if set(passed) != set(SETS):
        pytest.skip("needs the vectors of this file's other tests")
    if os.environ.get("HALFBYTE_WRITE_DOCS"):
        TABLE.write_text(table(passed), "utf-8")
    assert TABLE.read_text("utf-8") == table(passed)


@pytest.mark.parity
def test_mistral_messages_are_rendered_as_transformers_renders_them() -> None:
    """So where mistral-common's own text differs, it differs from its template and not from our rendering of it."""
    utils = pytest.importorskip("transformers.utils.chat_template_utils", reason="the extra parity is not installed")
    sources.data()
    for sample in sources.vectors.samples():
        expected, _ = utils.render_jinja_template(
            [sample.messages], sample.tools, chat_template=sample.template(), bos_token="<s>", eos_token="</s>"
        )
        assert sample.rendered() == expected[0], f"{sample.name} {sample.version}"
