"""The story grammar of the training corpus: whole sentences, right articles, as many as asked, the same again."""

import random
import re

import pytest
from corpus import stories

COUNT = 2000
SAID = ("asked", "said", "cried", "called", "shouted", "whispered")


@pytest.fixture(scope="module")
def many():
    rng = random.Random(1)
    return [stories.story(rng) for _ in range(COUNT)]


def bad(texts, pattern):
    return [found[0] for text in texts if (found := re.search(pattern, text))]


def test_every_slot_is_filled(many):
    assert bad(many, r"[{}\[\]|*_@+].{0,30}") == []


def test_plain_text_with_one_newline_between_paragraphs(many):
    assert all(text.isascii() and text == text.strip() for text in many)
    assert bad(many, r"(?:  |\n\s| \n| [.,!?]|[.,]{2}).{0,20}") == []
    assert all(text.count('"') % 2 == 0 and text.endswith((".", "!", '"', "?")) for text in many)


def test_articles_fit_the_next_word(many):
    assert bad(many, r"\b[Aa] (?!one\b|use)[aeiou]\w*") == []
    assert bad(many, r"\b[Aa]n (?!hour)[^aeiou]\w*") == []


def test_sentences_begin_with_capitals(many):
    assert bad(many, r"(?:^|[.!?] |\n|\n\"|\.\" )[a-z]\w*") == []
    assert [tag for tag in bad(many, r"(?<=[!?]\" )(?:he|she) \w+") if tag.split()[1] not in SAID] == []
    assert bad(many, r"(?:First|Next|After that|At first|Then),? (?:The|All|A|They) .{0,20}") == []


def test_lengths_openings_and_plots(many):
    lengths = [len(text.split()) for text in many]
    assert min(lengths) >= stories.SHORTEST and max(lengths) <= stories.LONGEST
    assert len({" ".join(text.split()[:4]) for text in many}) > 400
    assert 0.1 < sum(text.startswith("Once upon a time") for text in many) / COUNT < 0.4
    assert len({plot["id"] for plot in stories.plots()}) == len(stories.plots()) >= 25


def test_stories_are_distinct(many):
    assert len(set(many)) == COUNT


def test_equal_seeds_give_equal_stories(many):
    assert [stories.story(random.Random(seed)) for seed in range(5)] == [
        stories.story(random.Random(seed)) for seed in range(5)
    ]
    assert stories.request(random.Random(7)) == stories.request(random.Random(7))


@pytest.mark.parametrize("plot", stories.plots(), ids=lambda plot: plot["id"])
def test_every_text_of_a_plot_can_be_told(plot):
    """Beats of 4 to 8 and three alternatives at least; drawn often enough that a wrong slot of any text shows."""
    blocks = [stories.lines(block) for block in plot["beats"].strip().split("\n\n")]
    assert 4 <= len(blocks) <= 9
    assert all(len([line for line in block if line not in stories.MARKS]) >= 3 for block in blocks)
    for seed in range(30):
        teller = stories.Teller(random.Random(seed), plot)
        assert teller.topics(teller.text())


def test_requests_are_answered_by_their_stories():
    rng = random.Random(2)
    asked = [stories.request(rng) for _ in range(600)]
    assert len({request for request, _ in asked}) > 400
    for request, told in asked:
        assert not re.search(r"[{}\[\]|]", request)
        topic = re.search(r"about (.+?)(?:, please)?[.?]?$", request)
        names = re.findall(r"\b[A-Z][a-z]+", topic[1]) if topic else []
        assert all(re.search(rf"\b{name}\b", told) for name in names), (request, told)
