"""The held-out evaluation.  Enters: a folder; leaves: evaluation.txt and questions.jsonl in it.

The questions are wordings and tasks that are not trained, the stories have a seed of their own; the answers to facts
are those that are trained.  Each fact has two held-out wordings: the first is asked in questions.jsonl, the second
stands in evaluation.txt.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from corpus import documents, facts, stories, tasks

SEED = 20_000_003  # far from the seeds of a training run
FACT_QUESTIONS, TASK_QUESTIONS = 160, 40
STORIES = 100


def _held_out_task(random: Random) -> tasks.Task:
    return tasks.task(random, held_out=True)


def _exchange(random: Random) -> documents.Exchange:
    """Return a held-out question with its answer: facts in their second held-out wording, and tasks."""
    if random.random() < 0.25:
        task = _held_out_task(random)
        return task.question, task.answer
    fact = random.choice(facts.facts())
    return fact.held_out[1], random.choice(fact.answer)


def held_out_document(random: Random) -> str:
    """Return a document of the training text's kinds, held out: a conversation, questions, or a story."""
    kind = random.random()
    if kind < 0.2:
        return documents.BEGIN + stories.story(random)
    exchanges = [_exchange(random) for _ in range(random.randint(1, 4))]
    return documents.chat_text(exchanges) if kind < 0.7 else documents.BEGIN + documents.question_text(exchanges)


def evaluation_text() -> str:
    """Return every fact in its second held-out wording, held-out tasks and stories, mixed, as plain text."""
    random = Random(SEED)
    exchanges = [(fact.held_out[1], random.choice(fact.answer)) for fact in facts.facts()]
    tasks_drawn = [_held_out_task(random) for _ in range(len(exchanges) // 3)]
    exchanges += [(task.question, task.answer) for task in tasks_drawn]
    random.shuffle(exchanges)
    parts = [documents.question_text(exchanges[start : start + 4]) for start in range(0, len(exchanges), 4)]
    parts += [stories.story(random) for _ in range(STORIES)]
    random.shuffle(parts)
    return "\n\n".join(parts) + "\n"


def evaluation_questions() -> list[dict[str, object]]:
    """Return facts, evenly over the topics, in their first held-out wording, and held-out tasks, with their keys."""
    random = Random(SEED + 1)
    known = facts.facts()
    chosen = [known[number * len(known) // FACT_QUESTIONS] for number in range(FACT_QUESTIONS)]
    questions = [{"question": fact.held_out[0], "keys": list(fact.keys)} for fact in chosen]
    found: dict[str, tasks.Task] = {}
    while len(found) < TASK_QUESTIONS:
        task = _held_out_task(random)
        if any(key.isupper() and len(key) > 1 for key in task.keys):
            continue  # the score of an answer does not look at capitals
        found.setdefault(facts.plain(task.question), task)
    return questions + [{"question": task.question, "keys": list(task.keys)} for task in found.values()]


def write_evaluation(folder: Path) -> None:
    """Write evaluation.txt and questions.jsonl."""
    (folder / "evaluation.txt").write_text(evaluation_text(), "utf-8")
    lines = [json.dumps(question) for question in evaluation_questions()]
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
