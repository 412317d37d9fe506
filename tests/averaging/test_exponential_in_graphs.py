"""Exponential averages of the tensors and checkpoints of v1 graphs."""

import math

import numpy as np
import pytest
import tensorflow as tf

import swa_tf

v1 = tf.compat.v1
EMA = swa_tf.ExponentialMovingAverage


# --- Tensors of v1 graphs that start with the first average -----------------


def _debiased(values, coefficients):
    """The mean of `values` with the weights that the updates leave them."""
    weights = [
        c * math.prod(1.0 - later for later in coefficients[i + 1 :])
        for i, c in enumerate(coefficients)
    ]
    return np.dot(weights, values) / np.sum(weights)


VALUES = [5.0, 1.0, -2.0, 4.0, 8.0, 3.0]


@pytest.mark.parametrize("zero_debias", [False, True])
@pytest.mark.parametrize(
    ("kwargs", "due", "coefficients"),
    [
        # 1 - decay is 1/4; warm_up / (n + warm_up) where that is more.
        ({"warm_up": 1}, range(6), [1, 1 / 2, 1 / 3, 1 / 4, 1 / 4, 1 / 4]),
        ({"when": (1, 2)}, [1, 3, 5], [1, 1 / 4, 1 / 4]),
        ({"when": (1, 2), "warm_up": 1}, [1, 3, 5], [1, 1 / 2, 1 / 3]),
        ({"warm_up": 1, "num_updates": 1}, range(6), [1] + [9 / 11] * 5),
    ],
    ids=str,
)
def test_a_tensor_that_starts_with_its_first_average(
    kwargs, due, coefficients, zero_debias
):
    kwargs = dict(kwargs)
    if "when" in kwargs:
        kwargs["when"] = swa_tf.AveragingSchedule(*kwargs["when"])
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [])
        ema = EMA(0.75, zero_debias=zero_debias, **kwargs)
        update, reset = ema.apply([x]), ema.reset()
        session.run(v1.global_variables_initializer())
        for _ in range(2):  # after a reset as at first
            values, used = [], []
            for i, value in enumerate(VALUES):
                session.run(update, {x: value})
                if i in due:
                    values.append(value)
                    used.append(coefficients[len(used)])
                expected = _debiased(values, used) if used else 0.0
                np.testing.assert_allclose(
                    session.run(ema.average(x)), expected, rtol=1e-6
                )
            session.run(reset)
            assert session.run(ema.average(x)) == 0.0


@pytest.mark.parametrize("zero_debias", [False, True])
def test_a_tensor_that_joins_after_the_first_average(zero_debias):
    """It starts at zero; `zero_debias` takes that out of it, exactly."""
    with tf.Graph().as_default(), v1.Session() as session:
        x, y = (v1.placeholder(tf.float32, []) for _ in range(2))
        ema = EMA(0.75, zero_debias=zero_debias, warm_up=1)
        of_x, of_both = ema.apply([x]), ema.apply([x, y])
        session.run(v1.global_variables_initializer())
        session.run(of_x, {x: 1.0})
        average, values, used = 0.0, [], []
        for value, c in zip(VALUES, [1 / 2, 1 / 3, 1 / 4, 1 / 4, 1 / 4, 1 / 4]):
            session.run(of_both, {x: 1.0, y: value})
            values.append(value)
            used.append(c)
            average += c * (value - average)
            np.testing.assert_allclose(
                session.run(ema.average(y)),
                _debiased(values, used) if zero_debias else average,
                rtol=1e-6,
            )
        assert session.run(ema.average(x)) == 1.0


def test_a_debiased_tensor_of_unknown_shape():
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32)
        ema = EMA(0.75, zero_debias=True)
        update = ema.apply([x])
        start = {x: [0.0, 0.0]}  # of the shape that the average is to have
        session.run(v1.global_variables_initializer(), start)
        session.run(update, {x: [1.0, 2.0]})
        session.run(update, {x: [5.0, 2.0]})
        # (0.75 * 0.25 * 1 + 0.25 * 5) / (1 - 0.75^2)
        average = session.run(ema.average(x))
        np.testing.assert_allclose(average, [1.4375 / 0.4375, 2.0], rtol=1e-6)


def test_a_debiased_tensor_is_saved(tmp_path):
    path = str(tmp_path / "model")
    seen = []
    for restore in (False, True):
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, [])
            ema = EMA(0.75, zero_debias=True, warm_up=1)
            update = ema.apply([x])
            saver = v1.train.Saver()
            session.run(v1.global_variables_initializer())
            if restore:
                saver.restore(session, path)
            for value in VALUES[3 * restore :][:3]:
                session.run(update, {x: value})
            seen.append(session.run(ema.average(x)))
            saver.save(session, path)
    coefficients = [1, 1 / 2, 1 / 3, 1 / 4, 1 / 4, 1 / 4]
    for n, average in zip((3, 6), seen):
        expected = _debiased(VALUES[:n], coefficients[:n])
        np.testing.assert_allclose(average, expected, rtol=1e-6)


# --- Checkpoints of v1 graphs, written with one class and read by the other --

CLASSES = [tf.train.ExponentialMovingAverage, EMA]


def _graph(ema_class, **kwargs):
    v = tf.Variable([1.0, 2.0], name="v")
    frozen = tf.Variable(3.0, name="frozen", trainable=False)
    ema = ema_class(0.75, **kwargs)
    tensor = tf.multiply(v, 2.0, name="tensor")
    return v, frozen, tensor, ema, ema.apply([v, tensor])


@pytest.mark.parametrize("writer", CLASSES)
@pytest.mark.parametrize("reader", CLASSES)
@pytest.mark.parametrize("zero_debias", [False, True])
def test_saver_of_the_other_class(tmp_path, writer, reader, zero_debias):
    kwargs = {"zero_debias": zero_debias}
    path = str(tmp_path / "model")
    with tf.Graph().as_default(), v1.Session() as session:
        v, frozen, tensor, ema, update = _graph(writer, **kwargs)
        session.run(v1.global_variables_initializer())
        session.run([v.assign([5.0, 10.0]), frozen.assign(7.0)])
        session.run(update)
        session.run(update)
        v1.train.Saver().save(session, path)
        averages = session.run([ema.average(v), ema.average(tensor)])
        session.run(update)
        expected = session.run([ema.average(v), ema.average(tensor)])
    # All is restored, and goes on.
    with tf.Graph().as_default(), v1.Session() as session:
        v, frozen, tensor, ema, update = _graph(reader, **kwargs)
        v1.train.Saver().restore(session, path)
        restored = session.run([ema.average(v), ema.average(tensor)])
        np.testing.assert_array_equal(restored, averages)
        session.run(update)
        np.testing.assert_allclose(
            session.run([ema.average(v), ema.average(tensor)]),
            expected,
            rtol=2e-7,
        )
    # The averages are restored as the weights.
    with tf.Graph().as_default(), v1.Session() as session:
        v = tf.Variable([1.0, 2.0], name="v")
        frozen = tf.Variable(3.0, name="frozen", trainable=False)
        ema = reader(0.75, **kwargs)
        v1.train.Saver(ema.variables_to_restore()).restore(session, path)
        np.testing.assert_array_equal(session.run(v), averages[0])
        assert session.run(frozen) == 7.0


def test_averages_of_a_checkpoint_are_swapped_in_a_graph(tmp_path):
    """TensorFlow's checkpoints have no number of models."""
    path = str(tmp_path / "model")
    with tf.Graph().as_default(), v1.Session() as session:
        v, *_, update = _graph(tf.train.ExponentialMovingAverage)
        session.run(v1.global_variables_initializer())
        session.run(v.assign([5.0, 10.0]))
        session.run(update)
        v1.train.Saver().save(session, path)
    with tf.Graph().as_default(), v1.Session() as session:
        v, _, _, ema, _ = _graph(EMA)
        swap = swa_tf.assign_averages(ema, [v])
        v1.train.Saver().restore(session, path)
        session.run(swap)
        np.testing.assert_array_equal(session.run(v), [2.0, 4.0])
