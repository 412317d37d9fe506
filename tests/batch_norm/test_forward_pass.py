"""Layers that the model itself calls with `training=False` are left alone."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import compat
from tests import fitting

layers = tf.keras.layers
X = np.random.default_rng(0).normal(5.0, 2.0, [24, 4]).astype(np.float32)
X64 = X.astype(np.float64)


def norm(name):
    return layers.BatchNormalization(name=name, epsilon=0.0)


def base():
    return tf.keras.Sequential(
        [tf.keras.Input([4]), norm("kept"), layers.Dropout(0.9)]
    )


def functional():
    """As in Keras's guide to transfer learning, with a layer on top."""
    inputs = tf.keras.Input([4])
    kept, top = base(), norm("top")
    model = tf.keras.Model(inputs, top(kept(inputs, training=False)))
    return model, kept.layers[0], top


class Subclassed(tf.keras.Model):
    def __init__(self):
        super().__init__()
        self.base, self.top = base(), norm("top")

    def call(self, inputs, training=None):
        x = self.base(inputs, training=False)
        return self.top(x, training=training)


def subclassed():
    model = Subclassed()
    return model, model.base.layers[0], model.top


class Inference(layers.Layer):
    """A part of a sequential model that never trains its batch norm."""

    def __init__(self):
        super().__init__()
        self.norm = norm("kept")

    def call(self, inputs):
        return self.norm(inputs, training=False)


def sequential():
    kept, top = Inference(), norm("top")
    return tf.keras.Sequential([kept, top]), kept.norm, top


class Compiled(Subclassed):
    """The same inside a function that may be traced before."""

    @tf.function
    def function(self, inputs, training):
        return super().call(inputs, training=training)

    def call(self, inputs, training=None):
        return self.function(inputs, training=bool(training))


def compiled():
    model = Compiled()
    model.top.build([None, 4])  # or Keras 3 traces it in a scratch pad
    model(X, training=True)
    return model, model.base.layers[0], model.top


def module():
    class Module(tf.Module):
        def __init__(self):
            super().__init__()
            self.kept, self.top = norm("kept"), norm("top")

        def __call__(self, inputs, training=None):
            x = self.kept(inputs, training=False)
            return self.top(x, training=training)

    model = Module()
    return model, model.kept, model.top


MODELS = [sequential, subclassed, compiled, module]
if not compat.KERAS_3:  # which gives all layers of such a model one `training`
    MODELS.append(functional)


def bits(layer):
    return [tf.convert_to_tensor(w).numpy().tobytes() for w in layer.weights]


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "devices"), fitting.covering(1, MODELS, [1, 2])
)
def test_a_layer_called_in_inference_mode(make, devices):
    devices = [f"/cpu:{i}" for i in range(devices)]
    with tf.distribute.MirroredStrategy(devices).scope():
        model, kept, top = make()
        model(X)
        kept.moving_mean.assign([1.0, 2.0, 3.0, 4.0])
        kept.moving_variance.assign([4.0, 9.0, 16.0, 25.0])
    before = bits(kept)
    refit = swa_tf.BatchNormRefit(model)
    expected = (X64 - [1, 2, 3, 4]) / [2, 3, 4, 5]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # there is nothing to warn of
        for data in ([X], [X[:10], X[10:]]):
            refit(data)
            assert bits(kept) == before
            # The other layer sees it normalize by what it has.
            close(top.moving_mean, expected.mean(0))
            close(top.moving_variance, expected.var(0))


@pytest.mark.parametrize("make", [*MODELS, functional])
def test_a_refit_computes_what_a_training_step_moves(make):
    model, *norms = make()
    model(X)
    before = [bits(each) for each in norms]
    model(X, training=True)
    moved = [bits(each) != old for each, old in zip(norms, before)]
    before = [bits(each) for each in norms]
    swa_tf.refit_batch_norm(model, [X])
    assert [bits(each) != old for each, old in zip(norms, before)] == moved
    assert moved == [make not in MODELS, True]


class Kept(tf.keras.Model):
    """A base that is only called in inference mode."""

    def __init__(self):
        super().__init__()
        self.base = base()

    def call(self, inputs, training=None):
        return self.base(inputs, training=False)


def test_a_model_of_nothing_else_warns_and_runs_no_data():
    model = Kept()
    model(X)
    before = bits(model)
    taken = []

    def batches():
        for batch in (X, X, X):
            taken.append(1)
            yield batch

    for _ in range(2):
        with pytest.warns(UserWarning, match="not only with `training=False`"):
            swa_tf.refit_batch_norm(model, batches(), steps=3)
    assert len(taken) == 2
    assert bits(model) == before


class Twice(tf.keras.Model):
    """Calls a layer in turn as it trains and as it does not."""

    def __init__(self, first):
        super().__init__()
        self.norm, self.first = norm("twice"), first

    def call(self, inputs, training=None):
        if self.first:
            x = self.norm(inputs, training=training)
            return self.norm(x + 100.0, training=False)
        x = self.norm(inputs + 100.0, training=False)
        return x + self.norm(inputs, training=training)


@pytest.mark.parametrize("first", [True, False])
def test_a_layer_called_once_each_way(first):
    model = Twice(first)
    model(X)
    swa_tf.refit_batch_norm(model, [X[:10], X[10:]])
    close(model.norm.moving_mean, X64.mean(0))
    close(model.norm.moving_variance, X64.var(0))


def test_a_call_in_inference_mode_uses_what_the_layer_has():
    class Model(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.norm, self.top = norm("norm"), norm("top")

        def call(self, inputs, training=None):
            x = self.norm(inputs, training=False)
            self.norm(inputs, training=training)
            return self.top(x, training=training)

    model = Model()
    model(X)
    model.norm.moving_mean.assign([1.0, 2.0, 3.0, 4.0])
    swa_tf.refit_batch_norm(model, [X])
    close(model.top.moving_mean, X64.mean(0) - [1, 2, 3, 4])
    close(model.norm.moving_mean, X64.mean(0))


def test_calls_that_training_does_not_make():
    class Model(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = norm("norm")
            self.kept = norm("kept")
            self.inference = norm("inference")

        def call(self, inputs, training=None):
            for i in range(1 if training else 2):
                self.norm(inputs * (i + 1.0), training=training)
                self.kept(inputs, training=False)
            return inputs if training else self.inference(inputs)

    model = Model()
    model(X)
    swa_tf.refit_batch_norm(model, [X])
    close(model.norm.moving_mean, 1.5 * X64.mean(0))
    close(model.inference.moving_mean, X64.mean(0))
    np.testing.assert_array_equal(model.kept.moving_mean, np.zeros(4))


@pytest.mark.parametrize(
    ("training", "trains"),
    [(0, False), (1, True), ("tensor", True)],
)
def test_other_values_of_training(training, trains):
    class Model(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = norm("norm")
            self.top = norm("top")

        def call(self, inputs):
            given = tf.constant(True) if training == "tensor" else training
            return self.top(self.norm(inputs, training=given), training=True)

    model = Model()
    model.norm.build([None, 4])
    model.top.build([None, 4])
    swa_tf.refit_batch_norm(model, [X])
    expected = X64.mean(0) if trains else np.zeros(4)
    close(model.norm.moving_mean, expected)


def test_a_layer_whose_class_drops_training():
    class Dropping(layers.BatchNormalization):
        def call(self, inputs, training=None):
            return super().call(inputs)

    model = tf.keras.Sequential([Dropping(), norm("top")])
    model(X, training=True)
    before = bits(model.layers[0])
    swa_tf.refit_batch_norm(model, [X])
    assert bits(model.layers[0]) == before


def test_inside_a_loop_and_a_condition():
    class Looping(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.norm, self.kept = norm("norm"), norm("kept")

        def call(self, inputs, training=None):
            def body(i):
                self.norm(inputs, training=training)
                return (i + 1,)

            tf.while_loop(lambda i: i < 2, body, (0,))
            return tf.cond(
                tf.shape(inputs)[0] > 4,
                lambda: self.kept(inputs, training=False),
                lambda: inputs,
            )

    model = Looping()
    model.norm.build([None, 4])
    model.kept.build([None, 4])
    swa_tf.refit_batch_norm(model, [X])
    close(model.norm.moving_variance, X64.var(0))
    np.testing.assert_array_equal(model.kept.moving_variance, np.ones(4))


class Tripled(tf.keras.Model):
    """Adds 3 in a function that AutoGraph converts, without batch norm."""

    def __init__(self):
        super().__init__()
        self.norm, self.functions_run_eagerly = norm("norm"), []

    @tf.function
    def function(self, inputs):
        for _ in tf.range(3):
            inputs += 1.0
        return inputs

    def call(self, inputs, training=None):
        eagerly = tf.config.functions_run_eagerly()
        self.functions_run_eagerly.append(eagerly)
        return self.norm(self.function(inputs), training=training)


def test_a_function_without_batch_norm_stays_a_function():
    model = Tripled()
    model(X)
    swa_tf.refit_batch_norm(model, [X])
    close(model.norm.moving_mean, X64.mean(0) + 3.0)
    assert not any(model.functions_run_eagerly)


def add_3(inputs):
    if tf.reduce_sum(inputs) > 0.0:
        for _ in tf.range(3):
            inputs += 1.0
    return inputs


class Converted(tf.keras.Model):
    """Has conditions of Python, as the `fit` of Keras 2 converts them."""

    def __init__(self, hides):
        super().__init__()
        self.norm, self.hides = norm("norm"), hides

    def call(self, inputs, training=None):
        inputs = add_3(inputs)
        if not self.hides:
            return self.norm(inputs, training=training)
        if tf.reduce_sum(inputs) > 0.0:
            inputs = self.norm(inputs, training=training)
        return inputs


@pytest.mark.skipif(compat.KERAS_3, reason="Keras 3 converts no model")
@pytest.mark.parametrize("hides", [False, True])
def test_autograph_converts_a_model(hides):
    model = Converted(hides)
    model(X)
    swa_tf.refit_batch_norm(model, [X])
    close(model.norm.moving_mean, X64.mean(0) + 3.0)


def test_autograph_converts_preprocessing():
    model = base()
    swa_tf.refit_batch_norm(model, [X], preprocess=add_3)
    close(model.layers[0].moving_mean, X64.mean(0) + 3.0)


def test_training_mode_writes_nothing():
    class Counter(layers.Layer):
        def build(self, input_shape):
            self.count = self.add_weight(
                shape=(), initializer="zeros", trainable=False, name="count"
            )

        def call(self, inputs, training=None):
            if training:
                self.count.assign_add(1.0)
            return inputs

    model = tf.keras.Sequential(
        [Counter(), layers.Dropout(0.5), norm("top"), base()]
    )
    model(X)
    generator = tf.random.get_global_generator()
    state = generator.state.numpy()
    before = [bits(layer) for layer in model.layers[:2]]
    swa_tf.refit_batch_norm(model, [X])
    assert [bits(layer) for layer in model.layers[:2]] == before
    np.testing.assert_array_equal(generator.state, state)
    close(model.layers[2].moving_mean, X64.mean(0))  # no dropout


@pytest.mark.parametrize("kind", ["mixed_float16", "float64"])
def test_dtypes(kind):
    tf.keras.mixed_precision.set_global_policy(kind)
    model, kept, top = subclassed()
    model(X)
    before = bits(kept)
    swa_tf.refit_batch_norm(model, [X])
    assert bits(kept) == before
    np.testing.assert_allclose(top.moving_mean, X64.mean(0), rtol=1e-3)


def test_transfer_learning_with_the_callback():
    """An average of equal weights evaluates as the weights do."""
    model, kept, top = subclassed()
    model(X)
    kept.moving_mean.assign(X.mean(0))
    kept.moving_variance.assign(X.var(0))
    model.compile("sgd", "mse", run_eagerly=True)
    before = bits(kept)[2:]  # its statistics
    swa = swa_tf.SWACallback(start_epoch=0, refit_data=[X], verbose=0)
    y = (X - X.mean(0)) / X.std(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        history = model.fit(
            X, y, epochs=1, batch_size=24, verbose=0,
            validation_data=(X, y), callbacks=[swa],
        )  # fmt: skip
    assert bits(kept)[2:] == before
    close(top.moving_variance, np.ones(4))
    assert history.history["swa_val_loss"][-1] < 1e-3


def test_averaged_weights_leave_it_alone():
    model, kept, top = subclassed()
    model(X)
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply(model.trainable_variables)
    before = bits(kept)
    with swa_tf.averaged_weights(swa, model, refit_data=[X]):
        assert bits(kept) == before
        close(top.moving_mean, X64.mean(0))
    only = Kept()
    only(X)
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply(only.trainable_variables)
    match = "`target` holds no batch-norm layer to refit"
    with pytest.warns(UserWarning, match=match) as caught:
        with swa_tf.averaged_weights(swa, only, refit_data=[X]):
            pass
    assert caught[0].filename == __file__
