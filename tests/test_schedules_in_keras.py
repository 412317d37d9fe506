"""The learning-rate plans in optimizers, in `fit` and in files."""

import numpy as np
import pytest
import tensorflow as tf

from swa_tf import optimizers, schedules
from swa_tf.support import compat
from tests.plans import BY_HAND

keras = tf.keras.optimizers.schedules


def test_in_an_optimizer():
    variable = tf.Variable(0.0)
    plan, rates = BY_HAND["ramp"]
    optimizer = tf.keras.optimizers.SGD(plan())
    for _ in rates:
        optimizer.apply_gradients([(tf.constant(-1.0), variable)])
    np.testing.assert_allclose(variable, sum(rates), rtol=1e-6)


def falling_model(optimizer):
    """A model of one weight that falls by the learning rate at each step."""
    model = tf.keras.Sequential(
        [
            tf.keras.Input((1,)),
            tf.keras.layers.Dense(
                1, use_bias=False, kernel_initializer="zeros"
            ),
        ]
    )
    model.compile(optimizer, loss="mae", jit_compile=False)
    return model


def fit(model, steps, **kwargs):
    ones = np.ones((steps, 1), np.float32)
    model.fit(ones, -1e3 * ones, batch_size=1, verbose=0, **kwargs)


def fallen(model):
    return -float(model.get_weights()[0][0, 0])


def formats():
    """Returns the suffixes of models that train on after loading."""
    return [".keras"] if compat.KERAS_3 else [".keras", ".h5"]


@pytest.mark.parametrize("suffix", formats())
@pytest.mark.parametrize("name", ["cosine decay, then linear", "cyclical"])
def test_in_fit_and_in_a_saved_model(tmp_path, name, suffix):
    plan, rates = BY_HAND[name]
    model = falling_model(tf.keras.optimizers.SGD(plan()))
    fit(model, 3)
    np.testing.assert_allclose(fallen(model), sum(rates[:3]), rtol=1e-6)

    path = str(tmp_path / f"model{suffix}")
    model.save(path)
    # Keras 2 finds no registered schedule in HDF5 by itself.
    custom = {cls.__name__: cls for cls in [type(plan())] if suffix == ".h5"}
    again = tf.keras.models.load_model(path, custom_objects=custom)
    assert again.optimizer.get_config() == model.optimizer.get_config()
    fit(again, len(rates) - 3)
    np.testing.assert_allclose(fallen(again), sum(rates), rtol=1e-6)


def optimizer_classes():
    classes = [tf.keras.optimizers.SGD, optimizers.MomentumW]
    if not compat.KERAS_3:
        classes.append(tf.keras.optimizers.legacy.SGD)
    return classes


@pytest.mark.parametrize("cls", optimizer_classes())
def test_in_the_config_of_an_optimizer(cls):
    plan, rates = BY_HAND["cosine decay, then linear"]
    kwargs = {"weight_decay": 0.0} if cls is optimizers.MomentumW else {}
    optimizer = cls(plan(), momentum=0.0, **kwargs)
    config = tf.keras.optimizers.serialize(optimizer)
    model = falling_model(tf.keras.optimizers.get(config))
    fit(model, len(rates))
    np.testing.assert_allclose(fallen(model), sum(rates), rtol=1e-6)


def test_per_epoch_in_fit():
    """Three steps of 0.5 and three of 0.25."""
    rate = schedules.per_epoch(schedules.LinearRamp(0.5, 0.25, 0, 1))
    model = falling_model(tf.keras.optimizers.SGD(1.0))
    callback = tf.keras.callbacks.LearningRateScheduler(rate)
    fit(model, 3, epochs=2, callbacks=[callback])
    assert fallen(model) == 3 * 0.5 + 3 * 0.25


@pytest.mark.parametrize(
    "schedule",
    [
        BY_HAND["ramp"][0](),
        keras.PiecewiseConstantDecay([2], [0.5, 0.4]),
        lambda epoch: np.float32(0.5 if epoch < 3 else 0.4),
    ],
    ids=["plan", "schedule", "function"],
)
def test_per_epoch_gives_floats(schedule):
    found = [schedules.per_epoch(schedule)(epoch) for epoch in range(4)]
    assert {type(rate) for rate in found} == {float}
    np.testing.assert_allclose(found, [0.5, 0.5, 0.5, 0.4], rtol=1e-7)
