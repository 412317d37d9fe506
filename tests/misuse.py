"""Helpers of the tests of misuse."""

import threading

import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import compat
from swa_tf.support import variables as variables_lib
from tests.fitting import covering

AVERAGES = [
    swa_tf.StochasticWeightAveraging,
    lambda: swa_tf.ExponentialMovingAverage(0.5),
]
IDS = dict(zip(map(id, AVERAGES), ["swa", "ema"]))
both = pytest.mark.parametrize("make", AVERAGES, ids=["swa", "ema"])


def both_and(name, *values):
    """Each average and each value; the other pairs are slow."""
    return pytest.mark.parametrize(
        ("make", name),
        covering(1, AVERAGES, values),
        ids=lambda value: IDS.get(id(value), str(value)),
    )


def make_model():
    model = tf.keras.Sequential(
        [tf.keras.layers.Dense(2), tf.keras.layers.BatchNormalization()]
    )
    model.build([None, 3])
    return model


def averaged_model(make):
    """A model, and an average of kernels of 1 and of 3: 2."""
    model, average = make_model(), make()
    kernel = model.trainable_variables[0]
    for value in (1.0, 3.0):
        kernel.assign(tf.fill(kernel.shape, value))
        average.apply(model.trainable_variables)
    return average, model


def state_of(average, *variables):
    """All that an average and variables hold, for comparison."""
    return [
        component.numpy().tobytes()
        for variable in (*average.variables, *variables)
        for component in variables_lib.components(compat.tf_variable(variable))
    ]


def averaged_variable(make, values=(1.0, 3.0)):
    """A variable, and an average of both: 2."""
    average, variable = make(), tf.Variable(values[0], name="v")
    for value in values:
        variable.assign(value)
        average.apply([variable])
    return average, variable


def raises_and_changes_nothing(error, match, average, variables, function):
    before = state_of(average, *variables)
    with pytest.raises(error, match=match):
        function()
    assert state_of(average, *variables) == before


def entering(average, target, **kwargs):
    def enter():
        with swa_tf.averaged_weights(average, target, **kwargs):
            pytest.fail("the block was entered")

    return enter


def expected_of(average, swa, ema):
    """Returns `swa` for an average of that class, else `ema`."""
    is_swa = isinstance(average, swa_tf.StochasticWeightAveraging)
    return swa if is_swa else ema


def optimizer_variables(optimizer):
    variables = optimizer.variables
    return variables() if callable(variables) else variables


def started_thread(function):
    """A thread, that has ended by now or waits for somebody."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(timeout=0.2)
    return thread
