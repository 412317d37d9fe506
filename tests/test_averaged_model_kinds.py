"""A live averaged model of every kind of model: what it is made of."""

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

import swa_tf
from swa_tf.support import compat, model_parts
from tests.exponential import ema_of
from tests.live import (
    EMA,
    EPSILON,
    SWA,
    X,
    linear,
    make,
    some_weights,
    values_of,
)

layers = tf.keras.layers


def test_its_weights_are_the_averages():
    model, swa = make(), SWA()
    averaged = swa_tf.AveragedModel(model, swa)
    for variable, own in zip(model.weights, averaged.model.weights):
        assert swa.average(variable) is compat.tf_variable(own)
    assert averaged.average is swa


@pytest.mark.parametrize("batch_norm", ["averaged", "copied", "refitted"])
def test_it_is_not_trained(batch_norm):
    averaged = swa_tf.AveragedModel(make(), SWA(), batch_norm=batch_norm)
    assert list(averaged.trainable_variables) == []
    assert averaged.model.trainable_variables == []
    own = model_parts.weights(averaged.model)
    assert [v for v in own if v.trainable] == []
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(averaged(x, training=True) ** 2)
    assert [v.ref() for v in tape.watched_variables()] == []
    assert float(tf.norm(tape.gradient(loss, x))) > 0.0


def test_training_mode_has_dropout_and_keeps_the_statistics():
    model = tf.keras.Sequential(
        [
            layers.Input([3]),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
        ]
    )
    averaged = swa_tf.AveragedModel(model, SWA())
    before = values_of(averaged.model)
    ones = 100.0 * np.ones([50, 3], np.float32)
    first, second = (np.asarray(averaged(ones, training=True)) for _ in "12")
    assert np.any(first != second)
    # Of mean 0 and variance 1, as it was made; kept units count twice.
    kept = 2 * 100.0 / np.sqrt(1.0 + EPSILON)
    np.testing.assert_allclose(np.unique(first), [0.0, kept], rtol=1e-6)
    for old, new in zip(before, values_of(averaged.model)):
        np.testing.assert_array_equal(old, new)


def functional():
    """Two inputs, a layer that is used twice, and a model in the model."""
    inputs = [layers.Input([3]), layers.Input([3])]
    dense, inner = layers.Dense(2), tf.keras.Sequential([layers.Dense(4)])
    joined = layers.Concatenate()([dense(each) for each in inputs])
    outputs = layers.BatchNormalization()(inner(joined))
    return tf.keras.Model(inputs, outputs)


def deferred(build):
    model = tf.keras.Sequential([layers.Dense(2), layers.BatchNormalization()])
    if build == "call":
        model(X)
    else:
        model.build([None, 3])
    return model


class Subclassed(tf.keras.Model):
    """Of layers in a list and in a layer."""

    def __init__(self):
        super().__init__()
        self.parts = [layers.Dense(2), layers.BatchNormalization()]
        self.head = Head()
        self(X)

    def call(self, x, training=None):
        for part in self.parts:
            x = part(x)
        return self.head(x, training=training)


class Head(layers.Layer):
    def __init__(self):
        super().__init__()
        self.first, self.norm = layers.Dense(2), layers.BatchNormalization()
        self.second = layers.Dense(2)

    def call(self, x, training=None):
        return self.second(self.norm(self.first(x), training=training))


class Module(tf.Module):
    """Variables, and a layer, of which Keras 3 tells a module nothing."""

    def __init__(self):
        self.scale = tf.Variable(tf.ones([3]))
        self.half = tf.Variable(tf.ones([2], tf.bfloat16))
        self.fixed = tf.Variable(2.0, trainable=False)
        self.count = tf.Variable(0)
        self.dense = layers.Dense(2)
        self.dense.build([None, 3])

    def __call__(self, x):
        half = tf.cast(self.half, tf.float32)
        return half * self.dense(self.scale * x) * self.fixed


@pytest.mark.parametrize(
    ("make_model", "arguments"),
    [
        (functional, {}),
        (lambda: deferred("call"), {}),
        (lambda: deferred("build"), {}),
        (make, {"build": make}),
        (Subclassed, {"build": Subclassed}),
        (Head, None),
        (Module, {"build": Module}),
    ],
    ids=["functional", "called", "built", "given", "class", "layer", "module"],
)
def test_models_of_every_kind(make_model, arguments):
    """The mean of two, against a model that is given the mean weights."""
    model = make_model()
    if arguments is None:
        model(X[:, :2])

        def build():
            built = make_model()
            built(X[:, :2])
            return built

        arguments = {"build": build}
    averaged = swa_tf.AveragedModel(model, SWA(), **arguments)
    random = np.random.default_rng(1)
    floats = [v for v in model_parts.weights(model) if v.dtype.is_floating]
    values = [
        [np.round(random.uniform(0.5, 2.0, v.shape), 1) for v in floats]
        for _ in range(2)
    ]
    n_inputs = 2 if isinstance(model, Head) else 3
    x = [X, -X] if make_model is functional else X[:, :n_inputs]
    for each in values:
        for variable, value in zip(floats, each):
            variable.assign(tf.cast(value, variable.dtype))
        averaged.update()
    means = [np.mean([a, b], axis=0) for a, b in zip(*values)]
    fixed = getattr(model, "fixed", None)
    for variable, mean in zip(floats, means):
        if variable is not fixed:
            variable.assign(tf.cast(mean, variable.dtype))
    # bfloat16 has eight bits.
    rtol = 2.0**-7 if isinstance(model, Module) else 1e-5
    np.testing.assert_allclose(averaged(x), model(x), rtol, 1e-5)
    assert list(averaged.trainable_variables) == []


@pytest.mark.parametrize("batch_norm", ["averaged", "copied", "refitted"])
def test_a_batch_norm_that_is_never_called(batch_norm):
    """It is not built, and has no variables."""

    class Model(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(1)
            self.unused = layers.BatchNormalization()

        def call(self, x):
            return self.dense(x)

    def build():
        model = Model()
        model(X)
        return model

    model = build()
    averaged = swa_tf.AveragedModel(
        model, SWA(), build=build, batch_norm=batch_norm
    )
    averaged.update()
    np.testing.assert_array_equal(averaged(X), model(X))


def test_a_flag_of_a_batch_norm_is_copied():
    class Flagged(layers.BatchNormalization):
        def build(self, shape):
            super().build(shape)
            self.flag = self.add_weight(
                name="flag",
                shape=(),
                dtype="bool",
                trainable=False,
                initializer="zeros",
            )

    model = tf.keras.Sequential([layers.Input([3]), Flagged()])
    averaged = swa_tf.AveragedModel(model, SWA())
    model.layers[-1].flag.assign(True)
    averaged.update()
    assert bool(tf.convert_to_tensor(averaged.model.layers[-1].flag))


@pytest.mark.parametrize("make_model", [Subclassed, Module])
def test_models_that_only_a_function_can_build(make_model):
    with pytest.raises(ValueError, match="`build` must be given for a model"):
        swa_tf.AveragedModel(make_model(), SWA())


def test_a_frozen_layer_in_a_layer_keeps_its_place():
    """Keras 2 lists frozen variables last; `build` returns none that are."""
    model = Subclassed()
    model.head.first.trainable = False
    averaged = swa_tf.AveragedModel(model, SWA(), build=Subclassed)
    averaged.update()
    np.testing.assert_array_equal(averaged(X), model(X))
    kernel = model.head.first.kernel
    kernel.assign(tf.ones_like(kernel))
    averaged.update()
    # It is copied, where an average would be between both.
    np.testing.assert_array_equal(averaged(X), model(X))
    assert averaged.average.average(kernel) is None


@pytest.mark.skipif(not compat.KERAS_3, reason="Keras 2 has one seed for all")
def test_seeds_are_saved(tmp_path):
    model = tf.keras.Sequential([layers.Input([50]), layers.Dense(1)])
    model.add(layers.Dropout(0.5))
    averaged = swa_tf.AveragedModel(model, SWA())
    ones = np.ones([50, 50], np.float32)
    checkpoint = tf.train.Checkpoint(averaged=averaged)
    path = checkpoint.save(str(tmp_path / "checkpoint"))
    first, second = (averaged(ones, training=True) for _ in range(2))
    assert np.any(first != second)
    checkpoint.restore(path)
    np.testing.assert_array_equal(averaged(ones, training=True), first)


def test_integers_are_its_own():
    module = Module()
    averaged = swa_tf.AveragedModel(module, SWA(), build=Module)
    module.count.assign(5)
    module.fixed.assign(3.0)
    averaged.update()
    own = averaged.model
    assert (int(own.count), float(own.fixed)) == (0, 3.0)


def test_seeds_are_not_copied():
    model = tf.keras.Sequential([layers.Input([50]), layers.Dense(1)])
    model.add(layers.Dropout(0.5))
    averaged = swa_tf.AveragedModel(model, SWA())
    ones = np.ones([50, 50], np.float32)
    noise = []
    for each in (model, averaged):
        noise.append(np.asarray(each(ones, training=True)) == 0.0)
        averaged.update()
    assert np.any(noise[0] != noise[1])


@pytest.mark.parametrize(
    "make_average",
    [SWA, lambda: SWA(device="/cpu:1"), EMA],
    ids=["swa", "device", "ema"],
)
def test_an_average_that_was_there_before(make_average):
    """It goes on, and the model has its present values at once."""
    model, average = make(), make_average()
    values = some_weights(2)
    model.set_weights(values[0])
    average.apply(model.trainable_variables)
    model.set_weights(values[1])
    averaged = swa_tf.AveragedModel(model, average, batch_norm="copied")
    expected = [*values[0][:4], *values[1][4:]]
    for found, value in zip(values_of(averaged.model), expected):
        np.testing.assert_array_equal(found, value)
    averaged.update()
    c = 0.5 if make_average is not EMA else 0.25
    expected[0] = values[0][0] + c * (values[1][0] - values[0][0])
    found = values_of(averaged.model)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_array_equal(
        found[0], average.average(model.weights[0]).numpy()
    )


def test_one_average_of_two_models():
    """A generator and a critic may share an `ExponentialMovingAverage`."""
    ema, models = EMA(), [make(), linear()]
    both = [swa_tf.AveragedModel(each, ema) for each in models]
    for averaged, model in zip(both, models):
        averaged.update()
        np.testing.assert_array_equal(averaged(X), model(X))
    assert len(ema.averaged) == 7


FLOATS = [tf.float16, tf.bfloat16, tf.float32, tf.float64]


@hypothesis.settings(max_examples=10)
@hypothesis.given(
    st.lists(st.sampled_from(FLOATS), min_size=1, max_size=4),
    st.lists(st.floats(-8.0, 8.0, width=16), min_size=1, max_size=5),
    st.booleans(),
)
def test_any_dtypes_and_weights(dtypes, values, swa):
    def build():
        module = Module()
        module.extra = [tf.Variable(tf.zeros([2], d)) for d in dtypes]
        return module

    module = build()
    average = SWA() if swa else EMA()
    averaged = swa_tf.AveragedModel(module, average, build=build)
    for value in values:
        for variable in module.extra:
            variable.assign(tf.fill([2], tf.cast(value, variable.dtype)))
        averaged.update()
    for i, dtype in enumerate(dtypes):
        seen = [float(tf.cast(value, dtype)) for value in values]
        expected = np.mean(seen) if swa else ema_of(seen, [0.75] * 9, seen[0])
        found = np.asarray(averaged.model.extra[i], np.float64)
        # The average is rounded to float32, up or down, five times at most,
        # and then to the dtype of the variable.
        epsilon = {2: 2.0**-7, 4: 2.0**-23, 8: 2.0**-23}[dtype.size]
        np.testing.assert_allclose(found, expected, 0, 8 * 6 * epsilon)


def test_frozen_statistics_follow_the_model_where_others_are_refitted():
    model = make()
    model.layers[-1].trainable = False
    averaged = swa_tf.AveragedModel(model, SWA(), batch_norm="refitted")
    weights = some_weights(1)[0]
    model.set_weights(weights)  # as `load_weights` does
    averaged.update()
    averaged.refit([X])
    for own, value in zip(averaged.model.get_weights(), weights):
        np.testing.assert_array_equal(own, value)


def test_a_model_left_out_is_not_copied_either():
    model = make()
    averaged = swa_tf.AveragedModel(
        model, SWA(skip_nonfinite=True), batch_norm="copied"
    )
    first, second, third = some_weights(3)
    second[4][0] = second[0][0, 0] = np.nan  # a moving mean and a weight
    for weights in (first, second):
        model.set_weights(weights)
        averaged.update()
    assert int(averaged.average.n_skipped) == 1
    for own, value in zip(averaged.model.get_weights(), first):
        np.testing.assert_array_equal(own, value)
    model.set_weights(third)
    averaged.update()
    np.testing.assert_array_equal(averaged.model.get_weights()[4], third[4])


def test_a_layer_that_both_have_is_refused():
    norm = layers.BatchNormalization(scale=False, center=False)

    def build():
        return tf.keras.Sequential([layers.Input([3]), layers.Dense(2), norm])

    model = build()
    with pytest.raises(ValueError, match="made when `build` is called"):
        swa_tf.AveragedModel(model, SWA(), build=build)
    assert norm.trainable


@pytest.mark.parametrize("batch_norm", ["copied", "refitted"])
def test_its_statistics_are_the_newest_as_its_averages_are(
    batch_norm, tmp_path
):
    paths, found = [], []
    for i, weights in enumerate(some_weights(2)):
        model = make()
        averaged = swa_tf.AveragedModel(model, SWA(), batch_norm=batch_norm)
        model.set_weights(weights)
        averaged.update()
        saved = tf.train.Checkpoint(model=model, averaged=averaged)
        paths.append(saved.write(str(tmp_path / f"ckpt-{i}")))
        found.append(averaged.model.get_weights())
    output = str(tmp_path / "average")
    with pytest.warns(UserWarning, match="batch-norm statistics"):
        swa_tf.average_checkpoints(paths, output)
    saved.read(output)
    for own, newest in zip(averaged.model.get_weights(), found[1]):
        np.testing.assert_array_equal(own, newest)


NUMBERS = tf.constant([[1.0], [3.0], [5.0], [11.0]])
TEXTS = tf.constant([["a b"], ["b c"], ["c a"], ["a a"]])


@pytest.mark.parametrize(
    ("layer", "data"),
    [
        (layers.Normalization, NUMBERS),
        (lambda: layers.Discretization(num_bins=3), NUMBERS),
        (layers.IntegerLookup, tf.cast(NUMBERS, tf.int64)),
        (layers.StringLookup, TEXTS),
        (lambda: layers.TextVectorization(output_sequence_length=2), TEXTS),
    ],
)
def test_a_clone_has_what_its_layers_were_adapted_to(layer, data):
    """Keras's clone has none of it; bins and means are no variables."""
    adapted = layer()
    adapted.adapt(data)
    inputs = tf.keras.Input([1], dtype=data.dtype.name)
    to_float = layers.Rescaling(1.0)
    dense = layers.Dense(1, kernel_initializer="ones")
    model = tf.keras.Model(inputs, dense(to_float(adapted(inputs))))
    expected = np.asarray(model(data))
    averaged = swa_tf.AveragedModel(model, SWA())
    np.testing.assert_array_equal(averaged(data), expected)
    averaged.update()
    np.testing.assert_array_equal(averaged(data), expected)
    assert len(np.unique(expected)) > 1
