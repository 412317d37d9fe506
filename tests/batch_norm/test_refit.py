"""A `BatchNormRefit` traces once, notices changed layers, and is freed."""

import gc
import threading
import weakref

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import compat
from tests.fitting import quick_to_trace  # noqa: F401

pytestmark = pytest.mark.usefixtures("quick_to_trace")
layers = tf.keras.layers
X = np.random.default_rng(0).normal(2.0, 3.0, [12, 4, 4, 3]).astype(np.float32)
Y = np.zeros([12, 2], np.float32)
TRACES, TRAINING_TRACES = [], []


class Model(tf.keras.Model):
    """Counts its traces."""

    def __init__(self):
        super().__init__()
        self.norm = layers.BatchNormalization()
        self.second = layers.BatchNormalization()
        self.pool = layers.GlobalAveragePooling2D()
        self.dense = layers.Dense(2)
        self.function = tf.identity

    def call(self, inputs, training=None):
        if not tf.executing_eagerly():
            traces = TRAINING_TRACES if training else TRACES
            traces.append(inputs.shape.as_list())
        x = self.norm(self.function(inputs), training=training)
        return self.dense(self.pool(self.second(2.0 * x, training=training)))


def made():
    model = Model()
    model(X)
    TRACES.clear()
    TRAINING_TRACES.clear()
    return model


def data(x=X, batch_size=5):
    return tf.data.Dataset.from_tensor_slices(x).batch(batch_size)


def mean_of(refit, dataset=None):
    norm = refit.model.norm
    norm.moving_mean.assign(np.full([3], -7.0))
    refit(dataset or data())
    return np.array(norm.moving_mean)


MEAN = X.astype(np.float64).mean((0, 1, 2))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# --- When it is traced ------------------------------------------------------


def test_ten_refits_trace_once():
    model = made()
    refit = swa_tf.BatchNormRefit(model)
    for _ in range(8):
        close(mean_of(refit), MEAN)
    model.norm.gamma.assign([2.0, 3.0, 4.0])  # values are no change
    close(mean_of(refit, data(X[:7], 3)), X[:7].mean((0, 1, 2)))
    close(mean_of(refit, [X[:2], X[2:3]]), X[:3].mean((0, 1, 2)))
    assert TRACES == TRAINING_TRACES == [[None, 4, 4, 3]]


def test_variance_of_the_object():
    model = made()
    swa_tf.BatchNormRefit(model, "mean_of_batches")(data())
    batches = np.split(X.astype(np.float64), [5, 10])
    close(
        model.norm.moving_variance,
        np.mean([each.var((0, 1, 2)) for each in batches], 0),
    )


def test_training_and_evaluating_in_between_trace_nothing_again():
    model = made()
    model.compile("sgd", "mse", metrics=["mae"], jit_compile=False)
    model.fit(X, Y, verbose=0)
    refit = swa_tf.BatchNormRefit(model)
    mean_of(refit)
    for _ in range(2):
        model.fit(X, Y, verbose=0, epochs=2, validation_data=(X, Y))
        model.predict(X, verbose=0)
        TRACES.clear()  # of evaluating
        close(mean_of(refit), MEAN)
        assert not TRACES


def test_averaged_weights_take_a_refit():
    model = made()
    refit = swa_tf.BatchNormRefit(model)
    swa = swa_tf.StochasticWeightAveraging()
    for value in (1.0, 2.0):
        model.norm.gamma.assign([value] * 3)
        swa.apply(model.trainable_variables)
        with swa_tf.averaged_weights(
            swa, model, refit_data=data(), refit=refit
        ):
            close(model.norm.moving_mean, MEAN)
    assert len(TRACES) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"refit": True}, ValueError, "`refit_data` must be given"),
        ({"refit_data": [X], "refit": 1}, TypeError, "`refit` must be a"),
        ({"refit_data": [X], "refit": True}, ValueError, "of the model"),
    ],
)
def test_averaged_weights_refuse_a_refit(arguments, error, match):
    model = made()
    swa = swa_tf.StochasticWeightAveraging()
    swa.apply(model.trainable_variables)
    if arguments["refit"] is True:
        arguments = {**arguments, "refit": swa_tf.BatchNormRefit(made())}
    with pytest.raises(error, match=match):
        swa_tf.averaged_weights(swa, model, **arguments).__enter__()
    assert not swa.swapped


def test_a_callback_traces_once():
    model = made()
    model.compile("sgd", "mse", jit_compile=False)
    callback = swa_tf.SWACallback(
        start_epoch=0, refit_data=data(), evaluate="averaged", verbose=0
    )
    for _ in range(2):
        TRACES.clear()
        model.fit(
            X,
            Y,
            epochs=3,
            verbose=0,
            batch_size=3,
            validation_data=(X[:3], Y[:3]),
            callbacks=[callback],
        )
        assert TRACES.count([None, 4, 4, 3]) <= 2  # of it and of evaluating


def test_each_shape_has_its_trace():
    refit = swa_tf.BatchNormRefit(made())
    small = X[:, :2]
    for _ in range(2):
        close(mean_of(refit, data()), MEAN)
        close(mean_of(refit, data(small)), small.mean((0, 1, 2)))
    assert TRACES == [[None, 4, 4, 3], [None, 2, 4, 3]]


def test_frozen_and_unfrozen_layers():
    model = made()
    refit = swa_tf.BatchNormRefit(model)
    mean_of(refit)
    model.norm.trainable = False
    model.second.moving_mean.assign(np.zeros(3))
    np.testing.assert_array_equal(mean_of(refit), [-7.0] * 3)
    close(
        model.second.moving_mean,
        2 * (MEAN + 7) / np.sqrt(np.array(model.norm.moving_variance) + 1e-3),
    )
    model.norm.trainable = True
    close(mean_of(refit), MEAN)


def test_a_replaced_layer():
    class Module(tf.Module):
        def __call__(self, inputs, training=None):
            if training is False:
                TRACES.append(inputs.shape)
            return self.norm(inputs, training=training)

    def new_layer():
        layer = layers.BatchNormalization()
        layer.build([None, 4, 4, 3])
        return layer

    model = Module()
    model.norm = old = new_layer()
    refit = swa_tf.BatchNormRefit(model)
    close(mean_of(refit), MEAN)
    TRACES.clear()
    model.norm = new_layer()
    close(mean_of(refit, data(X + 1.0)), MEAN + 1.0)
    assert len(TRACES) == 1
    close(old.moving_mean, MEAN)


def test_functions_that_run_eagerly():
    refit = swa_tf.BatchNormRefit(made())
    close(mean_of(refit), MEAN)
    tf.config.run_functions_eagerly(True)
    close(mean_of(refit), MEAN)
    tf.config.run_functions_eagerly(False)
    close(mean_of(refit, data(X[:5])), X[:5].mean((0, 1, 2)))


def test_a_failed_pass_leaves_nothing_to_the_next():
    refit = swa_tf.BatchNormRefit(made())

    def failing():
        yield X + 5.0
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        refit(failing())
    close(mean_of(refit), MEAN)


# --- What is left of it -----------------------------------------------------


def test_written_state_is_put_back_each_time():
    class Counter(layers.Layer):
        def build(self, input_shape):
            self.count = self.add_weight(
                shape=(), initializer="zeros", trainable=False, name="count"
            )

        def call(self, inputs):
            self.count.assign(7.0)
            return inputs

    model = tf.keras.Sequential([Counter(), layers.BatchNormalization()])
    model(X)
    refit = swa_tf.BatchNormRefit(model)
    for value in (3.0, 5.0):
        model.layers[0].count.assign(value)
        refit(data())
        assert float(model.layers[0].count) == value


def freed(refit):
    """Whether a compiled model is freed after training, and a refit or not."""
    model = made()
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(X, Y, verbose=0)
    gone = [weakref.ref(model)]
    if refit:
        held = swa_tf.BatchNormRefit(model)
        held(data())
        swa_tf.refit_batch_norm(model, data())
        gone.append(weakref.ref(held))
        del held
    del model
    tf.keras.backend.clear_session()
    gc.collect()
    return [ref() is None for ref in gone]


def test_a_model_and_its_refit_are_freed():
    [without] = freed(refit=False)
    assert freed(refit=True) == [without, True]


def test_a_functional_model_is_freed():
    model = tf.keras.Sequential(
        [tf.keras.Input([4, 4, 3]), layers.BatchNormalization()]
    )
    swa_tf.refit_batch_norm(model, data())
    gone = [weakref.ref(model), *map(weakref.ref, model.layers)]
    del model
    tf.keras.backend.clear_session()
    gc.collect()
    assert [ref() for ref in gone] == [None] * len(gone)


# --- How layers are met -----------------------------------------------------


def test_a_layer_inside_a_loop_and_a_condition():
    class Looping(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = layers.BatchNormalization()
            self.second = layers.BatchNormalization()

        def call(self, inputs, training=None):
            def body(i):
                self.norm(
                    inputs * tf.cast(i + 1, tf.float32), training=training
                )
                return (i + 1,)

            tf.while_loop(lambda i: i < 2, body, (0,))
            return tf.cond(
                tf.shape(inputs)[0] > 4,
                lambda: self.second(inputs, training=training),
                lambda: inputs,
            )

    model = Looping()
    model.norm.build([None, 4, 4, 3])
    model.second.build([None, 4, 4, 3])
    refit = swa_tf.BatchNormRefit(model)
    for _ in range(2):
        refit(data(X, 5))  # batches of 5, 5, 2
        both = np.concatenate([X, 2 * X])
        close(model.norm.moving_mean, both.mean((0, 1, 2)))
        close(model.norm.moving_variance, both.var((0, 1, 2)))
        close(model.second.moving_mean, X[:10].mean((0, 1, 2)))


def in_a_thread(function):
    """Runs it in another thread while a model is traced; passes inputs on."""

    def run(x):
        if not tf.executing_eagerly():
            thread = threading.Thread(target=function)
            thread.start()
            thread.join()
        return x

    return run


@pytest.mark.parametrize("compiled", [False, True])
def test_another_thread_uses_the_model_while_it_is_traced(compiled):
    model = made()
    x = tf.constant(X)
    expected = model(x, training=False).numpy()
    predict = tf.function(lambda: Model.call(model, x, training=False))
    found = []

    def other():
        model.function = tf.identity
        found.append((predict() if compiled else model(X)).numpy())

    model.function = in_a_thread(other)
    refit = swa_tf.BatchNormRefit(model)
    refit(data())
    close(model.norm.moving_mean, MEAN)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-6)


def test_other_models_see_nothing_while_one_is_traced():
    model, other = made(), made()
    mro = [cls for cls in type(other.norm).__mro__ if "call" in vars(cls)]
    calls = [vars(cls)["call"] for cls in mro]
    runs, found = [], []

    @tf.function
    def counted(x):
        runs.append(1)  # while it is traced
        return other(x, training=True)

    counted(X)

    def elsewhere():
        counted(X)
        found.append(type(other.norm))
        found.append([vars(cls)["call"] for cls in mro] == calls)
        found.append(tf.config.functions_run_eagerly())

    model.function = in_a_thread(elsewhere)
    swa_tf.refit_batch_norm(model, data())
    assert runs == [1]
    # Once while it is traced in training mode, once in inference mode.
    assert found == [layers.BatchNormalization, True, False] * 2


def kinds():
    found = [layers.BatchNormalization, swa_tf.MovingFreeBatchNormalization]
    if not compat.KERAS_3:
        found += [
            tf.compat.v1.keras.layers.BatchNormalization,
            layers.experimental.SyncBatchNormalization,
        ]
    return found


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_subclasses_of_every_kind(kind, depth):
    class Shifted(kind):
        def call(self, inputs, training=None, mask=None):
            return super().call(inputs + 1.0, training=training) + 10.0

    class Twice(Shifted):
        def call(self, inputs, training=None):
            return 2.0 * super().call(2.0 * inputs, training)

    cls = [kind, Shifted, Twice][depth]
    model = tf.keras.Sequential([cls(), layers.BatchNormalization()])
    model(X)
    swa_tf.refit_batch_norm(model, [X])
    first, second = model.layers
    assert type(first) is cls
    name = "mean" if hasattr(first, "n_updates") else "moving_mean"
    close(getattr(first, name), [MEAN, MEAN + 1, 2 * MEAN + 1][depth])
    # The first one's outputs have a mean of zero before they are shifted.
    np.testing.assert_allclose(
        second.moving_mean, [[0.0, 10.0, 20.0][depth]] * 3, atol=1e-5
    )


def test_a_subclass_that_keeps_a_list_of_its_subclasses():
    kept = []

    class Kept(layers.BatchNormalization):
        def __init_subclass__(cls, *, key, **kwargs):
            super().__init_subclass__(**kwargs)
            kept.append(key)

    class Own(Kept, key="own"):
        pass

    model = tf.keras.Sequential([Own()])
    model(X)
    swa_tf.refit_batch_norm(model, [X])
    close(model.layers[0].moving_mean, MEAN)
    assert kept == ["own"]


def test_a_mask_that_broadcasts():
    mask = np.array([[True], [False], [True]])
    x = X[:3, :, 0]  # [3, 4, 3]

    class Masked(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = layers.BatchNormalization()

        def call(self, inputs, training=None):
            return self.norm(inputs, training=training, mask=tf.constant(mask))

    model = Masked()
    model(x)
    swa_tf.refit_batch_norm(model, [x])
    close(model.norm.moving_mean, x[[0, 2]].mean((0, 1)))
    close(model.norm.moving_variance, x[[0, 2]].var((0, 1)))


def test_a_model_that_counts_its_calls():
    class Counting(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = layers.BatchNormalization()
            self.n_calls = 0
            self.last = None

        def call(self, inputs, training=None):
            self.n_calls += 1
            self.last = inputs
            return self.norm(inputs, training=training)

    model = Counting()
    model(X)
    refit = swa_tf.BatchNormRefit(model)
    refit(data())
    model(X)
    calls = model.n_calls
    refit(data())
    assert model.n_calls == calls
    close(model.norm.moving_mean, MEAN)


def test_a_model_may_be_built_after_its_refit_is_made():
    model = tf.keras.Sequential([tf.keras.layers.BatchNormalization()])
    refit = swa_tf.BatchNormRefit(model)
    data = tf.constant([[1.0], [2.0], [6.0]])
    model(data)
    refit([data])
    np.testing.assert_allclose(model.layers[0].moving_mean, [3.0], rtol=1e-6)
