"""The facts and documents of the training corpus: what is held out stays out, and what ships is what it makes."""

import json
import re
from collections import Counter
from random import Random

import evaluation
import numpy as np
import pytest
from corpus import documents, facts
from rows import NOTHING, packed_rows
from tokenizers import Tokenizer

from halfbyte.bench.questions import answered, load_questions
from halfbyte.convert.sample_model import EVALUATION_TEXT, QUESTIONS, SAMPLE, sample_gguf
from halfbyte.runtime.templates import ChatTemplate

FACTS = facts.facts()


def test_facts_are_well_formed():
    assert len(FACTS) >= 300
    assert all(count == 1 for count in Counter(fact.id for fact in FACTS).values())
    for fact in FACTS:
        assert len(fact.ask) >= 6, fact.id
        assert len(fact.held_out) == 2, fact.id
        assert len(fact.answer) >= 2, fact.id
        assert fact.keys, fact.id
    text = json.dumps([[*fact.ask, *fact.held_out, *fact.answer] for fact in FACTS], ensure_ascii=False)
    assert text.isascii()


def test_a_question_belongs_to_one_fact_and_is_trained_or_held_out():
    uses = Counter((facts.plain(question), fact.id) for fact in FACTS for question in (*fact.ask, *fact.held_out))
    owners = Counter(question for question, _ in uses)
    assert [question for question, count in owners.items() if count > 1] == []
    held_out = {facts.plain(question) for fact in FACTS for question in fact.held_out}
    assert held_out.isdisjoint(facts.plain(question) for fact in FACTS for question in fact.ask)


def test_answers_hold_their_keys_and_no_question_gives_them_away(tmp_path):
    lines = [json.dumps({"question": fact.id, "keys": fact.keys}) for fact in FACTS]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    for fact, question in zip(FACTS, load_questions(tmp_path / "q.jsonl"), strict=True):
        for answer in fact.answer:
            assert answered(question, answer), (fact.id, answer)
        for asked in fact.held_out:
            assert not answered(question, asked), (fact.id, asked)


@pytest.fixture(scope="module")
def trained():
    """Documents as a training run draws them."""
    random = Random(5)
    return [documents.document(random) for _ in range(6000)]


def test_no_held_out_question_is_trained(trained):
    held_out = facts.held_out_questions()
    asked = [
        question
        for text in trained
        for question in re.findall(r"(?:<\|user\|>\n|Question: )(.*?)(?:<\|end\|>|\n|$)", text)
    ]
    assert len(asked) > 8000
    assert [question for question in asked if facts.plain(question) in held_out] == []


def test_the_evaluation_is_not_trained(trained):
    whole = "\n".join(trained)
    for part in EVALUATION_TEXT.read_text("utf-8").strip().split("\n\n"):
        if part.startswith("Question: "):
            assert part.split("\n")[0] + "\n" not in whole, part
        assert part not in whole, part


def test_what_ships_is_what_the_corpus_makes():
    assert EVALUATION_TEXT.read_text("utf-8") == evaluation.evaluation_text()
    shipped = [json.loads(line) for line in QUESTIONS.read_text("utf-8").splitlines()]
    assert shipped == evaluation.evaluation_questions()
    assert len({facts.plain(entry["question"]) for entry in shipped}) == len(shipped) >= 100


def test_conversations_are_written_as_the_template_renders_them():
    config = json.loads((SAMPLE / "tokenizer_config.json").read_text("utf-8"))
    assert config["chat_template"] == documents.TEMPLATE
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "Bye!"},
    ]
    template = ChatTemplate(str(sample_gguf()))
    want = documents.chat_text([("Hello", "Hi!"), ("Bye", "Bye!")], "Be kind.")
    assert template.render(messages, add_generation_prompt=False) == want
    assert want.startswith(template.render(messages[:-1]))


def test_equal_seeds_give_equal_documents():
    assert documents.document(Random(3)) == documents.document(Random(3))


def test_rows_hold_whole_documents():
    tokenizer = Tokenizer.from_file(str(SAMPLE / "tokenizer.json"))
    random = Random(2)
    drawn = []

    def next_document():
        drawn.append(documents.document(random))
        return drawn[-1]

    packed = packed_rows(next_document, tokenizer, 20, 512)
    assert packed.shape == (20, 513)
    known = {text.removeprefix(documents.BEGIN) for text in drawn}
    for row in packed:
        ids = row[row != NOTHING].tolist()
        assert (row[len(ids) :] == NOTHING).all()
        empty, *texts = tokenizer.decode(ids, skip_special_tokens=False).split(documents.BEGIN)
        assert empty == ""
        for text in texts:
            assert text in known or len(texts) == 1, text  # one that is longer than a row is cut
    assert np.mean(packed != NOTHING) > 0.97
