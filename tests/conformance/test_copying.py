"""Copies and pickles: each works, or says what to do instead."""

import copy
import multiprocessing.reduction
import pickle

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import compat
from tests.fitting import X, assert_same, fit, make_model, weights

layers = tf.keras.layers


def pickled(value):
    return pickle.loads(pickle.dumps(value))


COPIES = [copy.copy, copy.deepcopy, pickled]


class Polynomial(swa_tf.WeightAverage):
    """A user's average, with state of its own."""

    def __init__(self, gamma):
        super().__init__("Polynomial")
        self.gamma = tf.Variable(gamma)

    def coefficient(self, n_models):
        n = tf.cast(n_models, tf.float64)
        gamma = tf.cast(self.gamma, tf.float64)
        return (gamma + 1.0) / (n + gamma + 1.0)


AVERAGES = [
    swa_tf.StochasticWeightAveraging,
    lambda: swa_tf.ExponentialMovingAverage(0.5),
    lambda: Polynomial(0.0),
    swa_tf.SWAGaussian,
]
NAMES = [
    "StochasticWeightAveraging",
    "ExponentialMovingAverage",
    "Polynomial",
    "SWAGaussian",
]


@pytest.mark.parametrize(
    "pickles",
    [pickle.dumps, copy.copy, multiprocessing.reduction.ForkingPickler.dumps],
)
@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize(("make", "name"), zip(AVERAGES, NAMES))
def test_an_average_is_not_pickled(make, name, is_new, pickles):
    variable, average = tf.Variable(1.0), make()
    if not is_new:
        average.apply([variable])
    message = f"`{name}` cannot be pickled.*`copy.deepcopy`.*Checkpoint"
    with pytest.raises(TypeError, match=message):
        pickles(average)


def test_a_backup_is_not_pickled():
    backup = swa_tf.BackupVariables([tf.Variable(1.0)])
    for pickles in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match="`BackupVariables` cannot be pi"):
            pickles(backup)


@pytest.mark.parametrize("first", ["model", "average"])
@pytest.mark.parametrize("make", AVERAGES, ids=NAMES)
def test_a_deep_copy_with_its_model_is_of_the_copied_model(make, first):
    """Of 1 and 3 in the copy, and of 1 alone in the original."""
    dense = layers.Dense(1, kernel_initializer="ones", use_bias=False)
    model, average = tf.keras.Sequential([tf.keras.Input([1]), dense]), make()
    average.apply(model.trainable_variables)
    if first == "model":
        of_model, copied = copy.deepcopy((model, average))
    else:
        copied, of_model = copy.deepcopy((average, model))
    of_model.layers[-1].kernel.assign([[3.0]])
    copied.apply(of_model.trainable_variables)
    with swa_tf.averaged_weights(copied, of_model):
        assert of_model.get_weights() == [[[2.0]]]
    assert copied.average(dense.kernel) is None
    assert float(average.average(dense.kernel)[0, 0]) == 1.0


def test_a_deep_copy_beside_a_model_that_is_not_built():
    variable, average = tf.Variable(1.0), swa_tf.StochasticWeightAveraging()
    average.apply([variable])
    unbuilt = tf.keras.Sequential([layers.Dense(1)])
    _, copied = copy.deepcopy((unbuilt, average))
    assert float(copied.average(variable)) == 1.0


@pytest.mark.parametrize("copies", COPIES)
def test_a_schedule_of_averages(copies):
    copied = copies(swa_tf.AveragingSchedule(2, 3))
    assert (copied.start, copied.period) == (2, 3)
    assert [i for i in range(9) if copied.due(i)] == [2, 5, 8]


def percent(epoch):
    return epoch / 100


SCHEDULES = [  # and their rate at step 60
    (lambda: swa_tf.schedules.LinearRamp(0.5, 0.1, 50, 20), 0.3),
    (lambda: swa_tf.schedules.Cyclical(0.5, 0.1, 40), 0.29),
    (lambda: swa_tf.schedules.SWALearningRate(0.5, 0.1, 50, 20, "linear"), 0.3),
    (lambda: swa_tf.schedules.per_epoch(percent), 0.6),
]


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize(("make", "rate"), SCHEDULES)
def test_schedules_of_rates(make, rate, copies):
    np.testing.assert_allclose(float(copies(make())(60)), rate, rtol=1e-6)


@pytest.mark.parametrize("copies", COPIES)
def test_a_refit(copies):
    """Statistics of 1, 2 and 6, whose mean is 3, in a copy of the model."""
    model = tf.keras.Sequential(
        [tf.keras.Input([1]), layers.BatchNormalization()]
    )
    refit = swa_tf.BatchNormRefit(model)
    refit([tf.constant([[4.0]])])
    copied = copies(refit)
    copied([tf.constant([[1.0], [2.0], [6.0]])])
    [found] = copied.model.layers
    np.testing.assert_allclose(found.moving_mean.numpy(), [3.0], rtol=1e-6)
    is_shared = copies is copy.copy
    assert (copied.model is model) == is_shared
    mean = 3.0 if is_shared else 4.0
    np.testing.assert_allclose(
        model.layers[-1].moving_mean.numpy(), [mean], rtol=1e-6
    )


def two_epochs(callback):
    model = make_model()
    fit(model, callback, epochs=2)
    return weights(model)


@pytest.mark.parametrize("copies", COPIES)
def test_a_callback(copies):
    def make():
        return swa_tf.SWACallback(
            0, swa_learning_rate=0.05, refit_data=[X], verbose=0
        )

    assert_same(two_epochs(copies(make())), two_epochs(make()))


def test_a_callback_with_an_average_is_not_pickled():
    callback = swa_tf.SWACallback(1, verbose=0, refit_data=[X])
    two_epochs(callback)
    of_one = swa_tf.SWACallback(averages=swa_tf.StochasticWeightAveraging())
    for each in (callback, of_one):
        with pytest.raises(TypeError, match=r"`Stochastic.* cannot be pick"):
            pickle.dumps(each)


OPTIMIZERS = [swa_tf.optimizers.MomentumW, swa_tf.optimizers.AdamW]


@pytest.mark.skipif(not compat.KERAS_3, reason="Keras 2 copies none")
@pytest.mark.parametrize("copies", [copy.deepcopy, pickled])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer(kind, copies):
    made = kind(0.1, weight_decay=0.25, weight_decay_on="kernels")
    moved = []
    for optimizer in (made, copies(made)):
        variables = [tf.Variable([[1.0]]), tf.Variable([1.0])]
        gradients = [tf.constant([[0.5]]), tf.constant([0.5])]
        optimizer.apply_gradients(zip(gradients, variables))
        moved.append([float(tf.reduce_sum(v)) for v in variables])
    assert moved[0] == moved[1]
