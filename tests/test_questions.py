"""Questions with checkable answers: what counts as right, and files that are none."""

import json

import pytest

from halfbyte import LLM
from halfbyte.bench.questions import MAX_ANSWER, Question, answered, ask_all, load_questions
from halfbyte.errors import ModelFileError, UsageError


def write(tmp_path, *lines):
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return file


@pytest.mark.parametrize(
    ("keys", "text", "right"),
    [
        (["Paris"], "It is PARIS.", True),
        (["paris"], "comparison", False),
        (["thread"], "two threads", False),
        (["thread|threads"], "two threads", True),
        (["4.5"], "about 4.5 bits", True),
        (["4.5"], "about 14.5 bits", False),
        (["4.5"], "about 4.55 bits", False),
        (["4.5"], "about 4.5.", True),
        (["32"], "32.", True),
        (["32"], "132", False),
        (["32"], "32.5", False),
        (["5"], "4.5", False),
        (["32|thirty-two"], "blocks of Thirty-Two weights", True),
        (["32", "18"], "32 weights in 18 bytes", True),
        (["32", "18"], "32 weights in 20 bytes", False),
        (["q4"], "Q4_0", False),
        (["Q4_0"], "the type q4_0!", True),
        (["--type"], "use --type q8_0", True),
        (["--type"], "use --types", False),
        (["c-a-t"], "It is C-A-T.", True),
        (["c-a-t"], "c-a-t-s", False),
        (["bit"], "a 4-bit type", True),
        ([".gguf"], "model.gguf", True),
        (["halfbyte convert"], "run `halfbyte  convert\nFOLDER`", True),
        (["c++"], "written in C++?", True),
        (["a.c"], "abc", False),
        (["größe"], "Die GRÖSSE", True),
        (["a"], "", False),
    ],
)
def test_what_is_right(tmp_path, keys, text, right):
    [question] = load_questions(write(tmp_path, {"question": "?", "keys": keys}))
    assert answered(question, text) == right


def test_a_file_is_read_as_it_stands(tmp_path):
    file = write(tmp_path, {"question": "Why?", "keys": [" a | b ", "c"]}, "", {"question": "Wo\u2028?", "keys": ["d"]})
    assert load_questions(file) == [Question("Why?", (("a", "b"), ("c",))), Question("Wo\u2028?", (("d",),))]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "allowed: "),
        ('{"question": "a"}', "allowed: "),
        ('{"question": "a", "keys": ["b"], "more": 1}', "allowed: "),
        ('{"question": 1, "keys": ["b"]}', "question is 1"),
        ('{"question": " ", "keys": ["b"]}', "question is ' '"),
        ('{"question": "\\ud800", "keys": ["b"]}', "question is"),
        ('{"question": "a", "keys": []}', "keys is []"),
        ('{"question": "a", "keys": "b"}', "keys is 'b'"),
        ('{"question": "a", "keys": [4]}', "keys is [4]"),
        ('{"question": "a", "keys": ["b||c"]}', "an alternative is empty"),
        ('{"question": "a", "keys": ["|"]}', "an alternative is empty"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path, line, part):
    file = write(tmp_path, {"question": "a", "keys": ["b"]}, line)
    with pytest.raises(ModelFileError) as caught:
        load_questions(file)
    assert part in str(caught.value)
    assert str(caught.value).startswith(f"{file}: line 2")
    assert "\n" not in str(caught.value)


def test_files_that_hold_no_questions(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        load_questions(tmp_path / "absent")
    with pytest.raises(UsageError, match="directory"):
        load_questions(tmp_path)
    with pytest.raises(ModelFileError, match="has no questions"):
        load_questions(write(tmp_path, "", " "))
    (tmp_path / "latin").write_bytes(b'{"question": "\xe9"}')
    with pytest.raises(ModelFileError, match="not UTF-8"):
        load_questions(tmp_path / "latin")


def test_answers_are_the_likeliest_ones_and_are_counted(tiny_gguf):
    asked, heard = ["hello", "what?", "and now?"], []
    with LLM(tiny_gguf) as llm:
        texts = [
            llm.chat([{"role": "user", "content": text}], temperature=0, repeat_penalty=1.0, max_tokens=MAX_ANSWER).text
            for text in asked
        ]
        words = [next(iter(text.split()), "") for text in texts]
        assert any(words), "the model says nothing: another seed"
        keys = [((word or "nothing",),) if i != 1 else (("no such words",),) for i, word in enumerate(words)]
        questions = [Question(text, key) for text, key in zip(asked, keys, strict=True)]
        llm.sampling = {"temperature": 2.0, "repeat_penalty": 1.5}  # what a file recommends does not change it
        score = ask_all(llm, questions, lambda *told: heard.append(told))
    assert [answer.text for answer in score.answers] == texts
    assert [answer.right for answer in score.answers] == [answered(q, t) for q, t in zip(questions, texts, strict=True)]
    assert score.total == 3
    assert score.right == sum(answer.right for answer in score.answers)
    assert not score.answers[1].right
    assert heard == [("asking questions", done, 3) for done in (0, 1, 2, 3)]
