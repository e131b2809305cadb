"""The figures in the help text are those of the sample, its text and these quantizers."""

import pytest
import type_costs

from halfbyte.commands._type_costs import COSTS
from halfbyte.quant.recipe import RECIPES


def test_every_type_has_its_row():
    assert list(COSTS) == list(RECIPES)


def test_some_measured_again(tmp_path):
    """Of the mixed types those that people use most; another instruction set sums in another order."""
    for type, (bits, kl, ratio) in type_costs.measure(["q3_k_m", "q4_k_m"], tmp_path).items():
        expected_bits, expected_kl, growth = COSTS[type]
        assert bits == pytest.approx(expected_bits, abs=0.005), "python tests/type_costs.py measures them anew"
        assert kl == pytest.approx(expected_kl, rel=0.05, abs=1e-5)
        assert 100 * (ratio - 1) == pytest.approx(growth, abs=0.1)


def test_more_bits_cost_less_within_a_family():
    for family in (["q4_0", "q5_0", "q8_0"], ["q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "q8_0"]):
        divergence = [COSTS[type][1] for type in family]
        assert divergence == sorted(divergence, reverse=True)
