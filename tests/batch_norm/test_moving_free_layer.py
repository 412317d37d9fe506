"""`MovingFreeBatchNormalization` in a v1 graph, where no update runs itself."""

import numpy as np
import pytest
import tensorflow as tf

import swa_tf
from swa_tf.support import compat

v1 = tf.compat.v1
pytestmark = pytest.mark.skipif(
    compat.KERAS_3, reason="Keras 3 has no layers in v1 graphs"
)
X = np.random.default_rng(0).normal(5.0, 2.0, [24, 4]).astype(np.float32)
X64 = X.astype(np.float64)
PARTS = (slice(0, 10), slice(10, 24))


@pytest.fixture(params=["flag", "tensor", "tensor, control flow 1"])
def graph(request):
    """A layer in a graph; at the end, a flag that is true updates nothing."""
    if request.param.endswith("1"):
        v1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default(), v1.Session() as session:
            inputs = v1.placeholder(tf.float32, [None, 4])
            flag = v1.placeholder_with_default(False, [])
            layer = swa_tf.MovingFreeBatchNormalization(epsilon=0.0)
            given = False if request.param == "flag" else flag
            outputs = layer(inputs, training=True, use_moving_statistics=given)
            updates = v1.get_collection(v1.GraphKeys.UPDATE_OPS)
            session.run(v1.global_variables_initializer())
            yield session, inputs, outputs, updates, layer
            if given is flag:
                before = statistics(session, layer)
                session.run([outputs, updates], {inputs: X, flag: True})
                np.testing.assert_equal(statistics(session, layer), before)
    finally:
        v1.enable_control_flow_v2()


def statistics(session, layer):
    names = ("mean", "variance", "n_updates", "n_samples")
    return session.run([getattr(layer, name) for name in names])


def check_both_parts_are_in(session, layer):
    mean, variance, n_updates, n_samples = statistics(session, layer)
    np.testing.assert_allclose(mean, X64.mean(0), rtol=1e-5)
    np.testing.assert_allclose(variance, X64.var(0), rtol=1e-5)
    assert (n_updates, n_samples) == (2, 24)


def test_outputs_fill_it(graph):
    session, inputs, outputs, _, layer = graph
    for part in PARTS:
        found = session.run(outputs, {inputs: X[part]})
        expected = (X64[part] - X64[part].mean(0)) / X64[part].std(0)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    check_both_parts_are_in(session, layer)


def test_updates_fill_it_once(graph):
    session, inputs, outputs, updates, layer = graph
    assert len(updates) == 1
    for part in PARTS:
        session.run([updates, outputs], {inputs: X[part]})
    check_both_parts_are_in(session, layer)


def test_a_train_op_depends_on_the_updates(graph):
    session, inputs, _, updates, layer = graph
    with tf.control_dependencies(updates):
        train = tf.identity(1.0)
    session.run(train, {inputs: X})
    assert statistics(session, layer)[2:] == [1, 24]


def test_inference_needs_no_update():
    with tf.Graph().as_default(), v1.Session() as session:
        inputs = v1.placeholder(tf.float32, [None, 4])
        layer = swa_tf.MovingFreeBatchNormalization(epsilon=0.0)
        filling = layer(inputs, training=True, use_moving_statistics=False)
        outputs = layer(inputs, use_moving_statistics=False)
        moving = layer(inputs, training=True)
        assert len(v1.get_collection(v1.GraphKeys.UPDATE_OPS)) == 1
        session.run(v1.global_variables_initializer())
        with pytest.raises(tf.errors.InvalidArgumentError, match="no refit"):
            session.run(outputs, {inputs: X})
        session.run(filling, {inputs: X})
        expected = (X64 - X64.mean(0)) / X64.std(0)
        np.testing.assert_allclose(
            session.run(outputs, {inputs: X}), expected, rtol=1e-4, atol=1e-5
        )
        session.run(moving, {inputs: X})
        assert statistics(session, layer)[2:] == [1, 24]
        session.run(layer.reset_statistics())
        for found, value in zip(statistics(session, layer), [0, 1, 0, 0]):
            np.testing.assert_array_equal(found, np.full_like(found, value))
