"""The made-up tasks of the sample model's corpus: held-out ones stay out of training, and answers are right."""

import operator
import re
from random import Random

import pytest
from corpus import tasks

from halfbyte.bench.questions import Question, answered

SIGNS = {"plus": operator.add, "minus": operator.sub}


@pytest.fixture(scope="module")
def drawn():
    """20000 tasks for training and as many held out."""
    random = Random(1)
    return [[tasks.task(random, held_out) for _ in range(20000)] for held_out in (False, True)]


def plain(question):
    return " ".join(re.findall(r"[\w+-]+", question.lower()))


def test_held_out_questions_are_never_trained(drawn):
    trained, held_out = ({plain(task.question) for task in tasks} for tasks in drawn)
    assert len(trained) > 5000 and len(held_out) > 2000
    assert not trained & held_out


def test_held_out_sums_are_never_trained_in_either_order_or_any_wording(drawn):
    def sums(tasks):
        found = (re.match(r"(\d+) plus (\d+) is", task.answer) for task in tasks)
        return {tuple(sorted(map(int, match.groups()))) for match in found if match}

    trained, held_out = map(sums, drawn)
    assert len(trained | held_out) == 21 * 22 / 2, "every sum of 0..20 is drawn"
    assert not trained & held_out


def right(task, text):
    return answered(Question(task.question, tuple((key,) for key in task.keys)), text)


def test_the_keys_tell_the_right_answer(drawn):
    for task in (*drawn[0], *drawn[1]):
        assert task.question and task.keys and right(task, task.answer), task
        if not any(key.isupper() and len(key) > 1 for key in task.keys):  # capitals count for nothing there
            assert not right(task, task.question), task


def test_one_question_has_one_answer(drawn):
    answers = {}
    for task in (*drawn[0], *drawn[1]):
        assert answers.setdefault(task.question, task.answer) == task.answer, task


def test_arithmetic_is_right(drawn):
    checked = 0
    for task in (*drawn[0], *drawn[1]):
        if match := re.match(r"(\d+) (plus|minus) (\d+) is (\d+)", task.answer):
            a, sign, b, c = match.groups()
            assert SIGNS[sign](int(a), int(b)) == int(c), task
            assert sorted(re.findall(r"\d+", task.question)) == sorted((a, b)), task
        elif match := re.match(r"(Half of|Twice) (\d+)( \w+)? is (\d+)", task.answer):
            half, a, _, b = match.groups()
            assert int(b) == (int(a) / 2 if half == "Half of" else int(a) * 2), task
        elif match := re.match(r"(\d+) is (larger|smaller) than (\d+)", task.answer):
            a, order, b = match.groups()
            assert (int(a) > int(b)) == (order == "larger"), task
        else:
            continue
        checked += 1
    assert checked > 10000
