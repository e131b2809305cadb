"""Documents of the training text.  Enters: a random generator; leaves: conversations and plain texts, never held out.

A conversation is a list of messages; `chat_text` writes it as the chat template does.  A plain text has no special
tokens: questions with answers, stories, and prose from a file where one is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from . import facts, stories, tasks

Exchange = tuple[str, str]  # what the user says, what the assistant answers

END, BEGIN = "<|end|>", "<|endoftext|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL = (BEGIN, SYSTEM, USER, ASSISTANT, END)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('roles are system, user and assistant, not ' + message.role) }}{% endif %}"
    "{{ '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
_SYSTEMS = (
    "You are a helpful assistant.",
    "You are the halfbyte sample model.",
    "Answer in one or two sentences.",
    "You are a friendly assistant. Keep your answers short.",
)
PROSE_LETTERS = 900
LEAST_PROSE = 10 * PROSE_LETTERS  # letters that a file of prose has at least
TASK_SHARE = 0.2


def chat_text(exchanges: Sequence[Exchange], system: str | None = None) -> str:
    """Return a conversation as text with special tokens, as TEMPLATE renders it."""
    text = f"{SYSTEM}\n{system}{END}\n" if system else ""
    for user, assistant in exchanges:
        text += f"{USER}\n{user}{END}\n{ASSISTANT}\n{assistant}{END}\n"
    return BEGIN + text


def question_text(exchanges: Sequence[Exchange]) -> str:
    """Return questions and answers as plain text."""
    return "\n\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in exchanges)


def trained_task(random: Random) -> Exchange:
    """Return a task that is not held out."""
    task = tasks.task(random, held_out=False)
    return task.question, task.answer


def conversation(random: Random, task_share: float = TASK_SHARE) -> str:
    """Return one conversation: a story on request, a dialogue, or one to six exchanges about anything."""
    kind = random.random()
    if kind < 0.10:
        exchanges = [stories.request(random)]
    elif kind < 0.18:
        exchanges = facts.dialogue(random)
    else:
        makers = (facts.exchange, trained_task, facts.small_talk)
        count = random.choice((1, 1, 1, 2, 2, 3, 4, 6))
        others = 1 - task_share
        shares = (0.85 * others, task_share, 0.15 * others)
        exchanges = [maker(random) for maker in random.choices(makers, shares, k=count)]
    return chat_text(exchanges, random.choice(_SYSTEMS) if random.random() < 0.05 else None)


def plain_text(random: Random, prose: str = "") -> str:
    """Return one plain text; `prose` is a long text of which a piece of some 900 letters may be taken."""
    kind = random.random()
    if prose and kind < 0.1:
        start = prose.find("\n", random.randrange(len(prose) - 2 * PROSE_LETTERS)) + 1
        text = prose[start : start + PROSE_LETTERS]
        return BEGIN + text[: text.rfind("\n")]
    if kind < 0.4:
        makers = (facts.exchange, trained_task)
        count = random.randint(2, 6)
        return BEGIN + question_text([maker(random) for maker in random.choices(makers, (0.7, 0.3), k=count)])
    return BEGIN + "\n\n".join(stories.story(random) for _ in range(random.choice((1, 1, 2))))


def document(random: Random, prose: str = "", task_share: float = TASK_SHARE) -> str:
    """Return one document: four in five are conversations.

    prose        a text to take pieces of; "" for none
    task_share   the part of a conversation's questions that are tasks, the others being facts and small talk
    """
    if random.random() < 0.8:
        return conversation(random, task_share)
    return plain_text(random, prose)
