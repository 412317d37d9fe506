"""An average of the user's own: a subclass with a `coefficient`."""

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.averaging import update
from tests import modes


class PolynomialAverage(swa_tf.WeightAverage):
    """A user's own average: c = (gamma + 1) / (n + gamma + 1)."""

    def __init__(self, gamma=3.0, **kwargs):
        super().__init__(**kwargs)
        self._gamma = gamma

    def coefficient(self, n_models):
        n = tf.cast(n_models, tf.float64)
        return (self._gamma + 1) / (n + self._gamma + 1)


def _polynomial(values, gamma=3.0):
    """The same in float64."""
    average = np.zeros(values[0].shape)
    for n, value in enumerate(values):
        c = (gamma + 1) / (n + gamma + 1)
        average += c * (value.astype(np.float64) - average)
    return average


def _normal(count, shape=(4,)):
    rng = np.random.default_rng(0)
    return list(rng.normal(1.0, 0.3, (count, *shape)).astype(np.float32))


@pytest.mark.parametrize("mode", modes.ALL, ids=modes.name_of)
def test_an_average_of_the_users_own(mode):
    values = _normal(54 if mode is modes.eager else 8)
    average, n_models = mode(values, tf.float32, make=PolynomialAverage)
    assert n_models == len(values)
    # Each sum is off by at most one unit of numbers below 2, and later sums
    # make less of it: with c = 4 / (n + 4) a fifth of the number of sums.
    atol = (1 + len(values) / 5) * 2.0**-23
    np.testing.assert_allclose(average, _polynomial(values), 0, atol)


def test_an_average_of_the_users_own_compiled_after_50():
    shape = (update.COMPILED_ELEMENTS,)
    values = _normal(54, shape)
    average, _ = modes.eager(values, tf.float32, make=PolynomialAverage)
    expected = _polynomial(values)
    np.testing.assert_allclose(average, expected, 0, 12 * 2.0**-23)


def test_an_average_of_the_users_own_is_resumed_and_swapped(tmp_path):
    values = [float(value) for value in (1.0, 4.0, 8.0)]
    variable = tf.Variable(0.0)
    average = PolynomialAverage(gamma=1.0)
    assert average.name == "PolynomialAverage"
    for value in values[:2]:
        variable.assign(value)
        average.apply([variable])
    path = tf.train.Checkpoint(average=average).save(str(tmp_path / "c"))
    average = PolynomialAverage(gamma=1.0)
    tf.train.Checkpoint(average=average).restore(path)
    variable.assign(values[2])
    average.apply([variable])
    # 1; 1 + 2/3 * 3; 3 + 1/2 * 5
    with swa_tf.averaged_weights(average, [variable]):
        assert float(variable) == 5.5
    assert float(variable) == 8.0


@pytest.mark.parametrize(
    ("c", "error"),
    [
        ([0.5, 0.5], ValueError),
        (tf.constant(0.5), ValueError),
        ("1", TypeError),
    ],
)
def test_a_coefficient_that_is_no_scalar_of_float64(c, error):
    class Wrong(swa_tf.WeightAverage):
        def coefficient(self, n_models):
            return c

    variable, average = tf.Variable(1.0), Wrong()
    average.build([variable])
    with pytest.raises(error):
        average.apply([variable])
    assert int(average.n_models) == 0


def test_an_average_without_a_coefficient_cannot_be_made():
    with pytest.raises(TypeError, match="coefficient"):
        swa_tf.WeightAverage()
