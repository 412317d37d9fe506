"""An interrupt at any moment of an average leaves all of it, or nothing."""

import pytest
import tensorflow as tf

import swa_tf
from tests.fitting import exhaustive
from tests.interrupts import each_moment

EVERY = pytest.mark.parametrize("every", ["line", exhaustive("opcode")])
MAKE = pytest.mark.parametrize(
    "make",
    [
        swa_tf.StochasticWeightAveraging,
        lambda: swa_tf.ExponentialMovingAverage(0.5),
        lambda: swa_tf.ExponentialMovingAverage(0.5, warm_up=1),
    ],
    ids=["swa", "ema", "ema warming up"],
)


def values(average, variables):
    return [float(average.average(variable)) for variable in variables]


@EVERY
@MAKE
def test_build(make, every, tmp_path):
    made = []

    def build():
        made.clear()
        made[:] = [make(), [tf.Variable(1.0), tf.Variable(2.0)]]
        made[0].build(made[1])

    moments = 0
    for moment in each_moment(build, every):
        if len(made) < 2:
            continue  # it came when the average was made
        average, variables = made
        average.build(variables)
        assert values(average, variables) == [1.0, 2.0], moment
        assert [float(v) for _, v in average.averaged] == [1.0, 2.0], moment
        moments += 1
        if moments % 10 == 0:
            tf.train.Checkpoint(average).write(str(tmp_path / "checkpoint"))
            again = make()
            read = tf.train.Checkpoint(again).read(str(tmp_path / "checkpoint"))
            again.build(variables)
            read.assert_consumed()
    assert moments > 10


@EVERY
@MAKE
def test_apply(make, every):
    variables = [tf.Variable(1.0), tf.Variable(2.0)]
    average, expected = make(), make()
    for each in (average, expected):
        each.apply(variables)
    for variable in variables:
        variable.assign_add(2.0)
    moments = 0
    for moment in each_moment(lambda: average.apply(variables), every):
        if int(average.n_models) > int(expected.n_models):
            expected.apply(variables)
        assert int(average.n_models) == int(expected.n_models), moment
        assert values(average, variables) == values(expected, variables), moment
        moments += 1
    assert moments > 10
    average.apply(variables)
    assert int(average.n_models) > 1
