"""What is kept of a refit for the next one, and when it is not."""

import dataclasses
import functools
import gc
import sys
import threading
import weakref

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf import _passes
from tests.fitting import quick_to_trace  # noqa: F401

pytestmark = pytest.mark.usefixtures("quick_to_trace")
layers = tf.keras.layers
X = np.random.default_rng(0).normal(2.0, 3.0, [12, 4, 4, 3]).astype(np.float32)
Y = np.zeros([12, 2], np.float32)


@dataclasses.dataclass
class Options:
    shift: float = 0.0


class Model(tf.keras.Model):
    """Counts its traces, and computes by what it holds in Python."""

    def __init__(self):
        super().__init__()
        self.norm = layers.BatchNormalization()
        self.second = layers.BatchNormalization()
        self.pool = layers.GlobalAveragePooling2D()
        self.dense = layers.Dense(2)
        self.factor = 1.0
        self.factors = {"list": [1.0]}
        self.options = Options()
        self.function = tf.identity
        self.array = np.float32([0.0])
        TRACES.clear()

    def call(self, inputs, training=None):
        if not tf.executing_eagerly() and training is False:
            TRACES.append(inputs.shape)
        x = self.function(inputs * self.factor * self.factors["list"][0])
        x = self.norm(x + self.options.shift + self.array, training=training)
        return self.dense(self.pool(self.second(2.0 * x, training=training)))


TRACES = []


def made():
    model = Model()
    model(X)
    TRACES.clear()
    return model


def data(x=X, batch_size=5):
    return tf.data.Dataset.from_tensor_slices(x).batch(batch_size)


def mean_of(model, dataset=None):
    model.norm.moving_mean.assign(np.full([3], -7.0))
    swa_tf.refit_batch_norm(model, dataset or data())
    return np.array(model.norm.moving_mean)


MEAN = X.astype(np.float64).mean((0, 1, 2))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_next_refits_trace_nothing():
    model = made()
    close(mean_of(model), MEAN)
    assert [shape.as_list() for shape in TRACES] == [[None, 4, 4, 3]]
    model.norm.gamma.assign([2.0, 3.0, 4.0])  # values are no change
    close(mean_of(model, data(X[:7], 3)), X[:7].mean((0, 1, 2)))
    close(mean_of(model, [X[:2], X[2:3]]), X[:3].mean((0, 1, 2)))
    close(mean_of(model), MEAN)
    assert len(TRACES) == 1


def test_training_and_evaluating_in_between_trace_nothing_again():
    model = made()
    model.compile("sgd", "mse", metrics=["mae"])
    model.fit(X, Y, verbose=0)
    mean_of(model)
    TRACES.clear()
    model.evaluate(X, Y, verbose=0)
    model.predict(X, verbose=0)
    model.fit(X, Y, verbose=0, epochs=2, validation_data=(X, Y))
    TRACES.clear()  # of evaluating
    close(mean_of(model), MEAN)
    assert not TRACES


def test_averaged_weights_trace_once():
    model = made()
    swa = swa_tf.StochasticWeightAveraging()
    for value in (1.0, 2.0):
        model.norm.gamma.assign([value] * 3)
        swa.apply(model.trainable_variables)
        with swa_tf.averaged_weights(swa, model, refit_data=data()):
            close(model.norm.moving_mean, MEAN)
    assert len(TRACES) == 1


def test_each_shape_has_its_trace():
    model = made()
    small = X[:, :2]
    for _ in range(2):
        close(mean_of(model, data()), MEAN)
        close(mean_of(model, data(small)), small.mean((0, 1, 2)))
    assert [shape.as_list() for shape in TRACES] == [
        [None, 4, 4, 3],
        [None, 2, 4, 3],
    ]


def test_only_the_latest_traces_are_kept():
    model = made()
    for size in range(1, 12):
        mean_of(model, data(np.ones([2, 1, size, 3], np.float32)))
    assert len(TRACES) == 11
    mean_of(model, data(np.ones([2, 1, 11, 3], np.float32)))
    assert len(TRACES) == 11
    mean_of(model, data(np.ones([2, 1, 1, 3], np.float32)))
    assert len(TRACES) == 12


def set_(name, value):
    return lambda model: setattr(model, name, value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (set_("factor", 2.0), 2 * MEAN),
        (lambda model: model.factors["list"].__setitem__(0, 2.0), 2 * MEAN),
        (lambda model: setattr(model.options, "shift", 1.0), MEAN + 1),
        (set_("function", tf.negative), -MEAN),
        (set_("array", np.float32([1.0])), MEAN + 1),
    ],
    ids=["number", "container", "dataclass", "function", "array"],
)
def test_python_state_that_changes(change, expected):
    model = made()
    close(mean_of(model), MEAN)
    change(model)
    close(mean_of(model), expected)
    assert len(TRACES) == 2


def test_frozen_and_unfrozen_layers():
    model = made()
    mean_of(model)
    model.norm.trainable = False
    model.second.moving_mean.assign(np.zeros(3))
    np.testing.assert_array_equal(mean_of(model), [-7.0] * 3)
    close(
        model.second.moving_mean,
        2 * (MEAN + 7) / np.sqrt(np.array(model.norm.moving_variance) + 1e-3),
    )
    model.norm.trainable = True
    close(mean_of(model), MEAN)


def test_another_epsilon():
    model = made()
    mean_of(model)
    model.norm.epsilon = 3.0
    mean_of(model)
    normalized = 2 * (X - MEAN) / np.sqrt(X.var((0, 1, 2)) + 3.0)
    np.testing.assert_allclose(
        model.second.moving_variance,
        np.mean([b.var((0, 1, 2)) for b in [normalized]], 0),
        rtol=0.3,
    )
    assert len(TRACES) == 2


def test_a_replaced_layer():
    class Module(tf.Module):
        def __call__(self, inputs, training=None):
            TRACES.append(inputs.shape)
            return self.norm(inputs, training=training)

    def new_layer():
        layer = layers.BatchNormalization()
        layer.build([None, 4, 4, 3])
        return layer

    model = Module()
    model.norm = old = new_layer()
    close(mean_of(model), MEAN)
    TRACES.clear()
    model.norm = new_layer()
    close(mean_of(model, data(X + 1.0)), MEAN + 1.0)
    assert len(TRACES) == 1
    close(old.moving_mean, MEAN)


def test_a_replaced_call(monkeypatch):
    model = made()
    mean_of(model)
    original = Model.call
    monkeypatch.setattr(
        Model,
        "call",
        lambda self, inputs, training=None: original(
            self, inputs + 1.0, training
        ),
    )
    close(mean_of(model), MEAN + 1)


def test_another_dtype_policy():
    model = made()
    mean_of(model)
    TRACES.clear()
    other = (
        tf.keras.mixed_precision.Policy
        if hasattr(tf.keras.mixed_precision, "Policy")
        else tf.keras.DTypePolicy
    )
    attribute = (
        "dtype_policy" if hasattr(type(model.dense), "quantize") else None
    )
    if attribute is None:
        pytest.skip("Keras 2 has no way to change the policy of a layer")
    setattr(model.dense, attribute, other("mixed_bfloat16"))
    mean_of(model)
    assert len(TRACES) == 1


def test_functions_that_run_eagerly():
    model = made()
    close(mean_of(model), MEAN)
    tf.config.run_functions_eagerly(True)
    close(mean_of(model), MEAN)
    tf.config.run_functions_eagerly(False)
    close(mean_of(model, data(X[:5])), X[:5].mean((0, 1, 2)))


def test_a_failed_pass_leaves_nothing_to_the_next():
    model = made()

    def failing():
        yield X + 5.0
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        swa_tf.refit_batch_norm(model, failing())
    close(mean_of(model), MEAN)


def test_two_models_of_one_class():
    one, two = made(), made()
    for _ in range(2):
        close(mean_of(one), MEAN)
        close(mean_of(two, data(X + 1.0)), MEAN + 1.0)
    assert len(TRACES) == 2


@pytest.mark.parametrize("eagerly", [True, False])
def test_nothing_keeps_a_model_alive(eagerly):
    model = (
        made()
        if eagerly
        else tf.keras.Sequential(
            [tf.keras.Input([4, 4, 3]), layers.BatchNormalization()]
        )
    )
    swa_tf.refit_batch_norm(model, data())
    key = id(model)
    assert key in _passes._kept
    gone = [weakref.ref(model), *map(weakref.ref, model.layers)]
    del model
    tf.keras.backend.clear_session()
    gc.collect()
    assert [ref() for ref in gone] == [None] * len(gone)
    assert key not in _passes._kept


def test_written_state_is_put_back_each_time():
    class Counter(layers.Layer):
        def build(self, input_shape):
            self.count = self.add_weight(
                shape=(), initializer="zeros", trainable=False, name="count"
            )

        def call(self, inputs):
            self.count.assign_add(1.0)
            return inputs

    model = tf.keras.Sequential([Counter(), layers.BatchNormalization()])
    model(X)
    for value in (3.0, 5.0):
        model.layers[0].count.assign(value)
        swa_tf.refit_batch_norm(model, data())
        assert float(model.layers[0].count) == value


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
    for _ in range(2):
        swa_tf.refit_batch_norm(model, data(X, 5))  # batches of 5, 5, 2
        both = np.concatenate([X, 2 * X])
        close(model.norm.moving_mean, both.mean((0, 1, 2)))
        close(model.norm.moving_variance, both.var((0, 1, 2)))
        close(model.second.moving_mean, X[:10].mean((0, 1, 2)))


class Held:
    """What no library knows of."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * x


@dataclasses.dataclass(eq=False)
class Node:
    parent: object = None
    children: list = dataclasses.field(default_factory=list)


if sys.version_info >= (3, 10):

    @dataclasses.dataclass(slots=True)
    class Slotted:
        factor: float = 1.0

else:
    Slotted = Options


@pytest.mark.parametrize(
    "function",
    [
        Held,
        lambda factor: functools.partial(tf.multiply, y=factor),
        lambda factor: tf.function(lambda x: factor * x),
    ],
)
def test_other_objects_are_told_apart(function):
    model = made()
    for factor in (2.0, 3.0):
        model.function = function(factor)
        close(mean_of(model), factor * MEAN)


@pytest.mark.parametrize("kind", [tf.constant, np.float32])
def test_tensors_and_numbers_are_told_apart(kind):
    model = made()
    for factor in (2.0, 3.0):
        model.factor = kind(factor)
        close(mean_of(model), factor * MEAN)


def test_a_small_array_that_is_changed_in_place():
    model = made()
    for shift in (2.0, 3.0):
        model.array[:] = shift
        close(mean_of(model), MEAN + shift)


def test_an_adapted_layer():
    adapted = layers.Normalization()
    adapted.adapt(X)
    norm = layers.BatchNormalization()
    model = tf.keras.Sequential([adapted, norm])
    model(X)
    for x in (X, 10.0 * X + 50.0):
        adapted.adapt(x)
        swa_tf.refit_batch_norm(model, data())
        exact = (X.astype(np.float64) - x.mean((0, 1, 2))) / x.std((0, 1, 2))
        np.testing.assert_allclose(
            norm.moving_mean, exact.mean((0, 1, 2)), atol=1e-4
        )


def test_data_classes_of_other_kinds():
    model = made()
    model.slotted = Slotted()
    model.tree = Node()
    model.tree.children.append(Node(model.tree))
    close(mean_of(model), MEAN)
    TRACES.clear()
    close(mean_of(model), MEAN)
    assert TRACES == []
    model.tree.children.append(Node(model.tree))
    close(mean_of(model), MEAN)
    assert len(TRACES) == 1


def test_another_thread_predicts_while_it_is_traced():
    model = made()
    expected = model(X).numpy()
    found = []

    def function(x):
        if not tf.executing_eagerly():
            thread = threading.Thread(
                target=lambda: found.append(model(X).numpy())
            )
            thread.start()
            thread.join()
        return x

    model.function = function
    swa_tf.refit_batch_norm(model, data())
    close(model.norm.moving_mean, MEAN)
    np.testing.assert_array_equal(found[0], expected)


class Counting(tf.keras.Model):
    """Keeps, as it is called, what its calls do not depend on."""

    def __init__(self):
        super().__init__()
        self.norm = layers.BatchNormalization()
        self.n_calls = 0
        self.last = None

    def call(self, inputs, training=None):
        self.n_calls += 1
        self.last = inputs
        return self.norm(inputs, training=training)


def test_a_model_that_counts_its_calls():
    model = Counting()
    model(X)
    swa_tf.refit_batch_norm(model, data())
    model(X)
    calls = model.n_calls
    swa_tf.refit_batch_norm(model, data())
    assert model.n_calls == calls
    close(model.norm.moving_mean, MEAN)
