"""What our exponential average does otherwise than TensorFlow's, and does it.

One test a row of the second table of docs/ema.md, in its order.
"""

import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

import swa_tf

v1 = tf.compat.v1
ROOT = pathlib.Path(__file__).resolve().parents[2]

TENSORFLOW = tf.train.ExponentialMovingAverage
CLASSES = [TENSORFLOW, swa_tf.ExponentialMovingAverage]


def _initialize(session):
    session.run(v1.global_variables_initializer())


def _local(strategy, value):
    return [v.numpy() for v in strategy.experimental_local_results(value)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype):
    variable = tf.Variable(tf.ones([2], dtype))
    theirs, ours = TENSORFLOW(0.999), swa_tf.ExponentialMovingAverage(0.999)
    for ema in (theirs, ours):
        ema.apply([variable])
    variable.assign(tf.fill([2], tf.constant(1.5, dtype)))
    for _ in range(10):
        for ema in (theirs, ours):
            ema.apply([variable])
    moved = 1.5 - 0.5 * 0.999**10
    their, our = theirs.average(variable), ours.average(variable)
    assert (their.dtype, our.dtype) == (variable.dtype, tf.float32)
    np.testing.assert_allclose(our, [moved] * 2, rtol=1e-6)
    assert np.abs(their.numpy().astype(float) - moved).max() > 1e-3
    swa_tf.assign_averages(ours, [variable])  # where `assign` would not cast
    np.testing.assert_allclose(
        variable.numpy().astype(float), [moved] * 2, rtol=2.0**-8
    )


def test_keras_3_variables():
    layer = tf.keras.layers.Dense(1)
    layer.build([None, 1])
    if not isinstance(layer.kernel, tf.Variable):
        with pytest.raises(AttributeError):
            TENSORFLOW(0.5).apply(layer.trainable_variables)
    ema = swa_tf.ExponentialMovingAverage(0.5)
    ema.apply(layer.trainable_variables)
    assert ema.average(layer.kernel).shape == [1, 1]


def test_checkpoint_of_the_object():
    with pytest.raises(ValueError, match="trackable"):
        tf.train.Checkpoint(ema=TENSORFLOW(0.5))
    tf.train.Checkpoint(ema=swa_tf.ExponentialMovingAverage(0.5))


def test_decay_out_of_range():
    TENSORFLOW(1.5)
    with pytest.raises(ValueError, match="`decay` must be"):
        swa_tf.ExponentialMovingAverage(1.5)


def test_decay_of_float64():
    decay, variable = tf.Variable(0.5, dtype=tf.float64), tf.Variable(1.0)
    with pytest.raises(ValueError, match="float64"):
        TENSORFLOW(decay).apply([variable])
    swa_tf.ExponentialMovingAverage(decay).apply([variable])


def test_variable_twice():
    for ema_class, expected in zip(CLASSES, (1.75, 1.0)):
        variable = tf.Variable(1.0)
        ema = ema_class(0.5)
        ema.apply([variable])
        variable.assign(2.0)
        if ema_class is TENSORFLOW:
            ema.apply([variable, variable])
        else:
            with pytest.raises(ValueError, match="once"):
                ema.apply([variable, variable])
        assert float(ema.average(variable)) == expected


@pytest.mark.parametrize("make", [list, lambda: None])
def test_nothing_to_average(make):
    TENSORFLOW(0.5).apply(make())
    with pytest.raises(ValueError, match="`var_list` must"):
        swa_tf.ExponentialMovingAverage(0.5).apply(make())


def test_generator():
    for ema_class in CLASSES:
        variable = tf.Variable(1.0)
        ema = ema_class(0.5)
        ema.apply(each for each in [variable])
        is_averaged = ema.average(variable) is not None
        assert is_averaged == (ema_class is not TENSORFLOW)


def test_variables_made_by_the_function():
    def first_average(ema):
        made = []

        @tf.function
        def step():
            if not made:
                made.append(tf.Variable(3.0))
            made[0].assign(2.0)
            ema.apply(made)

        step()
        return float(ema.average(made[0]))

    with pytest.raises(RuntimeError):
        first_average(TENSORFLOW(0.5))
    assert first_average(swa_tf.ExponentialMovingAverage(0.5)) == 2.0


def test_debiasing_by_the_second_op():
    for ema_class, expected in zip(CLASSES, (0.5, 1.0)):
        with tf.Graph().as_default(), v1.Session() as session:
            tensor = tf.constant(1.0)
            ema = ema_class(0.5, zero_debias=True)
            ema.apply([tensor])
            second = ema.apply([tensor])
            _initialize(session)
            session.run(second)
            assert session.run(ema.average(tensor)) == expected


def test_mirrored_variable_outside_its_scope():
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    with strategy.scope():
        variable = tf.Variable(1.0)
    with pytest.raises(TypeError):
        TENSORFLOW(0.5).apply([variable])
    ema = swa_tf.ExponentialMovingAverage(0.5)
    ema.apply([variable])
    variable.assign(2.0)
    ema.apply([variable])
    assert _local(strategy, ema.average(variable)) == [1.5, 1.5]


def test_variable_that_is_a_mean_over_replicas():
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    for ema_class, expected in zip(CLASSES, ([0.5, 1.5], [1.0, 1.0])):
        with strategy.scope():
            variable = tf.Variable(
                0.0,
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.MEAN,
            )
            ema = ema_class(0.5)
            ema.apply([variable])
            for component, value in zip(variable.values, (1.0, 3.0)):
                component.assign(value)
            ema.apply([variable])
        assert _local(strategy, ema.average(variable)) == expected


def test_tensors_in_replica_context():
    with tf.Graph().as_default():
        strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
        with strategy.scope():
            for ema_class in CLASSES:
                ema = ema_class(0.5)

                def step(ema=ema):
                    ema.apply([tf.zeros([]) + 1.0])

                with pytest.raises(ValueError, match="replica"):
                    strategy.run(step)


def test_reference_variables():
    for ema_class in CLASSES:
        with tf.Graph().as_default():
            variable = v1.Variable(1.0, use_resource=False)
            ema = ema_class(0.5)
            ema.apply([variable])
            is_reference = ema.average(variable).dtype != tf.float32
            assert is_reference == (ema_class is TENSORFLOW)


def test_names_in_eager_mode():
    variable = tf.Variable(1.0, name="some_variable")
    with tf.name_scope("scope"):
        for ema_class in CLASSES:
            one, two = ema_class(0.5), ema_class(0.5)
            for ema in (one, two):
                ema.apply([variable])
            names = [ema.average(variable).name for ema in (one, two)]
            name = "some_variable/ExponentialMovingAverage"
            if ema_class is TENSORFLOW:
                assert names == [f"{name}:0", f"{name}_1:0"]
            else:
                assert names == [f"scope/{name}:0"] * 2


def test_the_number_of_models_in_a_graph():
    with tf.Graph().as_default(), v1.Session() as session:
        ema = swa_tf.ExponentialMovingAverage(0.5)
        update = ema.apply([tf.Variable(1.0)])
        _initialize(session)
        session.run(update)
        assert session.run(ema.n_models) == 1
        assert ema.n_models in v1.local_variables()


def test_the_table_lists_every_test():
    text = (ROOT / "docs" / "ema.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\|.*\|.*\|.*\| `(test_\w+)` \|$", text, re.M)
    tests = [name for name in globals() if name.startswith("test_")]
    assert listed == [
        t for t in tests if t != "test_the_table_lists_every_test"
    ]
