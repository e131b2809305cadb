"""The samplers, one function each.  Enters: logits; leaves: fewer candidates, and at the end one token id.

The order is llama.cpp's (common/common.h: penalties, top_k, top_p, min_p, temperature, then the draw), and so are the
rules of each step (src/llama-sampler.cpp).  Ties go to the smaller id, so that the result does not depend on how a
library partitions.  Sums are taken in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_GROUPS, _MANY = 4096, 1 << 15  # of many values: see `_possible`


class Candidates(NamedTuple):
    """The tokens that are still possible.

    ids       int64 [n], ascending, or None for "every id from 0"
    logits    float32 or float64 [n]
    """

    ids: NDArray[np.int64] | None
    logits: NDArray[np.floating]

    def take(self, indices: NDArray[np.intp]) -> Candidates:
        """Return the candidates at `indices` (intp [k], ascending)."""
        ids = indices.astype(np.int64) if self.ids is None else self.ids[indices]
        return Candidates(ids, self.logits[indices])

    def id_at(self, index: int) -> int:
        """Return the token id of candidate `index`."""
        return index if self.ids is None else int(self.ids[index])


def penalties(
    logits: NDArray[np.float32], history: Sequence[int], last_n: int, repeat: float, frequency: float, presence: float
) -> NDArray[np.float32]:
    """Return a copy of `logits` (float32 [n_vocab]) that makes the last `last_n` tokens of `history` less likely.

    A token's logit is divided by `repeat` where it is positive and multiplied where it is not; then
    `frequency` x (its count) + `presence` is subtracted.  `last_n` -1 means the whole history.
    """
    recent = np.asarray(history if last_n < 0 else history[max(0, len(history) - last_n) :], dtype=np.int64)
    ids, counts = np.unique(recent, return_counts=True)
    inside = (ids >= 0) & (ids < logits.size)
    ids, counts = ids[inside], counts[inside]
    seen = logits[ids].astype(np.float64)
    seen = np.where(seen > 0, seen / repeat, seen * repeat) - counts * frequency - presence
    largest = np.finfo(np.float32).max
    penalized = logits.copy()
    penalized[ids] = seen.clip(-largest, largest)
    return penalized


def top_k(candidates: Candidates, k: int) -> Candidates:
    """Keep the `k` candidates with the highest logits; 0 keeps all."""
    logits = candidates.logits
    if k <= 0 or k >= logits.size:
        return candidates
    return candidates.take(_highest(logits, k))


def top_p(candidates: Candidates, p: float) -> Candidates:
    """Keep the most likely candidates, in falling order, up to and with the one that reaches probability `p`."""
    if p >= 1.0 or candidates.logits.size <= 1:
        return candidates
    weights = _weights(candidates.logits)
    total = weights.sum()
    # Those below this reach less than 1 - p together, so they are not wanted, and mostly they are nearly all.
    possible = np.flatnonzero(weights >= (1 - p) * total / weights.size)
    some = weights[possible]
    falling = np.sort(some)[::-1]
    keep = min(int(np.searchsorted(np.cumsum(falling), p * total)) + 1, some.size)
    return candidates.take(possible[_down_to(falling[keep - 1], some, keep)])


def min_p(candidates: Candidates, p: float) -> Candidates:
    """Keep the candidates that are at least `p` times as likely as the most likely one."""
    if p <= 0.0:
        return candidates
    logits = candidates.logits.astype(np.float64)
    return candidates.take(np.flatnonzero(logits >= logits.max() + np.log(p)))


def temperature(candidates: Candidates, value: float) -> Candidates:
    """Divide the logits by `value` (> 0), measured from the highest, which becomes 0."""
    logits = candidates.logits.astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the highest to -inf, which is its meaning
        return Candidates(candidates.ids, (logits - logits.max()) / value)


def greedy(candidates: Candidates) -> int:
    """Return the id with the highest logit, the smallest such id on a tie."""
    return candidates.id_at(int(candidates.logits.argmax()))


def dist(candidates: Candidates, random: np.random.Generator) -> int:
    """Draw one id with the probabilities softmax(logits)."""
    reached = np.cumsum(_weights(candidates.logits))
    index = int(np.searchsorted(reached, random.random() * reached[-1], side="right"))
    last = int(np.searchsorted(reached, reached[-1]))  # rounding may lead past the last token with any probability
    return candidates.id_at(min(index, last))


def _weights(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return exp(logits - max) (float64 [n])."""
    return np.exp(logits.astype(np.float64) - logits.max())


def _highest(values: NDArray[np.floating], k: int) -> NDArray[np.intp]:
    """Return the indices (intp [k], ascending) of the `k` highest values; among equals the first ones."""
    if k >= values.size:
        return np.arange(values.size)
    possible = _possible(values, k) if values.size >= _MANY and k <= _GROUPS // 4 else None
    some = values if possible is None else values[possible]
    indices = _down_to(np.partition(some, some.size - k)[some.size - k], some, k)
    return indices if possible is None else possible[indices]


def _down_to(border: np.floating, values: NDArray[np.floating], k: int) -> NDArray[np.intp]:
    """Return the indices (intp [k], ascending) of the `k` highest values, the lowest of which is `border`."""
    indices = np.flatnonzero(values >= border)
    if indices.size > k:
        surplus = np.flatnonzero(values[indices] == border)[k - indices.size :]
        indices = np.delete(indices, surplus)
    return indices


def _possible(values: NDArray[np.floating], k: int) -> NDArray[np.intp]:
    """Return the indices (intp, ascending) of values among which are the `k` highest and all that equal the last.

    Each of k groups has a value that is no lower than the k-th of the groups' highest, so none below that is among the
    k highest.  That leaves hardly more than k, and takes a third of the time of a partition of 128k logits.
    """
    rows = values.size // _GROUPS
    of_groups = values[: rows * _GROUPS].reshape(rows, _GROUPS).max(axis=0)
    return np.flatnonzero(values >= np.partition(of_groups, _GROUPS - k)[_GROUPS - k])
