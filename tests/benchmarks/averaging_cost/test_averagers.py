"""Each way to average does what its name says."""

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from benchmarks.averaging_cost import averagers, weights
from benchmarks.averaging_cost.averagers import (
    APPLY,
    AVERAGING,
    FLOOR,
    IN_FUNCTION,
)


@pytest.mark.parametrize("name", [APPLY, IN_FUNCTION])
def test_apply_averages_each_time(name, monkeypatch):
    made = weights.Weights([(3,), (2,)])
    swa = swa_tf.StochasticWeightAveraging()
    monkeypatch.setattr(swa_tf, "StochasticWeightAveraging", lambda: swa)
    step = averagers.WAYS[name].make(made)
    for value in (1.0, 2.0, 6.0):
        for variable in made.variables:
            variable.assign(tf.fill(variable.shape, value))
        step.work()
    assert int(swa.n_models) == 3
    for weight in made.keras_variables:
        np.testing.assert_array_equal(swa.average(weight), 3.0)


def test_floor_adds_in_place():
    made = weights.Weights([(3,)])
    made.variables[0].assign([1.0, 2.0, 3.0])
    step = averagers.WAYS[FLOOR].make(made)
    step.work()
    step.work()
    np.testing.assert_array_equal(made.variables[0], [1.0, 2.0, 3.0])


def test_every_difference_has_its_base():
    for way in averagers.WAYS.values():
        if way.beyond:
            base = averagers.WAYS[way.beyond]
            assert (base.uses, base.needs) == (way.uses, way.needs)


@pytest.mark.slow
def test_all_ways_that_are_there():
    there = [name for name, way in AVERAGING.items() if not way.absent]
    found = averagers.measure(weights.shapes("3x10"), there, 1)
    assert [len(found[name]["times"]) for name in there] == [1] * len(there)
