"""The sampler of one sequence.  Enters: the logits of a step and the tokens so far; leaves: the next token id."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...errors import HalfbyteError, UsageError
from . import chain
from .params import SamplingParams


class NonFiniteLogitsError(HalfbyteError):
    """The model computed NaN or infinity: damaged weights, or numbers out of range (exit code 3)."""

    exit_code = 3


class Sampler:
    """Chooses tokens for one sequence; the same seed and logits give the same tokens.

    params    the options
    n_vocab   length of the logits
    end_ids   the tokens that end an answer; never chosen when `params.ignore_eos`
    """

    def __init__(self, params: SamplingParams, n_vocab: int, end_ids: Iterable[int] = ()):
        self.params = params
        self.n_vocab = n_vocab
        self.seed = params.seed if params.seed >= 0 else secrets.randbits(32)
        self._banned = sorted(set(end_ids)) if params.ignore_eos else []
        if len(self._banned) >= n_vocab:
            raise UsageError(f"ignore_eos leaves none of the {n_vocab} tokens: all of them end an answer")
        self._random = np.random.Generator(np.random.PCG64(self.seed)) if params.temperature > 0 else None

    def pick(self, logits: NDArray[np.float32], history: Sequence[int]) -> int:
        """Return the next token id.

        logits    float32 [n_vocab], not changed
        history   the token ids of the sequence so far, prompt included, for the penalties

        Raises NonFiniteLogitsError when a logit is NaN or infinite.
        """
        if logits.shape != (self.n_vocab,):
            raise ValueError(f"logits have shape {logits.shape}, not ({self.n_vocab},)")
        # max and min carry a NaN through, so two fast passes see every bad value
        if not (np.isfinite(logits.max()) and np.isfinite(logits.min())):
            raise NonFiniteLogitsError(_describe_nonfinite(logits))
        params = self.params
        if params.penalizes:
            logits = chain.penalties(
                logits, history, params.repeat_last_n, params.repeat_penalty, params.frequency_penalty,
                params.presence_penalty,
            )  # fmt: skip
        if self._banned:
            logits = logits.copy()
            logits[self._banned] = -np.inf
        candidates = chain.Candidates(None, logits)
        if self._random is None:
            return chain.greedy(candidates)
        candidates = chain.top_k(candidates, params.top_k)
        candidates = chain.top_p(candidates, params.top_p)
        candidates = chain.min_p(candidates, params.min_p)
        candidates = chain.temperature(candidates, params.temperature)
        return chain.dist(candidates, self._random)


def _describe_nonfinite(logits: NDArray[np.float32]) -> str:
    bad = np.flatnonzero(~np.isfinite(logits))
    return (
        f"the model gave {bad.size} logits of {logits.size} that are not finite, the first {logits[bad[0]]} "
        f"for token {bad[0]}; the weights are damaged or overflow"
    )
