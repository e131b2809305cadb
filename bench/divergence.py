"""How two predictions of the same tokens differ.  Enters: logits beside the reference's log-probabilities, position by
position; leaves: the statistics of llama-perplexity's KL divergence report (tools/perplexity/perplexity.cpp).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MIN_POSITIONS = 100  # below, no statistics are made
_CUT = -16  # natural logs: the reference's tokens at or below add nothing to the divergence
_MIN_FOR_ERROR = 11
_KL_PERCENTS = (100, 99.9, 99, 95, 90, 50, 10, 5, 1, 0.1, 0)
DELTA_P_PERCENTS = (100, 99.9, 99, 95, 90, 75, 50, 25, 10, 5, 1, 0.1, 0)


class Estimate(NamedTuple):
    """A mean, or what is computed from means, and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Positions:
    """What was measured at each scored position.

    nll        float64 [n]: -ln p of the token that follows
    base_nll   float64 [n]: the same by the reference
    kl         float64 [n]: KL divergence of the model from the reference, in nats
    delta_p    float64 [n]: p - p by the reference, of the token that follows
    same_top   bool [n]: both find the same token most likely
    """

    nll: Array
    base_nll: Array
    kl: Array
    delta_p: Array
    same_top: NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: Sequence[Positions]) -> Positions:
        """Return all positions of `parts` (at least one), in order."""
        return cls(*(np.concatenate(columns) for columns in zip(*(vars(p).values() for p in parts), strict=True)))


@dataclass(frozen=True)
class Divergence:
    """How far a model is from its reference; probabilities and shares are from 0 to 1.

    base_perplexity       of the reference, by its log-probabilities as the file holds them: where a token is more than
                          16 less likely than the likeliest, it counts as 16, so this may be below the true one
    correlation           of both -ln p, position by position; NaN where one of them never changes
    log_ratio, ratio      ln(perplexity / base_perplexity), and its exponential
    difference            perplexity - base_perplexity
    kl                    mean KL divergence in nats
    kl_percentiles        percent -> nats, largest (100) to least (0); 50 is the median
    delta_p               mean change of the probability of the token that follows
    delta_p_percentiles   percent -> change of probability
    rms_delta_p           root of the mean square of that change
    same_top              share of positions where both find the same token most likely
    """

    base_perplexity: Estimate
    correlation: float
    log_ratio: Estimate
    ratio: Estimate
    difference: Estimate
    kl: Estimate
    kl_percentiles: Mapping[float, float]
    delta_p: Estimate
    delta_p_percentiles: Mapping[float, float]
    rms_delta_p: Estimate
    same_top: Estimate


def log_sums(logits: NDArray[np.float32]) -> Array:
    """Return float64 [n]: ln of the sum of exp(logit) of each row of `logits`, float32 [n, n_vocab].

    float32 exponentials, summed in float64; the logits are finite numbers.
    """
    with np.errstate(invalid="ignore"):
        largest = logits.max(axis=1, keepdims=True)
        return largest[:, 0] + np.log(np.exp(logits - largest).sum(axis=1, dtype=np.float64))


def compare(
    logits: NDArray[np.float32], sums: Array, base: NDArray[np.float32], tokens: NDArray[np.int32]
) -> Positions:
    """Return what some positions give.

    logits  float32 [n, n_vocab], the model's
    sums    float64 [n], their log_sums
    base    float32 [n, n_vocab], the reference's log-probabilities
    tokens  int32 [n], the token that follows each position

    KL is the sum of p_base (ln p_base - ln p) over the tokens whose ln p_base is above -16, not normalised again, so
    it may be slightly negative.
    """
    terms = np.exp(base) * (base - logits + sums[:, None].astype(np.float32))
    at = np.arange(len(tokens)), tokens
    nll, base_nll = sums - logits[at], -base[at].astype(np.float64)
    return Positions(
        nll=nll,
        base_nll=base_nll,
        kl=np.where(base > _CUT, terms, 0).sum(axis=1, dtype=np.float64),
        delta_p=np.exp(-nll) - np.exp(-base_nll),
        same_top=logits.argmax(axis=1) == base.argmax(axis=1),
    )


def perplexity(nll: Array) -> Estimate:
    """Return exp(mean nll) of float64 [n], and its error as the mean's error spreads."""
    with np.errstate(over="ignore"):
        value = float(np.exp(nll.mean()))
    return Estimate(value, value * standard_error(nll))


def standard_error(values: Array) -> float:
    """Return the standard error of the mean of float64 [n]: sqrt((mean x^2 - mean^2) / (n - 1)), 0 for one value."""
    return math.sqrt(values.var() / (values.size - 1)) if values.size > 1 else 0.0


def estimate(values: Array) -> Estimate:
    """Return the mean of float64 [n] with its standard error, which is 0 for ten values or fewer."""
    return Estimate(float(values.mean()), standard_error(values) if values.size >= _MIN_FOR_ERROR else 0.0)


def percentiles(values: Array, percents: tuple[float, ...]) -> dict[float, float]:
    """Return percent -> the value at place percent/100 * (n - 1) of float64 [n], sorted; linear between neighbours."""
    return dict(zip(percents, np.percentile(values, percents).tolist(), strict=True))


def summarize(found: Positions) -> Divergence:
    """Return the statistics of all positions.

    The errors of ratio and difference know that both models were measured at the same positions: the variance of
    a x - b y is a^2 var x + b^2 var y - 2 a b cov(x, y).
    """
    nll, base_nll = found.nll, found.base_nll
    own, base = perplexity(nll).value, estimate(base_nll)
    base_value = math.exp(base.value)
    log_ratio = estimate(nll - base_nll)
    ratio = own / base_value
    square = estimate(found.delta_p**2)
    rms = math.sqrt(square.value)
    share, n = float(found.same_top.mean()), nll.size
    return Divergence(
        base_perplexity=Estimate(base_value, base_value * base.error),
        correlation=_correlation(nll, base_nll),
        log_ratio=log_ratio,
        ratio=Estimate(ratio, ratio * log_ratio.error),
        difference=Estimate(own - base_value, estimate(own * nll - base_value * base_nll).error),
        kl=estimate(found.kl),
        kl_percentiles=percentiles(found.kl, _KL_PERCENTS),
        delta_p=estimate(found.delta_p),
        delta_p_percentiles=percentiles(found.delta_p, DELTA_P_PERCENTS),
        rms_delta_p=Estimate(rms, 0.5 / rms * square.error if rms else 0.0),
        same_top=Estimate(share, math.sqrt(share * (1 - share) / (n - 1)) if n >= _MIN_FOR_ERROR else 0.0),
    )


def _correlation(a: Array, b: Array) -> float:
    spread = math.sqrt(a.var() * b.var())
    return float(((a - a.mean()) * (b - b.mean())).mean()) / spread if spread else math.nan
