"""Your line and our line of docs/coming-from give the same weights."""

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import compat

INPUTS = np.random.default_rng(0).normal(size=[8, 4]).astype(np.float32)
LABELS = np.arange(8) % 3


def trained(optimizer, *callbacks):
    """A model after 40 steps."""
    tf.keras.utils.set_random_seed(0)
    model = tf.keras.Sequential(
        [tf.keras.Input([4]), tf.keras.layers.Dense(3, activation="softmax")]
    )
    model.compile(
        optimizer, "sparse_categorical_crossentropy", jit_compile=False
    )
    model.fit(
        INPUTS,
        LABELS,
        batch_size=4,
        epochs=20,
        shuffle=False,
        callbacks=list(callbacks),
        verbose=0,
    )
    return model


def assert_same_weights(theirs, ours):
    # 40 updates of averages of at most 1, each rounded once or twice.
    for expected, weight in zip(theirs.get_weights(), ours.get_weights()):
        np.testing.assert_allclose(weight, expected, rtol=0, atol=1e-5)


def test_use_ema_of_keras():
    sgd = tf.keras.optimizers.SGD
    # That of Keras 2 begins before the first step, and ours after it: a decay
    # that forgets where it began.
    decay = 0.9 if compat.KERAS_3 else 0.5
    theirs = trained(sgd(0.1, use_ema=True, ema_momentum=decay))
    ema = swa_tf.ExponentialMovingAverage(decay)
    callback = swa_tf.SWACallback(start_step=0, averages=ema, verbose=0)
    assert_same_weights(theirs, trained(sgd(0.1), callback))


@pytest.fixture(name="tfa")
def fixture_tfa():
    if compat.KERAS_3:
        pytest.skip("Addons works with Keras 2")
    return pytest.importorskip("tensorflow_addons")


def test_swa_of_addons(tfa):
    sgd = tf.keras.optimizers.legacy.SGD(0.1)
    optimizer = tfa.optimizers.SWA(sgd, start_averaging=10, average_period=5)
    theirs = trained(optimizer)
    optimizer.assign_average_vars(theirs.variables)
    callback = swa_tf.SWACallback(start_step=10, average_period=5, verbose=0)
    ours = trained(tf.keras.optimizers.SGD(0.1), callback)
    assert_same_weights(theirs, ours)


@pytest.mark.parametrize("dynamic", [False, True])
def test_moving_average_of_addons(dynamic, tfa):
    """It begins before the first step, and ours after it."""
    sgd = tf.keras.optimizers.legacy.SGD(0.1)
    optimizer = tfa.optimizers.MovingAverage(
        sgd, average_decay=0.5, dynamic_decay=dynamic
    )
    theirs = trained(optimizer)
    optimizer.assign_average_vars(theirs.variables)
    warm_up = 9 if dynamic else None
    ema = swa_tf.ExponentialMovingAverage(0.5, warm_up=warm_up)
    callback = swa_tf.SWACallback(start_step=0, averages=ema, verbose=0)
    assert_same_weights(theirs, trained(tf.keras.optimizers.SGD(0.1), callback))
