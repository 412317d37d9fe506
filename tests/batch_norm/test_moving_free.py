"""`MovingFreeBatchNormalization`, with its two kinds of statistics."""

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from tests.batch_norm_numbers import bits, built, data_set, moments

layers = tf.keras.layers


class MovingFree(tf.keras.Model):
    def __init__(self):
        super().__init__()
        self.norm = swa_tf.MovingFreeBatchNormalization()

    def call(self, inputs, training=None, use_moving_statistics=True):
        return self.norm(
            inputs,
            training=training,
            use_moving_statistics=use_moving_statistics,
        )


def test_moving_free_trains_as_the_stock_layer():
    x = np.random.default_rng(16).normal(2.0, 3.0, [32, 4]).astype(np.float32)
    stock = layers.BatchNormalization()
    ours = swa_tf.MovingFreeBatchNormalization()
    for layer in (stock, ours):
        layer(x, training=True)
    np.testing.assert_array_equal(stock.moving_mean, ours.moving_mean)
    np.testing.assert_array_equal(stock.moving_variance, ours.moving_variance)
    np.testing.assert_array_equal(stock(x), ours(x))
    assert int(ours.n_updates) == 0


def test_moving_free_keeps_both_kinds():
    x = np.random.default_rng(17).normal(2.0, 3.0, [33, 4]).astype(np.float32)
    model = MovingFree()
    model(x, training=True)
    norm = model.norm
    before = bits([norm.moving_mean, norm.moving_variance])
    swa_tf.refit_batch_norm(model, data_set(x, 10))
    assert bits([norm.moving_mean, norm.moving_variance]) == before
    mean, variance = moments(x)
    np.testing.assert_allclose(norm.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(norm.variance, variance, rtol=1e-6)
    assert (int(norm.n_updates), int(norm.n_samples)) == (4, 33)
    refitted = (x - mean) / np.sqrt(variance + 1e-3)
    moving = (x - norm.moving_mean) / np.sqrt(norm.moving_variance + 1e-3)
    for flag, expected in ((False, refitted), (True, moving)):
        for given in (flag, tf.constant(flag)):
            output = model(x, use_moving_statistics=given)
            np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_moving_free_pass_by_hand(compiled):
    x = np.random.default_rng(18).normal(2.0, 3.0, [33, 4]).astype(np.float32)
    model = MovingFree()
    model(x)

    def collect(batch):
        return model(batch, training=True, use_moving_statistics=False)

    collect = tf.function(collect) if compiled else collect
    for _ in range(2):  # the second time after a reset
        for batch in np.split(x, [10, 20, 30]):
            output = collect(batch)
        np.testing.assert_allclose(model.norm.mean, moments(x)[0], rtol=1e-6)
        np.testing.assert_allclose(
            model.norm.variance, moments(x)[1], rtol=1e-6
        )
        assert int(model.norm.n_updates) == 4
        model.norm.reset_statistics()
    mean, variance = moments(x[30:])
    np.testing.assert_allclose(
        output, (x[30:] - mean) / np.sqrt(variance + 1e-3), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(model.norm.moving_mean, np.zeros(4))


def test_moving_free_pass_on_several_replicas_is_refused():
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    x = np.ones([4, 3], np.float32)
    with strategy.scope():
        model = MovingFree()
        model(x)

    @tf.function
    def collect():
        strategy.run(
            lambda: model(x, training=True, use_moving_statistics=False)
        )

    with pytest.raises(RuntimeError, match="one replica only"):
        collect()
    assert int(tf.convert_to_tensor(model.norm.n_updates)) == 0


def test_moving_free_before_a_pass():
    model = MovingFree()
    with pytest.raises(tf.errors.InvalidArgumentError, match="no refit"):
        model(np.ones([2, 3], np.float32), use_moving_statistics=False)
    swa_tf.MovingFreeBatchNormalization().reset_statistics()  # unbuilt: nothing


def test_moving_free_frozen_uses_what_it_has():
    x = np.random.default_rng(19).normal(2.0, 3.0, [33, 4]).astype(np.float32)
    model = MovingFree()
    model(x)
    swa_tf.refit_batch_norm(model, [x])
    model.norm.trainable = False
    before = bits(model.norm.weights)
    with pytest.warns(UserWarning, match="with `trainable=True`"):
        swa_tf.refit_batch_norm(model, [x + 1.0])
    output = model(x + 1.0, training=True, use_moving_statistics=False)
    assert bits(model.norm.weights) == before
    np.testing.assert_allclose(
        output,
        (x + 1.0 - moments(x)[0]) / np.sqrt(moments(x)[1] + 1e-3),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("form", ["keras", "h5"])
def test_moving_free_survives_saving(tmp_path, form):
    x = np.random.default_rng(20).normal(2.0, 3.0, [16, 4]).astype(np.float32)
    model = tf.keras.Sequential(
        [tf.keras.Input([4]), swa_tf.MovingFreeBatchNormalization(momentum=0.7)]
    )
    model(x, training=True)
    swa_tf.refit_batch_norm(model, [x])
    path = str(tmp_path / f"model.{form}")
    model.save(path)
    loaded = tf.keras.models.load_model(path)
    assert bits(loaded.weights) == bits(model.weights)
    layer = loaded.layers[-1]
    assert isinstance(layer, swa_tf.MovingFreeBatchNormalization)
    assert layer.momentum == 0.7
    np.testing.assert_array_equal(
        layer(x, use_moving_statistics=False),
        model.layers[-1](x, use_moving_statistics=False),
    )


def test_moving_free_with_mixed_precision():
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    x = np.random.default_rng(21).normal(2.0, 3.0, [16, 4]).astype(np.float32)
    layer = built(swa_tf.MovingFreeBatchNormalization(), x)
    swa_tf.refit_batch_norm(layer, [x])
    assert layer.variance.dtype == "float32"
    assert layer(x, use_moving_statistics=False).dtype == "float16"
    np.testing.assert_allclose(
        layer.variance, moments(x.astype(np.float16))[1], rtol=1e-6
    )
