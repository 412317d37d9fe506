"""The ways timed in one process, chosen by the memory that they need."""

import pytest

from benchmarks.averaging_cost import comparison
from benchmarks.averaging_cost.averagers import APPLY, FLOOR
from benchmarks.common.errors import BenchmarkError

EMA, PLAIN = "tf.train.ExponentialMovingAverage", "plain formula"


# A copy is 4 bytes a parameter: here 10^9 parameters, 4 GB a copy. The
# weights are one, five are kept for what arithmetic leaves lying about.
def test_all_in_one_where_they_fit():
    # Weights, floor, apply, plain, EMA, and five: 10 copies.
    found = comparison.groups([PLAIN, EMA], 10**9, 40 * 10**9)
    assert found == [[FLOOR, APPLY, PLAIN, EMA]]


def test_two_where_not():
    found = comparison.groups([PLAIN, EMA], 10**9, 40 * 10**9 - 1)
    assert found == [[FLOOR, APPLY, PLAIN], [FLOOR, APPLY, EMA]]


def test_what_counts_as_a_difference_has_its_base_beside_it():
    # Gradients are a copy as well: 10 of them.
    wanted = [[FLOOR, APPLY, "Keras SGD", "Keras use_ema"]]
    for ways in (["Keras use_ema"], ["Keras SGD", "Keras use_ema"]):
        found = comparison.groups(ways, 10**9, 40 * 10**9)
        assert found == wanted


def test_too_large():
    with pytest.raises(BenchmarkError, match="--memory_gb=32"):
        comparison.groups([FLOOR], 10**9 + 1, 32 * 10**9)
    assert comparison.groups([FLOOR], 10**9, 32 * 10**9)
