"""Averaging after steps, of data whose end only the end tells."""

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import compat
from tests import fitting
from tests.fitting import slow

EPOCHS = 3
ONLY_KERAS_3 = pytest.mark.skipif(not compat.KERAS_3, reason="Keras 3 only")
# A step of SGD moves the bias b by 0.1 * 2 * (1 - b), from 0: 0.2, 0.36,
# 0.488, 0.5904, 0.67232, 0.737856. The mean of those of steps 0, 2 and 4:
AVERAGED = 0.45344


def make_model(average=None, **compile_arguments):
    """The recipe of docs/keras.md, if an average is given."""

    class Averaged(tf.keras.Sequential):
        def train_step(self, data):
            logs = super().train_step(data)
            average.apply(self.trainable_variables)
            return logs

    dense = tf.keras.layers.Dense(1, kernel_initializer="zeros")
    kind = tf.keras.Sequential if average is None else Averaged
    model = kind([tf.keras.Input([1]), dense])
    settings = {"jit_compile": False, **compile_arguments}
    model.compile(tf.keras.optimizers.SGD(0.1), "mse", **settings)
    return model


def generator():
    for _ in range(2):
        yield np.zeros([2, 1], np.float32), np.ones([2, 1], np.float32)


def dataset():
    shapes = tf.TensorSpec([None, 1]), tf.TensorSpec([None, 1])
    return tf.data.Dataset.from_generator(generator, output_signature=shapes)


def train(model, *callbacks):
    """Trains; returns the bias after every other step that Keras tells of."""
    biases = []
    record = tf.keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: biases.append(
            float(model.layers[-1].bias.numpy()[0])
        )
    )
    model.fit(
        dataset(),
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[record, *callbacks],
    )
    return biases


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        # Keras 2 needs to know the length here.
        pytest.param({"steps_per_execution": 2}, marks=ONLY_KERAS_3),
        pytest.param({"steps_per_execution": 3}, marks=ONLY_KERAS_3),
        slow({"run_eagerly": True}),
        slow({"jit_compile": True}),
    ],
)
def test_the_callback_averages_the_steps_it_is_told(arguments):
    model = make_model(**arguments)
    swa = swa_tf.SWACallback(start_step=0, average_period=2, verbose=0)
    biases = train(model, swa)
    if not arguments:
        np.testing.assert_allclose(np.mean(biases[::2]), AVERAGED, rtol=1e-6)
    bias = model.layers[-1].bias.numpy()[0]
    np.testing.assert_allclose(bias, AVERAGED, rtol=1e-6)
    assert int(swa.averages.n_models) == 3


def test_from_an_epoch_on():
    """The last two epochs are steps 2 to 5."""
    model = make_model()
    train(model, swa_tf.SWACallback(1, 2, unit="step", verbose=0))
    bias = model.layers[-1].bias.numpy()[0]
    np.testing.assert_allclose(bias, (0.488 + 0.67232) / 2, rtol=1e-6)


def one():
    return tf.distribute.get_strategy()


@pytest.mark.parametrize("strategy", [one, slow(fitting.two_replicas)])
def test_a_train_step_averages_the_steps_it_is_told(strategy):
    with strategy().scope():
        average = swa_tf.StochasticWeightAveraging(
            when=swa_tf.AveragingSchedule(period=2)
        )
        model = make_model(average)
    train(model)
    found = average.average(model.layers[-1].bias).numpy()[0]
    np.testing.assert_allclose(found, AVERAGED, rtol=1e-6)
    assert int(average.n_calls) == 6


@pytest.mark.slow
def test_the_callback_on_replicas():
    with fitting.two_replicas().scope():
        model = make_model()
    train(model, swa_tf.SWACallback(start_step=0, average_period=2, verbose=0))
    bias = model.layers[-1].bias.numpy()[0]
    np.testing.assert_allclose(bias, AVERAGED, rtol=1e-6)
