"""The refit against float64 numpy, and what it must leave alone."""

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import variables as variables_lib
from tests.batch_norm_numbers import bits, built, data_set, moments

layers = tf.keras.layers


class Block(tf.keras.layers.Layer):
    """A custom layer with layers in a list and a dictionary."""

    def __init__(self):
        super().__init__()
        self.norms = [layers.BatchNormalization()]
        self.rest = {"dropout": layers.Dropout(0.9), "dense": layers.Dense(3)}

    def call(self, inputs, training=None):
        x = self.norms[0](inputs, training=training)
        x = self.rest["dropout"](x, training=training)
        return self.rest["dense"](x)


class Subclassed(tf.keras.Model):
    def __init__(self):
        super().__init__()
        self.block = Block()
        self.norm = layers.BatchNormalization()

    def call(self, inputs, training=None):
        return self.norm(
            self.block(inputs, training=training), training=training
        )


def sequential():
    inner = tf.keras.Sequential(
        [layers.BatchNormalization(), layers.Dropout(0.9), layers.Dense(3)]
    )
    return tf.keras.Sequential([inner, layers.BatchNormalization()])


def functional():
    inputs = tf.keras.Input([4])
    x = layers.BatchNormalization()(inputs)
    x = layers.Dense(3)(layers.Dropout(0.9)(x))
    return tf.keras.Model(inputs, layers.BatchNormalization()(x))


MODELS = [sequential, functional, Subclassed]


def norms(model):
    if isinstance(model, Subclassed):
        return [model.block.norms[0], model.norm]
    return [
        layer
        for layer in tf.train.TrackableView(model).descendants()
        if isinstance(layer, layers.BatchNormalization)
    ]


def by_size(model):
    """(the first batch-norm layer, of 4 channels; the second, of 3)."""
    return sorted(norms(model), key=lambda n: -n.moving_mean.shape[0])


def normalizing_call(model):
    """The `call` of the class that normalizes, which a refit replaces."""
    kind = type(norms(model)[0])
    return next(
        vars(each)["call"] for each in kind.__mro__ if "call" in vars(each)
    )


# --- The numbers ------------------------------------------------------------


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1000.0, 0.1)])
def test_pooled_moments(make, mean, deviation):
    x = np.random.default_rng(0).normal(mean, deviation, [101, 4])
    x = x.astype(np.float32)
    model = built(make(), x)
    swa_tf.refit_batch_norm(model, data_set(x, 16, labels=True))
    first, second = by_size(model)
    true_mean, true_variance = moments(x)
    np.testing.assert_allclose(
        first.moving_mean, true_mean, rtol=2e-5, atol=2e-6
    )
    np.testing.assert_allclose(
        first.moving_variance, true_variance, rtol=2e-5 if not mean else 1e-4
    )
    # The second sees the first normalize by the moments of each batch.
    dense = next(v for v in model.trainable_variables if v.shape == (4, 3))
    inputs = np.concatenate(
        [
            (batch - moments(batch)[0])
            / np.sqrt(moments(batch)[1] + 1e-3)
            @ dense.numpy().astype(np.float64)
            for batch in np.split(x.astype(np.float64), range(16, 101, 16))
        ]
    )
    tolerance = 1e-5 if not mean else 1e-2  # float32 inputs near 1000
    np.testing.assert_allclose(
        second.moving_variance, moments(inputs)[1], rtol=tolerance
    )
    np.testing.assert_allclose(
        second.moving_mean, moments(inputs)[0], atol=tolerance
    )


@pytest.mark.parametrize("shape", [(24, 5), (24, 7, 5), (24, 9, 8, 5)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "mixed_float16"])
def test_ranks_and_dtypes(shape, dtype):
    rng = np.random.default_rng(1)
    x = rng.normal(3.0, 2.0, shape).astype(
        "float64" if dtype == "float64" else "float32"
    )
    layer = built(layers.BatchNormalization(dtype=dtype), x)
    swa_tf.refit_batch_norm(layer, data_set(x, 7))
    seen = x.astype(np.float16) if dtype == "mixed_float16" else x
    mean, variance = moments(seen)
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-6)


def test_large_images_keep_their_digits():
    # A float32 sum over all samples would be off by 8e-4 here.
    x = np.random.default_rng(2).normal(size=[256, 32, 32, 4])
    x = np.maximum(x, 0.0).astype(np.float32)
    layer = built(layers.BatchNormalization(), x)
    swa_tf.refit_batch_norm(layer, data_set(x, 128))
    mean, variance = moments(x)
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-6)


@pytest.mark.parametrize("axis", [1, 2, -2])
def test_other_axes(axis):
    x = np.random.default_rng(3).normal(2.0, 3.0, [10, 4, 4, 6])
    x = x.astype(np.float32)
    layer = built(layers.BatchNormalization(axis=axis), x)
    swa_tf.refit_batch_norm(layer, data_set(x, 4))
    mean, variance = moments(np.moveaxis(x, axis, -1))
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_batch_size_does_not_matter_to_the_first_layer(batch_size):
    # Neighbours are alike, so batches differ in their means.
    x = np.repeat(np.random.default_rng(4).normal(size=[20, 3]), 10, axis=0)
    x = x.astype(np.float32)
    layer = built(layers.BatchNormalization(), x)
    swa_tf.refit_batch_norm(layer, data_set(x, batch_size))
    np.testing.assert_allclose(layer.moving_variance, moments(x)[1], rtol=1e-6)
    swa_tf.refit_batch_norm(
        layer, data_set(x, batch_size), variance="mean_of_batches"
    )
    batches = np.split(x, range(batch_size, 200, batch_size))
    published = np.mean([moments(batch)[1] for batch in batches], axis=0)
    np.testing.assert_allclose(
        layer.moving_variance, published, rtol=1e-6, atol=1e-12
    )


def test_masked_samples_do_not_count():
    x = np.random.default_rng(5).normal(size=[6, 5, 3]).astype(np.float32)
    x[:, -1] = 0.0
    x[2:4, -2] = 0.0  # padding, which Masking finds
    model = built(
        tf.keras.Sequential([layers.Masking(), layers.BatchNormalization()]), x
    )
    swa_tf.refit_batch_norm(model, data_set(x, 4))
    kept = x[np.any(x != 0.0, axis=-1)]
    (norm,) = norms(model)
    np.testing.assert_allclose(norm.moving_mean, moments(kept)[0], rtol=1e-5)
    np.testing.assert_allclose(
        norm.moving_variance, moments(kept)[1], rtol=1e-6
    )


def test_a_layer_used_twice_pools_both_uses():
    x = np.random.default_rng(6).normal(size=[20, 3]).astype(np.float32)
    norm = layers.BatchNormalization()
    inputs = tf.keras.Input([3])
    model = tf.keras.Model(
        inputs, layers.Add()([norm(inputs), norm(2.0 * inputs)])
    )
    swa_tf.refit_batch_norm(model, data_set(x, 8))
    mean, variance = moments(np.concatenate([x, 2 * x]))
    np.testing.assert_allclose(norm.moving_mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm.moving_variance, variance, rtol=1e-5)


def test_replicas_get_the_same_statistics():
    x = np.random.default_rng(7).normal(size=[20, 4]).astype(np.float32)
    with tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"]).scope():
        model = built(functional(), x)
    swa_tf.refit_batch_norm(model, data_set(x, 8))
    first, _ = by_size(model)
    variable = getattr(first.moving_variance, "value", first.moving_variance)
    if callable(variable):
        variable = first.moving_variance
    assert len(variable.values) == 2
    for component in variable.values:
        np.testing.assert_allclose(component, moments(x)[1], rtol=1e-5)


# --- Kinds of data ----------------------------------------------------------


def test_labels_weights_steps_and_iterables():
    x = np.random.default_rng(8).normal(size=[12, 4]).astype(np.float32)
    batches = [x[:4], x[4:8], x[8:]]
    y = np.zeros(4)
    model = built(functional(), x)
    first, _ = by_size(model)

    def check(data, n, steps=None):
        first.moving_mean.assign(np.zeros(4))
        swa_tf.refit_batch_norm(model, data, steps)
        np.testing.assert_allclose(
            first.moving_mean, moments(x[:n])[0], rtol=1e-5, atol=1e-6
        )

    check(batches, 12)
    check(((b, y) for b in batches), 12)
    check([(b, y, y) for b in batches], 12)
    check([(b,) for b in batches], 12)
    check([tf.constant(b) for b in batches], 8, steps=2)
    check(data_set(x, 4).repeat(), 12, steps=3)
    check(tf.data.Dataset.from_generator(lambda: batches, tf.float32), 12)


def test_several_inputs_and_dictionaries():
    rng = np.random.default_rng(9)
    a, b = rng.normal(size=[2, 10, 3]).astype(np.float32)
    inputs = [tf.keras.Input([3], name="a"), tf.keras.Input([3], name="b")]
    norm = layers.BatchNormalization()
    outputs = norm(layers.Subtract()(inputs))
    expected = moments(a - b)[0]
    as_list = tf.keras.Model(inputs, outputs)
    as_dict = tf.keras.Model(dict(zip("ab", inputs)), outputs)
    slices = tf.data.Dataset.from_tensor_slices
    for model, data in (
        (as_list, slices(((a, b), np.zeros(10)))),
        (as_list, slices(((a, b),))),
        (as_dict, slices({"a": a, "b": b})),
        (as_dict, slices(({"a": a, "b": b}, np.zeros(10)))),
    ):
        norm.moving_mean.assign(np.zeros(3))
        swa_tf.refit_batch_norm(model, data.batch(4))
        np.testing.assert_allclose(norm.moving_mean, expected, rtol=1e-5)


# --- What must not change ---------------------------------------------------


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_nothing_else_changes(make):
    x = np.random.default_rng(10).normal(size=[32, 4]).astype(np.float32)
    model = built(make(), x)
    optimizer = tf.keras.optimizers.Adam()
    model.compile(optimizer, "mse", jit_compile=False)
    model.fit(x, np.zeros([32, 3]), verbose=0)
    statistics = {
        id(v) for n in norms(model) for v in (n.moving_mean, n.moving_variance)
    }
    others = [v for v in model.variables if id(v) not in statistics]
    variables = optimizer.variables
    others += variables() if callable(variables) else variables
    before = bits(others)
    original = normalizing_call(model)
    swa_tf.refit_batch_norm(model, data_set(x, 10))
    assert bits(others) == before
    # And training goes on as usual, with the layers' own `call`.
    assert normalizing_call(model) is original
    old = bits([norms(model)[0].moving_mean])
    model.fit(x + 1.0, np.zeros([32, 3]), verbose=0)
    assert bits([norms(model)[0].moving_mean]) != old


def test_dropout_is_off():
    x = np.ones([64, 4], np.float32)
    model = built(
        tf.keras.Sequential([layers.Dropout(0.5), layers.BatchNormalization()]),
        x,
    )
    swa_tf.refit_batch_norm(model, data_set(x, 8))
    (norm,) = norms(model)
    np.testing.assert_array_equal(norm.moving_variance, np.zeros(4))


def test_frozen_layers_are_left_alone():
    x = np.random.default_rng(11).normal(5.0, 2.0, [32, 4]).astype(np.float32)
    model = built(functional(), x)
    first, second = by_size(model)
    first.trainable = False
    before = bits(first.weights)
    swa_tf.refit_batch_norm(model, data_set(x, 10))
    assert bits(first.weights) == before
    # The frozen layer normalized by 0 and 1, not by the batch.
    dense = next(v for v in model.trainable_variables if v.shape == (4, 3))
    inputs = (x / np.sqrt(1.001)) @ dense.numpy()
    np.testing.assert_allclose(
        second.moving_variance, moments(inputs)[1], rtol=1e-4
    )


def test_state_that_inference_writes_is_put_back():
    class Counter(tf.keras.layers.Layer):
        def build(self, input_shape):
            self.count = self.add_weight(
                shape=(), initializer="zeros", trainable=False, name="count"
            )

        def call(self, inputs):
            self.count.assign_add(1.0)
            return inputs

    x = np.ones([8, 4], np.float32)
    model = tf.keras.Sequential([Counter(), layers.BatchNormalization()])
    model(x)
    before = float(model.layers[0].count)
    swa_tf.refit_batch_norm(model, data_set(x, 4))
    assert float(model.layers[0].count) == before


def test_model_with_a_function_inside():
    class Compiled(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = layers.BatchNormalization()

        @tf.function
        def inner(self, inputs, training):
            return self.norm(inputs, training=training)

        def call(self, inputs, training=None):
            return self.inner(inputs, training=bool(training))

    x = np.random.default_rng(12).normal(5.0, 2.0, [32, 4]).astype(np.float32)
    model = Compiled()
    outer = tf.function(lambda x: model(x, training=False))
    model(x)  # traced before the refit ...
    swa_tf.refit_batch_norm(model, data_set(x, 32))
    np.testing.assert_allclose(model.norm.moving_mean, moments(x)[0], rtol=1e-5)
    expected = (x - moments(x)[0]) / np.sqrt(moments(x)[1] + 1e-3)
    half = x[:16]
    for run in (model, outer):  # ... and after: by its own statistics
        np.testing.assert_allclose(
            run(half), expected[:16], rtol=1e-3, atol=1e-4
        )


# --- Failures leave everything as it was ------------------------------------


def failing(x):
    yield x
    raise OSError("disk")


@pytest.mark.parametrize(
    ("data", "steps", "error", "match"),
    [
        (lambda x: [], None, ValueError, "at least one batch"),
        (lambda x: data_set(x, 4).take(0), None, ValueError, "at least one"),
        (failing, None, OSError, "disk"),
        (lambda x: [x, x], 3, ValueError, "`steps`=3.*Received: 2"),
        (lambda x: [x, x * np.nan], None, ValueError, "NaN or infinite"),
        (lambda x: [x, x / 0.0], None, ValueError, "NaN or infinite"),
        (lambda x: [x * 1e30], None, ValueError, "NaN or infinite"),
        (lambda x: [x[:0]], None, ValueError, "reach a batch-norm layer"),
        (lambda x: [x], 0, ValueError, "`steps` must be"),
        (lambda x: [x], 1.5, ValueError, "`steps` must be"),
        (lambda x: [x], True, ValueError, "`steps` must be"),
        (lambda x: data_set(x, 4).repeat(), None, ValueError, "infinite"),
        (lambda x: x, None, TypeError, "`dataset` must be"),
        (lambda x: None, None, TypeError, "`dataset` must be"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_failures(data, steps, error, match):
    x = np.random.default_rng(13).normal(size=[8, 4]).astype(np.float32)
    model = built(functional(), x)
    before = bits(model.variables)
    original = normalizing_call(model)
    with pytest.raises(error, match=match):
        swa_tf.refit_batch_norm(model, data(x), steps)
    assert bits(model.variables) == before
    assert normalizing_call(model) is original


def test_failure_of_the_second_layer_leaves_the_first():
    x = np.random.default_rng(14).normal(size=[8, 4]).astype(np.float32)
    model = built(functional(), x)
    dense = next(v for v in model.trainable_variables if v.shape == (4, 3))
    dense.assign(np.full([4, 3], 3e38))
    before = bits(model.variables)
    with pytest.raises(ValueError, match="NaN or infinite"):
        swa_tf.refit_batch_norm(model, [x])
    assert bits(model.variables) == before


def test_bad_arguments():
    x = np.ones([4, 4], np.float32)
    model = functional()
    with pytest.raises(ValueError, match='"pooled" or'):
        swa_tf.refit_batch_norm(model, [x], variance="unbiased")
    with pytest.raises(TypeError, match="`model` must be"):
        swa_tf.refit_batch_norm([model], [x])
    with pytest.raises(ValueError, match="unbuilt layers"):
        swa_tf.refit_batch_norm(Subclassed(), [x])
    with pytest.raises(TypeError, match="`dataset` must hold batches of inp"):
        swa_tf.refit_batch_norm(model, [x, None])
    with pytest.raises(RuntimeError, match="eager mode only"):
        tf.function(lambda: swa_tf.refit_batch_norm(model, [x]))()


def test_model_without_batch_norm_warns():
    model = tf.keras.Sequential([layers.Dense(1)])
    model(np.ones([1, 2]))
    with pytest.warns(UserWarning, match="holds no batch-norm layer") as caught:
        swa_tf.refit_batch_norm(model, failing(None))
    assert caught[0].filename == __file__


def test_frozen_model_warns():
    x = np.random.default_rng(28).normal(5.0, size=[8, 4]).astype(np.float32)
    model = built(functional(), x)
    model.trainable = False
    before = bits(model.variables)
    with pytest.warns(UserWarning, match="with `trainable=True` that the"):
        swa_tf.refit_batch_norm(model, [x])
    assert bits(model.variables) == before


def test_failing_write_puts_back_what_was_written(monkeypatch):
    x = np.random.default_rng(22).normal(size=[8, 4]).astype(np.float32)
    model = built(functional(), x)
    before = bits(model.variables)
    write, written = variables_lib.write, []

    def fails_at_third(variable, value):
        changes = not np.array_equal(variable.numpy(), value.numpy())
        if changes and "moving_" in variable.name:
            written.append(variable)  # a new value, or the old one put back
            if len(written) == 3:
                raise KeyboardInterrupt
        write(variable, value)

    monkeypatch.setattr(variables_lib, "write", fails_at_third)
    with pytest.raises(KeyboardInterrupt):
        swa_tf.refit_batch_norm(model, [x])
    assert len(written) == 2 + 1 + 2  # written, failed, put back
    assert bits(model.variables) == before


def test_functions_run_as_before():
    x = np.random.default_rng(23).normal(size=[8, 4]).astype(np.float32)
    model = built(functional(), x)
    for eagerly in (True, False):
        tf.config.run_functions_eagerly(eagerly)
        swa_tf.refit_batch_norm(model, [x])
        assert tf.config.functions_run_eagerly() == eagerly
        np.testing.assert_allclose(
            by_size(model)[0].moving_mean, moments(x)[0], rtol=1e-5
        )


def test_inside_the_scope_of_a_strategy():
    x = np.random.default_rng(24).normal(size=[20, 4]).astype(np.float32)
    with tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"]).scope():
        model = built(functional(), x)
        swa_tf.refit_batch_norm(model, data_set(x, 8))
    first, _ = by_size(model)
    np.testing.assert_allclose(first.moving_variance, moments(x)[1], rtol=1e-5)


def test_subclass_keeps_its_own_call():
    class Rectified(layers.BatchNormalization):
        def call(self, inputs, training=None, mask=None):
            return tf.nn.relu(super().call(inputs, training=training))

    x = np.random.default_rng(25).normal(2.0, 3.0, [32, 4]).astype(np.float32)
    model = tf.keras.Sequential([Rectified(), layers.BatchNormalization()])
    built(model, x)
    swa_tf.refit_batch_norm(model, [x])
    first, second = model.layers
    np.testing.assert_allclose(first.moving_mean, moments(x)[0], rtol=1e-5)
    normal = (x - moments(x)[0]) / np.sqrt(moments(x)[1] + 1e-3)
    np.testing.assert_allclose(
        second.moving_mean, np.maximum(normal, 0.0).mean(0), rtol=1e-4
    )


def test_long_axis_keeps_its_digits():
    x = np.random.default_rng(26).normal(1000.0, 0.1, [2, 100_000, 3])
    x = x.astype(np.float32)
    layer = built(layers.BatchNormalization(), x)
    swa_tf.refit_batch_norm(layer, [x])
    np.testing.assert_allclose(layer.moving_variance, moments(x)[1], rtol=1e-6)


def test_variance_about_a_mean_that_float32_cannot_hold():
    low = np.float32(1000.0)
    x = np.array([[low], [np.nextafter(low, np.float32(2000.0))]])
    layer = built(layers.BatchNormalization(), x)
    swa_tf.refit_batch_norm(layer, [x])
    np.testing.assert_allclose(layer.moving_variance, moments(x)[1], rtol=1e-6)


def test_time_distributed():
    x = np.random.default_rng(27).normal(size=[6, 5, 3]).astype(np.float32)
    norm = layers.BatchNormalization()
    model = tf.keras.Sequential([layers.TimeDistributed(norm)])
    built(model, x)
    swa_tf.refit_batch_norm(model, data_set(x, 4))
    np.testing.assert_allclose(norm.moving_variance, moments(x)[1], rtol=1e-5)


def test_unreached_layer_warns():
    class Two(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.main = layers.BatchNormalization(name="main")
            self.auxiliary = layers.BatchNormalization(name="auxiliary")

        def call(self, inputs, training=None):
            outputs = self.main(inputs, training=training)
            return self.auxiliary(outputs) if training else outputs

    x = np.random.default_rng(15).normal(size=[8, 4]).astype(np.float32)
    model = Two()
    model(x, training=True)
    before = bits(model.auxiliary.weights)
    with pytest.warns(UserWarning, match="as they are: auxiliary") as caught:
        swa_tf.refit_batch_norm(model, [x])
    assert caught[0].filename == __file__
    assert bits(model.auxiliary.weights) == before
    np.testing.assert_allclose(model.main.moving_mean, moments(x)[0], rtol=1e-5)
