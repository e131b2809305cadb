"""The statistics of two predictions, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from halfbyte.bench.divergence import Positions, compare, estimate, log_sums, percentiles, perplexity, summarize
from halfbyte.bench.logits_file import encode


def test_logits_far_apart_stay_exact() -> None:
    logits = np.array([[1000, 999, -1000], [-1e30, 0, 1e-3]], np.float32)
    np.testing.assert_allclose(log_sums(logits), [1000 + math.log1p(math.exp(-1)), math.log(1 + math.exp(1e-3))])
    assert perplexity(np.array([1e6, 1e6])).value == math.inf


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_show(value: float) -> None:
    assert np.isfinite(log_sums(np.array([[1, value, 2], [1, 2, 3]], np.float32))).tolist() == [False, True]


def test_two_words_by_hand() -> None:
    """p = 3/4, 1/4 by the model, 1/2, 1/2 by the reference."""
    logits = np.log(np.array([[3, 1]], np.float32))
    base = np.log(np.array([[0.5, 0.5]], np.float32))
    found = compare(logits, log_sums(logits), base, np.array([1], np.int32))
    assert found.nll == pytest.approx(math.log(4))
    assert found.base_nll == pytest.approx(math.log(2))
    assert found.kl == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2), abs=1e-7)
    assert found.delta_p == pytest.approx(-0.25)
    assert found.same_top.tolist() == [True]  # the first wins a tie


def test_kl_counts_what_lies_above_minus_16_only() -> None:
    base = np.array([[0, -16, np.nextafter(np.float32(-16), np.float32(0))]], np.float32)
    logits = np.array([[0, -40, -40]], np.float32)
    found = compare(logits, log_sums(logits), base, np.array([0], np.int32))
    assert found.kl == pytest.approx(math.exp(-16) * 24, rel=1e-4)
    below = compare(logits[:, :2], log_sums(logits), base[:, :2], np.array([1], np.int32))
    assert below.kl == 0
    assert (below.nll, below.base_nll) == (40, 16)


def test_kl_may_be_slightly_negative() -> None:
    """The sum is not normalised again: what the reference keeps may add up to less than one."""
    logits = np.zeros((1, 4), np.float32)
    base = np.full((1, 4), math.log(0.2), np.float32)
    found = compare(logits, log_sums(logits), base, np.array([0], np.int32))
    assert found.kl == pytest.approx(0.8 * math.log(0.8), rel=1e-5)


def test_percentiles_by_hand() -> None:
    values = np.array([40.0, 10.0, 30.0, 20.0])
    assert percentiles(values, (0, 10, 50, 90, 100)) == pytest.approx({0: 10, 10: 13, 50: 25, 90: 37, 100: 40})
    assert percentiles(values[:3], (50, 75)) == pytest.approx({50: 30, 75: 35})
    assert percentiles(np.array([7.0]), (0.1, 99.9)) == {0.1: 7, 99.9: 7}


def test_errors_by_hand() -> None:
    values = np.array([0.0, 2.0] * 6)  # mean 1, mean square 2, n 12
    assert estimate(values) == pytest.approx((1, math.sqrt(1 / 11)))
    assert estimate(values[:10]) == (1, 0)  # ten or fewer: no error is told
    assert estimate(values[:11])[1] > 0
    assert perplexity(values) == pytest.approx((math.e, math.e * math.sqrt(1 / 11)))
    assert perplexity(values[:2]) == pytest.approx((math.e, math.e))  # one below ten: the formula as it is
    assert perplexity(values[1:2]) == pytest.approx((math.e**2, 0))


def test_summary_by_hand() -> None:
    """-ln p is 0 and 2 in turns, by the reference 1 and 2: variances 1 and 1/4, covariance 1/2, n 101 - 1."""
    n = 100
    same = np.arange(n) % 4 > 0
    zeros = np.zeros(n)
    delta_p = np.tile([0.1, -0.1], n // 2)
    found = summarize(Positions(np.tile([0.0, 2.0], n // 2), np.tile([1.0, 2.0], n // 2), zeros, delta_p, same))
    base = math.exp(1.5)
    assert found.base_perplexity == pytest.approx((base, base * math.sqrt(0.25 / 99)))
    assert found.correlation == pytest.approx(1)
    assert found.log_ratio == pytest.approx((-0.5, math.sqrt((1 + 0.25 - 2 * 0.5) / 99)))
    assert found.ratio == pytest.approx((math.exp(-0.5), math.exp(-0.5) * 0.5 / math.sqrt(99)))
    assert found.difference == pytest.approx((math.e - base, abs(math.e - base / 2) / math.sqrt(99)))
    assert found.kl == (0, 0)
    assert found.delta_p == pytest.approx((0, 0.1 / math.sqrt(99)))
    assert found.rms_delta_p == pytest.approx((0.1, 0), abs=1e-12)
    assert found.same_top == pytest.approx((0.75, math.sqrt(0.75 * 0.25 / 99)))
    assert math.isnan(summarize(Positions(zeros, zeros, zeros, zeros, same)).correlation)


def test_equal_most_likely_tokens_with_ties() -> None:
    """Where the file keeps two equal codes, the first of them is the reference's choice."""
    logits = np.array([[0, 5, 5.00001]], np.float32)
    codes = encode(logits)[0, 4:7]
    assert codes[1] == codes[2] == 65535
    base = np.array([[-5.7, -0.69, -0.69]], np.float32)
    assert compare(logits, log_sums(logits), base, np.array([0], np.int32)).same_top.tolist() == [False]
