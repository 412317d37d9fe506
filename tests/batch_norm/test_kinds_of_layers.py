"""Layers with more statistics, other batches, no calls, or another library."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import compat

layers = tf.keras.layers
keras_2 = pytest.mark.skipif(compat.KERAS_3, reason="Keras 3 has no such layer")
X = np.random.default_rng(0).normal(5.0, 2.0, [24, 4]).astype(np.float32)
X64 = X.astype(np.float64)
EPSILON = 1e-3


def bits(variables):
    return [np.array(variable).tobytes() for variable in variables]


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=2e-6)


# --- Integers ---------------------------------------------------------------


class TwoNorms(tf.keras.Model):
    def __init__(self):
        super().__init__()
        self.first = layers.BatchNormalization()
        self.second = layers.BatchNormalization()

    def call(self, x, training=None):
        return self.second(self.first(x, training=training), training=training)


def test_integers_are_normalized_as_floats():
    model = TwoNorms()
    x = np.random.default_rng(0).integers(0, 256, [24, 4]).astype(np.uint8)
    model(x)
    swa_tf.refit_batch_norm(model, [tf.constant(x)])
    mean, variance = x.mean(axis=0), x.var(axis=0)
    close(model.first.moving_mean, mean)
    close(model.first.moving_variance, variance)
    np.testing.assert_allclose(model.second.moving_mean, 0.0, atol=1e-6)
    close(model.second.moving_variance, variance / (variance + EPSILON))


# --- Renormalization --------------------------------------------------------


def kinds_with_renorm():
    found = [layers.BatchNormalization]
    if not compat.KERAS_3:
        found.append(layers.experimental.SyncBatchNormalization)
        found.append(tf.compat.v1.keras.layers.BatchNormalization)
    return found


@pytest.mark.parametrize("kind", kinds_with_renorm())
@pytest.mark.parametrize("shape", [[24, 4], [6, 2, 2, 4]])
def test_renorm(kind, shape):
    x, x64 = X.reshape(shape), X64.reshape(shape)
    axes = tuple(range(len(shape) - 1))
    mean, variance = x64.mean(axes), x64.var(axes)
    layer = kind(renorm=True, momentum=0.9, renorm_momentum=0.8)
    layer(x, training=True)
    swa_tf.refit_batch_norm(layer, [x[:2], x[2:]])
    close(layer.moving_mean, mean)
    close(layer.moving_variance, variance)
    close(layer.renorm_mean, mean)
    for stddev in (layer.moving_stddev, layer.renorm_stddev):
        close(stddev, np.sqrt(variance + EPSILON))

    # A training step begins there, and corrects by what the refit has found.
    x, x64 = x + np.float32(1.0), x64 + 1.0
    outputs = layer(x, training=True)
    stddev = np.sqrt(variance + EPSILON)
    np.testing.assert_allclose(
        outputs, (x64 - mean) / stddev, rtol=1e-4, atol=1e-5
    )
    close(layer.moving_mean, mean + 0.1)
    close(layer.renorm_mean, mean + 0.2)
    close(layer.moving_variance, variance)


def test_averaged_weights_give_back_all_statistics():
    inputs = tf.keras.Input([4])
    norm = layers.BatchNormalization(renorm=True)
    model = tf.keras.Model(inputs, layers.Dense(1)(norm(inputs)))
    model(X, training=True)
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply(model.trainable_variables)
    before = bits(model.weights)
    with swa_tf.averaged_weights(swa, model, refit_data=[X]):
        close(norm.renorm_mean, X64.mean(0))
    assert bits(model.weights) == before


def test_our_layer_keeps_what_renorm_moves():
    layer = swa_tf.MovingFreeBatchNormalization(renorm=True)
    layer(X, training=True)
    names = ["moving_mean", "moving_stddev", "renorm_mean", "renorm_stddev"]
    before = bits(getattr(layer, name) for name in names)
    swa_tf.refit_batch_norm(layer, [X])
    close(layer.mean, X64.mean(0))
    close(layer.variance, X64.var(0))
    assert bits(getattr(layer, name) for name in names) == before


# --- Virtual batches --------------------------------------------------------


@keras_2
@pytest.mark.parametrize(
    ("shape", "axis"), [([24, 4], -1), ([6, 2, 2, 4], -1), ([6, 2, 4, 2], 2)]
)
def test_virtual_batches(shape, axis):
    x, x64 = X.reshape(shape), X64.reshape(shape)
    axes = tuple(i for i in range(len(shape)) if i != axis % len(shape))
    model = tf.keras.Sequential(
        [
            layers.BatchNormalization(
                axis=axis, virtual_batch_size=2, epsilon=0.0
            ),
            layers.BatchNormalization(axis=axis),
        ]
    )
    model(x, training=True)
    for batches in ([x], [x[:3], x[3:]]):  # also of what 2 does not divide
        swa_tf.refit_batch_norm(model, batches)
        first, second = model.layers
        np.testing.assert_allclose(
            np.ravel(first.moving_mean), x64.mean(axes), rtol=1e-5
        )
        np.testing.assert_allclose(
            np.ravel(first.moving_variance), x64.var(axes), rtol=1e-5
        )
        close(second.moving_variance, np.ones(4))


# --- Layers that are never called -------------------------------------------


class Unused(tf.keras.Model):
    def __init__(self):
        super().__init__()
        self.norm = layers.BatchNormalization(name="norm")
        self.unused = layers.BatchNormalization(name="unused")

    def call(self, inputs, training=None):
        return self.norm(inputs, training=training)


def test_a_layer_that_is_never_called():
    model = Unused()
    model(X)
    assert not model.unused.built
    refit = swa_tf.BatchNormRefit(model)
    for _ in range(2):
        with pytest.warns(UserWarning, match="as they are: unused") as caught:
            refit([X])
        assert caught[0].filename == __file__
        close(model.norm.moving_mean, X64.mean(0))
    assert not model.unused.built


def test_a_layer_is_called_later():
    model = Unused()
    model(X)
    refit = swa_tf.BatchNormRefit(model)
    with pytest.warns(UserWarning, match="as they are: unused"):
        refit([X])
    model.unused(X)
    model.call = lambda inputs, training=None: model.unused(
        inputs, training=training
    )
    with pytest.warns(UserWarning, match="as they are: norm"):
        refit([X])
    close(model.unused.moving_mean, X64.mean(0))


def test_no_layer_is_called():
    class Model(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.unused = layers.BatchNormalization(name="unused")
            self.dense = layers.Dense(1)

        def call(self, inputs):
            return self.dense(inputs)

    model = Model()
    model(X)
    with pytest.warns(UserWarning, match="no batch-norm layer.*unused"):
        swa_tf.refit_batch_norm(model, [X])


def test_a_model_that_is_not_built():
    model = Unused()
    model.norm.build([None, 4])
    with pytest.raises(ValueError, match=r"must be built.*unused"):
        swa_tf.refit_batch_norm(model, [X])


# --- Batch norms of other libraries -----------------------------------------


class ForeignBatchNorm(tf.Module):
    """As that of Sonnet: its statistics are modules with a `value`."""

    class Average(tf.Module):
        def __init__(self):
            super().__init__()
            self.value = tf.Variable(tf.zeros([4]))

    def __init__(self):
        super().__init__(name="batch_norm")
        self.moving_mean, self.moving_variance = self.Average(), self.Average()

    def __call__(self, inputs, is_training):
        return inputs


class ForeignLayer(layers.Layer):
    """As in code that was translated from PyTorch."""

    def build(self, input_shape):
        for name in ("running_mean", "running_var"):
            variable = self.add_weight(name=name, shape=[4], trainable=False)
            setattr(self, name, variable)

    def call(self, inputs):
        return inputs


class Mixed(tf.keras.Model):
    def __init__(self, foreign, norm):
        super().__init__()
        self.foreign, self.norm = foreign, norm

    def call(self, inputs, training=None):
        if isinstance(self.foreign, ForeignBatchNorm):
            inputs = self.foreign(inputs, is_training=training)
        else:
            inputs = self.foreign(inputs)
        return self.norm(inputs)


@pytest.mark.parametrize("make", [ForeignBatchNorm, ForeignLayer])
def test_batch_norms_of_other_libraries(make):
    foreign = make()
    name = rf"{foreign.name} \({__name__}.{make.__name__}\)"
    model = Mixed(foreign, layers.BatchNormalization())
    model(X)
    with pytest.warns(UserWarning, match=rf"none of `tf.keras`.*{name}"):
        swa_tf.refit_batch_norm(model, [X])
    close(model.norm.moving_mean, X64.mean(0))
    model = Mixed(foreign, layers.Dense(1))
    model(X)
    with pytest.warns(UserWarning, match=rf"no batch-norm layer to.*{name}"):
        swa_tf.refit_batch_norm(model, [X])


@pytest.mark.parametrize("refit_data", [None, [X]])
@pytest.mark.parametrize("make", [ForeignBatchNorm, ForeignLayer])
def test_fit_names_batch_norms_of_other_libraries(make, refit_data):
    foreign = make()
    name = rf"{foreign.name} \({__name__}.{make.__name__}\)"
    model = Mixed(foreign, layers.Dense(1))
    model(X)
    model.compile("sgd", "mse", run_eagerly=True)
    swa = swa_tf.SWACallback(0, refit_data=refit_data, verbose=0)
    with pytest.warns(UserWarning, match=f"{name}.*no refit computes") as told:
        model.fit(X, X[:, :1], verbose=0, callbacks=[swa])
    assert not any("give `SWACallback`" in str(each.message) for each in told)


def test_a_frozen_one_is_left_alone_in_silence():
    foreign = ForeignLayer(trainable=False)
    model = Mixed(foreign, layers.BatchNormalization())
    model(X)
    before = foreign.running_mean.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        swa_tf.refit_batch_norm(model, [X])
    np.testing.assert_array_equal(foreign.running_mean, before)
    close(model.norm.moving_mean, X64.mean(0))


def test_layers_that_are_no_batch_norms():
    normalization = layers.Normalization()
    normalization.adapt(X)
    model = tf.keras.Sequential(
        [
            normalization,
            layers.LayerNormalization(),
            layers.GroupNormalization(2),
            layers.UnitNormalization(),
            layers.BatchNormalization(),
        ]
    )
    model(X)
    before = bits(model.weights[:-2])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        swa_tf.refit_batch_norm(model, [X])
    assert bits(model.weights[:-2]) == before
