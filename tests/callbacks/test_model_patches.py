"""What `SWACallback` replaces in an average, and puts back."""

import pytest
import tensorflow as tf

import swa_tf
from tests import fitting
from tests.fitting import (
    X,
    Y,
    callback,
    fit,
    make_plain,
    quick_to_trace,  # noqa: F401
)

pytestmark = pytest.mark.usefixtures("quick_to_trace")


def test_calls_counted_for_the_callback_are_put_back():
    """Whether or not its `start_epoch` was reached."""
    given = swa_tf.StochasticWeightAveraging()
    settings = {"epochs": 2, "validation_data": None}
    model = make_plain()
    with pytest.warns(UserWarning, match="averaged nothing"):
        fit(model, callback(5, unit="step", averages=given), **settings)
    given.when = swa_tf.AveragingSchedule(start=1)
    assert int(given.n_calls) == 0
    given.n_calls = 7
    for unit in ("epoch", "step"):
        fit(model, callback(1, unit=unit, averages=given), **settings)
        assert int(given.n_calls) == 7
    n_models = int(given.n_models)
    given.apply(model.trainable_variables)
    assert int(given.n_calls) == 8
    assert int(given.n_models) == n_models + 1


@pytest.mark.parametrize("start", [None, 1])
def test_calls_counted_before_a_fit_that_does_not_begin(start):
    """As of a model without `call`, which cannot be refitted."""

    class NoCall(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = tf.keras.layers.Dense(1)

        def train_step(self, data):
            return {}

    when = swa_tf.AveragingSchedule(start=1)
    given = swa_tf.StochasticWeightAveraging(when=when)
    given.n_calls = 7
    model = NoCall()
    model.compile(run_eagerly=True)
    with pytest.raises(TypeError, match="`model` must have a `call`"):
        model.fit(X, Y, callbacks=[callback(start, averages=given)])
    assert int(given.n_calls) == 7
    assert given.when is when


def test_calls_counted_by_the_schedule_of_the_average_go_on():
    when = swa_tf.AveragingSchedule(start=1, period=2)
    settings = {"epochs": 3, "validation_data": None}
    for unit, n_calls in (("epoch", 3), ("step", 3 * fitting.N_BATCHES)):
        swa = swa_tf.StochasticWeightAveraging(when=when)
        fit(make_plain(), callback(None, averages=swa, unit=unit), **settings)
        assert int(swa.n_calls) == n_calls
