"""When to average: by hand, and in every mode."""

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

import swa_tf
from tests import modes


@hypothesis.given(
    st.integers(0, 50), st.integers(1, 20), st.integers(-100, 200)
)
def test_due(start, period, index):
    expected = index in range(start, 201, period)
    schedule = swa_tf.AveragingSchedule(start, period)
    assert schedule.due(index) is expected
    assert bool(schedule.due(tf.constant(index))) == expected
    assert bool(schedule.due(tf.Variable(index, dtype=tf.int64))) == expected


def test_due_beyond_int32():
    schedule = swa_tf.AveragingSchedule(start=2**40, period=3)
    steps = tf.constant([2**40 - 1, 2**40, 2**40 + 1, 2**40 + 3], tf.int64)
    assert schedule.due(steps).numpy().tolist() == [False, True, False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": -1}, "`start` must be an integer >= 0. Received: start=-1"),
        ({"start": 1.0}, "`start` must be an integer"),
        ({"start": True}, "`start` must be an integer"),
        ({"period": 0}, "`period` must be an integer >= 1. Received: period=0"),
        ({"period": None}, "`period` must be an integer"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        swa_tf.AveragingSchedule(**arguments)


@pytest.mark.parametrize("name", ["start", "period"])
def test_cannot_be_changed_once_an_average_may_have_compiled_it(name):
    schedule = swa_tf.AveragingSchedule(start=2, period=3)
    with pytest.raises(AttributeError):
        setattr(schedule, name, 1)
    assert (schedule.start, schedule.period) == (2, 3)


@pytest.mark.parametrize("when", [5, "epoch", (2, 2)])
def test_when_of_another_kind(when):
    with pytest.raises(TypeError, match="`when` must be a"):
        swa_tf.StochasticWeightAveraging(when=when)


@pytest.mark.parametrize("mode", modes.ALL)
def test_automatic_mode(mode):
    """Weights 1 to 7, start 2, period 2: 3, 5 and 7, on average 5."""
    values = [np.float32(value) for value in range(1, 8)]
    when = swa_tf.AveragingSchedule(start=2, period=2)
    average, n_models = mode(values, tf.float32, when=when)
    assert (float(average), int(n_models)) == (5.0, 3)


def test_before_the_start_there_is_no_average():
    variable = tf.Variable(1.0)
    when = swa_tf.AveragingSchedule(start=2)
    swa = swa_tf.StochasticWeightAveraging(when=when)
    swa.apply([variable])
    assert (int(swa.n_calls), int(swa.n_models)) == (1, 0)
    with pytest.raises(RuntimeError, match="has averaged nothing yet"):
        with swa_tf.averaged_weights(swa, [variable]):
            pass


def test_reset_counts_calls_anew():
    variable = tf.Variable(1.0)
    when = swa_tf.AveragingSchedule(start=1, period=5)
    swa = swa_tf.StochasticWeightAveraging(when=when)
    for _ in range(4):
        swa.apply([variable])
    swa.reset()
    assert (int(swa.n_calls), int(swa.n_models)) == (0, 0)
    variable.assign(3.0)
    swa.apply([variable])
    swa.apply([variable])
    assert (float(swa.average(variable)), int(swa.n_models)) == (3.0, 1)


def test_calls_are_saved_and_restored(tmp_path):
    """Stopped between two averages, training goes on where it was."""

    def training():
        when = swa_tf.AveragingSchedule(start=1, period=3)
        variable = tf.Variable(0.0)
        swa = swa_tf.StochasticWeightAveraging(when=when)

        @tf.function
        def step(value):
            variable.assign(value)
            swa.apply([variable])

        return tf.train.Checkpoint(swa=swa, variable=variable), step

    checkpoint, step = training()
    for value in (1.0, 2.0, 3.0):
        step(tf.constant(value))
    path = checkpoint.save(str(tmp_path / "checkpoint"))
    checkpoint, step = training()
    checkpoint.restore(path)
    for value in (4.0, 5.0):
        step(tf.constant(value))
    # 2 and 5, which are calls 1 and 4.
    assert float(checkpoint.swa.average(checkpoint.variable)) == 3.5


class Squares(swa_tf.AveragingSchedule):
    """A user's own schedule: 0, 1, 4, 9 and so on."""

    def due(self, index):
        root = tf.round(tf.sqrt(tf.cast(index, tf.float64)))
        return tf.equal(root * root, tf.cast(index, tf.float64))


@pytest.mark.parametrize("mode", modes.ALL)
def test_a_schedule_of_the_users_own(mode):
    """Weights 1 to 7: 1, 2 and 5, on average 8 / 3."""
    values = [np.float32(value) for value in range(1, 8)]
    average, n_models = mode(values, tf.float32, when=Squares())
    assert int(n_models) == 3
    np.testing.assert_allclose(float(average), 8 / 3, rtol=2.0**-23)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "due", [None, 1, "yes", tf.constant(1), tf.constant([True, False])]
)
def test_a_schedule_whose_due_is_no_boolean(due, compiled):
    class Wrong(swa_tf.AveragingSchedule):
        def due(self, index):
            return due

    variable = tf.Variable(1.0)
    swa = swa_tf.StochasticWeightAveraging(when=Wrong())
    swa.build([variable])

    def update():
        swa.apply([variable])

    with pytest.raises(TypeError, match=r"`when.due\(index\)` must be True,"):
        (tf.function(update) if compiled else update)()
    assert (int(swa.n_calls), int(swa.n_models)) == (0, 0)


@pytest.mark.parametrize("due", [True, np.True_])
def test_a_schedule_that_is_always_due(due):
    class Always(swa_tf.AveragingSchedule):
        def due(self, index):
            return due

    values = [np.float32(1.0), np.float32(3.0)]
    for mode in (modes.eager, modes.function):
        average, n_models = mode(values, tf.float32, when=Always())
        assert (float(average), int(n_models)) == (2.0, 2)


def test_no_calls_are_counted_without_a_schedule():
    swa = swa_tf.StochasticWeightAveraging()
    assert swa.n_calls is None
    with pytest.raises(AttributeError, match="with a `when` only"):
        swa.n_calls = 3
