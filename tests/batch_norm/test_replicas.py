"""Refits on several replicas: what one gives on the whole."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import swa_tf

layers = tf.keras.layers
X = np.random.default_rng(0).normal(2.0, 3.0, [45, 8, 8, 3])
X = X.astype(np.float32)
DEVICES = ["/cpu:0", "/cpu:1"]


def make(batch_norm=layers.BatchNormalization):
    return tf.keras.Sequential(
        [
            tf.keras.Input([8, 8, 3]),
            layers.Conv2D(4, 3, padding="same"),
            batch_norm(),
            layers.ReLU(),
            layers.Dropout(0.5),
            layers.Conv2D(5, 3),
            batch_norm(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(6),
            batch_norm(),
        ]
    )


def norms(model):
    return [
        each
        for each in model.layers
        if isinstance(each, layers.BatchNormalization)
    ]


def data(size=11):  # the last batch is of one sample
    slices = (X, np.zeros(len(X)))
    return tf.data.Dataset.from_tensor_slices(slices).batch(size)


def components(variable):
    variable = getattr(variable, "_value", variable)
    return [v.numpy() for v in getattr(variable, "values", [variable])]


@pytest.fixture(scope="module")
def mirrored():
    strategy = tf.distribute.MirroredStrategy(DEVICES)
    one = make()
    with strategy.scope():
        two = make()
    two.set_weights(one.get_weights())
    swa_tf.refit_batch_norm(one, data())
    return strategy, one, two


def split(size=11):
    return [X[i : i + size] for i in range(0, len(X), size)]


@pytest.mark.parametrize(
    "kind", ["dataset", "distributed", "function", "list", "steps"]
)
def test_two_replicas_give_what_one_gives(mirrored, kind):
    strategy, one, two = mirrored
    for norm in norms(two):
        norm.moving_mean.assign(np.full(norm.moving_mean.shape, -7.0))
        norm.moving_variance.assign(np.full(norm.moving_mean.shape, 7.0))
    dataset, steps = data(), None
    if kind == "distributed":
        dataset = strategy.experimental_distribute_dataset(dataset)
    elif kind == "function":
        # Each replica takes batches of its own: halves of the above.
        parts = [(s[: -(-len(s) // 2)], s[-(-len(s) // 2) :]) for s in split()]
        signature = tf.TensorSpec([None, 8, 8, 3])
        halves = tf.data.Dataset.from_generator(
            lambda: (half for pair in parts for half in pair),
            output_signature=signature,
        )
        dataset = strategy.distribute_datasets_from_function(lambda _: halves)
    elif kind == "list":
        dataset = split()
    elif kind == "steps":
        dataset, steps = dataset.repeat(), 5
    swa_tf.refit_batch_norm(two, dataset, steps)
    for a, b in zip(norms(one), norms(two)):
        for name in ("moving_mean", "moving_variance"):
            expected = np.array(getattr(a, name))
            first, second = components(getattr(b, name))
            np.testing.assert_array_equal(first, second)
            np.testing.assert_allclose(first, expected, rtol=2e-5, atol=2e-6)


def test_against_numpy(mirrored):
    _, _, two = mirrored
    swa_tf.refit_batch_norm(two, data())
    kernel = two.layers[0].kernel
    inputs = tf.nn.conv2d(
        X.astype(np.float64), np.array(kernel, np.float64), 1, "SAME"
    ).numpy()
    first = norms(two)[0]
    np.testing.assert_allclose(
        components(first.moving_mean)[1], inputs.mean((0, 1, 2)), rtol=1e-5
    )
    np.testing.assert_allclose(
        components(first.moving_variance)[1], inputs.var((0, 1, 2)), rtol=1e-5
    )


def test_the_next_refit_traces_nothing(mirrored, monkeypatch):
    strategy, _, two = mirrored
    refit = swa_tf.BatchNormRefit(two)
    refit(data())
    monkeypatch.setattr(
        type(strategy), "run", lambda *args, **kwargs: pytest.fail("traced")
    )
    refit(data())


def test_far_means_on_two_replicas():
    with tf.distribute.MirroredStrategy(DEVICES).scope():
        layer = layers.BatchNormalization()
        layer.build([None, 3])
    x = np.random.default_rng(1).normal(1000.0, 0.1, [101, 3])
    x = np.sort(x, axis=0).astype(np.float32)  # replicas differ in their means
    swa_tf.refit_batch_norm(layer, [x[:50], x[50:]])
    for found in components(layer.moving_variance):
        np.testing.assert_allclose(
            found, x.astype(np.float64).var(0), rtol=1e-6
        )


def test_moving_free_on_two_replicas():
    with tf.distribute.MirroredStrategy(DEVICES).scope():
        layer = swa_tf.MovingFreeBatchNormalization()
        layer.build([None, 8, 8, 3])
    swa_tf.refit_batch_norm(layer, data())
    for found in components(layer.variance):
        np.testing.assert_allclose(found, X.var((0, 1, 2)), rtol=1e-5)
    assert components(layer.n_updates) == [5, 5]
    assert components(layer.n_samples) == [45 * 64] * 2


def test_only_the_inputs_of_a_batch_are_split(mirrored):
    _, one, model = mirrored
    batches = [(X[:11], None), (X[11:13], "labels", tf.constant(1.0))]
    swa_tf.refit_batch_norm(one, batches)
    swa_tf.refit_batch_norm(model, batches)
    for expected, found in zip(norms(one), norms(model)):
        np.testing.assert_allclose(
            found.moving_mean, expected.moving_mean, rtol=1e-5, atol=1e-6
        )


def test_a_loop_is_refused():
    class Looping(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = layers.BatchNormalization()

        def call(self, inputs, training=None):
            def body(i):
                self.norm(inputs, training=training)
                return (i + 1,)

            tf.while_loop(lambda i: i < 2, body, (0,))
            return inputs

    with tf.distribute.MirroredStrategy(DEVICES).scope():
        model = Looping()
        model.norm.build([None, 8, 8, 3])
    with pytest.raises(RuntimeError, match="outside of loops"):
        swa_tf.refit_batch_norm(model, data())
    np.testing.assert_array_equal(
        components(model.norm.moving_mean)[1], np.zeros(3)
    )


def test_distributed_data_for_a_model_of_one_replica():
    strategy = tf.distribute.MirroredStrategy(DEVICES)
    dataset = strategy.experimental_distribute_dataset(data())
    with pytest.raises(ValueError, match="strategy of the model"):
        swa_tf.refit_batch_norm(make(), dataset)


def test_infinite_distributed_data():
    strategy = tf.distribute.MirroredStrategy(DEVICES)
    dataset = strategy.experimental_distribute_dataset(data().repeat())
    with pytest.raises(ValueError, match="infinite"):
        swa_tf.refit_batch_norm(make(), dataset)


PARAMETER_SERVER = """
import os
import sys

import numpy as np
import tensorflow as tf

import swa_tf
from tests.batch_norm import test_replicas

worker, server, chief = ([f"127.0.0.1:{port}"] for port in sys.argv[1:4])
cluster = {"worker": worker, "ps": server}
servers = [
    tf.distribute.Server(cluster, job, 0, protocol="grpc") for job in cluster
]
resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
    tf.train.ClusterSpec({**cluster, "chief": chief}),
    task_type="chief",
    task_id=0,
    rpc_layer="grpc",
)
strategy = tf.distribute.ParameterServerStrategy(resolver)
one = test_replicas.make()
with strategy.scope():
    two = test_replicas.make()
two.set_weights(one.get_weights())
for model in (one, two, two):
    swa_tf.refit_batch_norm(model, test_replicas.data())
for a, b in zip(one.get_weights(), two.get_weights()):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
assert np.any(test_replicas.norms(two)[0].moving_mean != 0.0)
print("equal", flush=True)
os._exit(0)  # the servers have no end of their own
"""


@pytest.mark.slow
def test_parameter_servers():
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [str(each.getsockname()[1]) for each in sockets]
    root = pathlib.Path(__file__).resolve().parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", PARAMETER_SERVER, *ports],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        timeout=120,
    )
    assert ended.stdout.endswith("equal\n"), ended.stderr[-3000:]
