"""The shipped model answers held-out questions, in every type that `halfbyte demo` shows."""

import pytest

from halfbyte import LLM
from halfbyte.bench.accuracy import measure_accuracy, read_text
from halfbyte.bench.questions import ask_all, load_questions
from halfbyte.convert.sample_model import EVALUATION_TEXT, QUESTIONS, sample_gguf


@pytest.mark.parametrize(("type", "bar"), [("f16", 0.80), ("q8_0", 0.80), ("q4_0", 0.75)])
def test_held_out_questions(type, bar):
    questions = load_questions(QUESTIONS)
    with LLM(sample_gguf(type)) as llm:
        score = ask_all(llm, questions)
    wrong = [(answer.question.text, answer.text) for answer in score.answers if not answer.right]
    print(f"{type}: {score.right} of {score.total} right; wrong: {wrong}")
    assert score.total >= 100
    assert score.right >= bar * score.total


def test_fewer_bits_predict_no_better_and_not_much_worse(tmp_path):
    """Perplexity of held-out text and the divergence from f16, over a part of the text."""
    text, _ = read_text(EVALUATION_TEXT)
    logits = tmp_path / "f16.logits"
    with LLM(sample_gguf("f16")) as llm:
        base = measure_accuracy(llm, text, n_chunks=20, save_logits=logits)
    found = {}
    for type in ("q8_0", "q4_0"):
        with LLM(sample_gguf(type)) as llm:
            found[type] = measure_accuracy(llm, text, n_chunks=20, reference=logits)
    print({type: (accuracy.perplexity, accuracy.divergence.kl.value) for type, accuracy in found.items()})
    assert found["q8_0"].perplexity == pytest.approx(base.perplexity, rel=0.01)
    assert base.perplexity < found["q4_0"].perplexity < 1.2 * base.perplexity
    assert 0 < found["q8_0"].divergence.kl.value < 0.05 * found["q4_0"].divergence.kl.value
    assert found["q8_0"].divergence.same_top.value > 0.98 > found["q4_0"].divergence.same_top.value > 0.85
