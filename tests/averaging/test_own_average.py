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


class PowerAverage(swa_tf.WeightAverage):
    """Its decay grows as 1 - (1 + n)^-power, between two bounds."""

    def __init__(self, power=0.75, at_least=0.3, at_most=0.7, **kwargs):
        super().__init__(**kwargs)
        self._power, self._bounds = power, (at_least, at_most)

    def coefficient(self, n_models):
        n = tf.cast(n_models, tf.float64)
        decay = 1.0 - (1.0 + n) ** -self._power
        return 1.0 - tf.clip_by_value(decay, *self._bounds)


class LateAverage(swa_tf.WeightAverage):
    """It is the weight until `start`, and the mean of those from then on."""

    def __init__(self, start=3, **kwargs):
        super().__init__(**kwargs)
        self._start = start

    def coefficient(self, n_models):
        n_averaged = tf.maximum(n_models - self._start, 0)
        return 1.0 / tf.cast(n_averaged + 1, tf.float64)


def _recurrence(values, coefficient):
    """The average in float64, for the c after n models."""
    average = np.zeros(values[0].shape)
    for n, value in enumerate(values):
        c = coefficient(n) if n else 1.0
        average += c * (value.astype(np.float64) - average)
    return average


def _polynomial(values):
    return _recurrence(values, lambda n: 4.0 / (n + 4.0))


def _power(values):
    return _recurrence(
        values, lambda n: 1.0 - min(max(1.0 - (1 + n) ** -0.75, 0.3), 0.7)
    )


def _late(values):
    return np.mean(values[3:], axis=0, dtype=np.float64)


OWN = [
    (PolynomialAverage, _polynomial),
    (PowerAverage, _power),
    (LateAverage, _late),
]


def _normal(count, shape=(4,)):
    rng = np.random.default_rng(0)
    return list(rng.normal(1.0, 0.3, (count, *shape)).astype(np.float32))


@pytest.mark.parametrize("mode", modes.ALL, ids=modes.name_of)
@pytest.mark.parametrize(("make", "expected"), OWN, ids=modes.name_of)
def test_an_average_of_the_users_own(make, expected, mode):
    # The bounds of the decay are reached after 1 and 5 models.
    values = _normal(54 if mode is modes.eager else 8)
    average, n_models = mode(values, tf.float32, make=make)
    assert n_models == len(values)
    # Each sum is off by at most one unit of numbers below 2, and later sums
    # make less of it: with c = 4 / (n + 4) a fifth of the number of sums, with
    # c = 1 / (n + 1) half of it.
    atol = (1 + len(values) / 2) * 2.0**-23
    np.testing.assert_allclose(average, expected(values), 0, atol)


def test_an_average_follows_the_weights_until_it_starts():
    variable, average = tf.Variable(0.0), LateAverage(start=2)
    found = []
    for value in (1.0, 4.0, 8.0, 10.0):
        variable.assign(value)
        average.apply([variable])
        found.append(float(average.average(variable)))
    assert found == [1.0, 4.0, 8.0, 9.0]


def test_an_average_of_the_users_own_compiled_after_50():
    shape = (update.COMPILED_ELEMENTS,)
    values = _normal(54, shape)
    average, _ = modes.eager(values, tf.float32, make=PolynomialAverage)
    expected = _polynomial(values)
    np.testing.assert_allclose(average, expected, 0, 12 * 2.0**-23)


@pytest.mark.parametrize("compiled", [False, True])
def test_only_calls_that_average_ask_for_the_coefficient(compiled):
    asked, variable = tf.Variable(0), tf.Variable(1.0)

    class Half(swa_tf.WeightAverage):
        def coefficient(self, n_models):
            asked.assign_add(1)
            return 0.5

    average = Half(when=swa_tf.AveragingSchedule(period=2), skip_nonfinite=True)

    def update():
        average.apply([variable])

    update = tf.function(update) if compiled else update
    for value in (1.0, 2.0, float("nan"), 3.0, 4.0):
        variable.assign(value)
        update()
    assert (int(average.n_models), int(average.n_skipped)) == (2, 1)
    assert int(asked) == 2


def test_arguments_of_the_base_by_place():
    class Half(swa_tf.WeightAverage):
        def __init__(self):
            super().__init__("half", None, None, True)

        def coefficient(self, n_models):
            return 0.5

    average = Half()
    assert (average.name, int(average.n_skipped)) == ("half", 0)


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


@pytest.mark.parametrize("c", [[0.5, 0.5], tf.constant(0.5), "1", None])
@pytest.mark.parametrize("in_function", [False, True])
def test_a_coefficient_that_is_no_scalar_of_float64(c, in_function):
    class Wrong(swa_tf.WeightAverage):
        def coefficient(self, n_models):
            return c

    variable, average = tf.Variable(1.0), Wrong()

    def apply():
        average.apply([variable])

    match = r"`coefficient\(\)` must be a float64 scalar tensor or a number"
    with pytest.raises(ValueError, match=match):
        (tf.function(apply) if in_function else apply)()
    assert int(average.n_models) == 0


def test_a_coefficient_may_read_the_averages():
    class Adaptive(swa_tf.WeightAverage):
        """Nearer models count more."""

        def coefficient(self, n_models):
            distance = tf.abs(variable - self.average(variable))
            return tf.cast(1 / (1 + distance), tf.float64)

    found = []
    for in_function in (False, True):
        variable, average = tf.Variable(1.0), Adaptive()

        def apply(average=average, variable=variable):
            average.apply([variable])

        apply = tf.function(apply) if in_function else apply
        for value in (1.0, 3.0, 4.0):
            variable.assign(value)
            apply()
        found.append(float(average.average(variable)))
    # 1; 1 + 2 / 3; then the distance is 7 / 3: 5 / 3 + 7 / 3 / (10 / 3)
    np.testing.assert_allclose(found, 5 / 3 + 0.7, rtol=1e-6)


def test_python_is_asked_in_each_eager_update():
    """Also after the 50 that are not traced, whatever state it goes by."""

    class Switch(swa_tf.AveragingSchedule):
        def due(self, index):
            return index % 2 == 0 and int(index) not in switched_off

    class Share(swa_tf.WeightAverage):
        def coefficient(self, n_models):
            return share if int(n_models) else 1

    share, switched_off = 0.5, []
    variable = tf.Variable(0.0)
    averages = [
        Share(when=Switch()),
        swa_tf.ExponentialMovingAverage(lambda n: 1 - share, when=Switch()),
    ]
    for i in range(140):
        if i == 130:
            share, switched_off = 0.25, [132, 134, 136]
        variable.assign(float(i == 138))
        for average in averages:
            average.apply([variable])
    for average in averages:
        assert int(average.n_calls) == 140
        assert int(average.n_models) == 70 - 3
        assert float(average.average(variable)) == 0.25


def test_an_average_without_a_coefficient_cannot_be_made():
    with pytest.raises(TypeError, match="coefficient"):
        swa_tf.WeightAverage()
