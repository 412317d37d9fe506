"""One small training with `fit`, for the tests of `SWACallback`."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

import swa_tf

N_BATCHES, BATCH_SIZE = 4, 8
EPOCHS = 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=[N_BATCHES * BATCH_SIZE, 4]).astype(np.float32)
Y = RNG.normal(size=[N_BATCHES * BATCH_SIZE, 1]).astype(np.float32)
BATCHES = list(zip(np.split(X, N_BATCHES), np.split(Y, N_BATCHES)))
EXHAUSTIVE = [pytest.mark.slow, pytest.mark.exhaustive]
MODES = {
    "compiled": {"run_eagerly": False},
    "jit_compile": {"run_eagerly": False, "jit_compile": True},
    "eager": {},
}


@pytest.fixture
def quick_to_trace():
    """Switches off TensorFlow's graph optimizer: a third of a `fit` here.

    With it, `fit` is tested in the matrix of test_keras_training.py and in
    test_distribution.py.
    """
    tf.config.optimizer.set_experimental_options(
        {"disable_meta_optimizer": True}
    )
    yield
    tf.config.optimizer.set_experimental_options(
        {"disable_meta_optimizer": False}
    )


def slow(*values):
    """A parameter beside a quick one of its kind, for `.ci/run`."""
    return pytest.param(*values, marks=pytest.mark.slow)


def exhaustive(*values):
    """A parameter beside a quick one of its kind, for `.ci/run exhaustive`."""
    return pytest.param(*values, marks=EXHAUSTIVE)


def covering(together, *axes):
    """The combinations, of which some are quick: any values of so many axes.

    With 1 each value occurs in the quick ones, with 2 each pair of values.
    """
    cases = list(itertools.product(*(range(len(axis)) for axis in axes)))

    def parts(case):
        return set(itertools.combinations(enumerate(case), together))

    missing, quick = set().union(*map(parts, cases)), set()
    while missing:
        best = max(cases, key=lambda case: len(parts(case) & missing))
        quick.add(best)
        missing -= parts(best)
    for case in cases:
        values = [axis[i] for axis, i in zip(axes, case)]
        yield pytest.param(*values) if case in quick else exhaustive(*values)


def two_replicas():
    """A strategy of two replicas, which is not mixed up with others.

    Collective operations of two strategies in one process are, in TensorFlow.
    """
    return tf.distribute.MirroredStrategy(
        ["/cpu:0", "/cpu:1"],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )


def descend(model, optimizer, inputs, targets):
    """A step of training, for loops of one's own."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(inputs, training=True) - targets) ** 2)
    weights = model.trainable_variables
    gradients = tape.gradient(loss, weights)
    optimizer.apply_gradients(zip(gradients, weights))


def data():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(BATCH_SIZE)


def make_model(optimizer=None, batch_norm=True, **compile_arguments):
    """A model with batch norm, whose weights do not settle: the rate is high.

    It trains eagerly unless told otherwise, as tracing takes most of the time.
    """
    tf.keras.utils.set_random_seed(1)
    norm = [tf.keras.layers.BatchNormalization()] if batch_norm else []
    model = tf.keras.Sequential(
        [
            tf.keras.Input([4]),
            tf.keras.layers.Dense(5),
            *norm,
            tf.keras.layers.Dense(1),
        ]
    )
    optimizer = optimizer or tf.keras.optimizers.SGD(0.1, momentum=0.9)
    # Not Keras 3's "auto", which takes XLA, and XLA takes its time.
    settings = {
        "run_eagerly": True,
        "jit_compile": False,
        **compile_arguments,
    }
    model.compile(optimizer, "mse", **settings)
    return model


def make_plain(optimizer=None, **compile_arguments):
    """The same without batch norm, where nothing is to be refitted."""
    return make_model(optimizer, batch_norm=False, **compile_arguments)


def fit(model, *callbacks, **arguments):
    """Trains `model`, with validation in one batch."""
    settings = {"epochs": EPOCHS, "validation_data": (X, Y), **arguments}
    if isinstance(settings["validation_data"], tuple):
        settings["validation_batch_size"] = len(X)
    return model.fit(
        X,
        Y,
        batch_size=BATCH_SIZE,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
        **settings,
    )


def callback(start_epoch=2, **arguments):
    settings = {"refit_data": data(), "verbose": 0, **arguments}
    return swa_tf.SWACallback(start_epoch, **settings)


def weights(model):
    return [v.numpy() for v in model.weights]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        np.testing.assert_array_equal(a, b)
