"""What generation hands out.  Enters: tokens and times from the engine; leaves: steps, and the whole answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timings:
    """Counts and seconds of one generation.

    prompt_tokens      tokens of the prompt, cached ones included
    cached_tokens      of these, taken from the KV cache and not computed
    prompt_seconds     time to compute the others
    generated_tokens   tokens generated
    generation_seconds time to generate them
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_seconds: float = 0.0
    generated_tokens: int = 0
    generation_seconds: float = 0.0

    @property
    def prompt_per_second(self) -> float:
        """Computed prompt tokens per second, 0.0 where no time was measured."""
        return _rate(self.prompt_tokens - self.cached_tokens, self.prompt_seconds)

    @property
    def generation_per_second(self) -> float:
        """Generated tokens per second, 0.0 where no time was measured."""
        return _rate(self.generated_tokens, self.generation_seconds)


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


@dataclass(frozen=True)
class GenerationStep:
    """One step of an answer; the terminal, the server and the benchmark all consume it.

    text           what this step adds; empty while a character is not complete or may begin a stop text
    token_id       the token, None for the closing step that only carries the rest of the text
    logprob        log of its probability, None where not asked for
    finish_reason  None while it goes on, then "stop" (end token or stop text) or "length" (limit or context)
    timings        up to and with this step
    """

    text: str
    token_id: int | None
    logprob: float | None
    finish_reason: str | None
    timings: Timings


@dataclass(frozen=True)
class Generation:
    """A whole answer: the joined text, its token ids, why it ended ("stop" or "length"), and the timings."""

    text: str
    token_ids: list[int]
    finish_reason: str
    timings: Timings
