"""Differences of our averages from TensorFlow's.

One test a row of the second table of docs/ema.md, in its order, for both of
our classes.
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


def exponential(*args, **kwargs):
    return swa_tf.ExponentialMovingAverage(*args, **kwargs)


def equal(decay, zero_debias=False):
    """Coefficients apart, `StochasticWeightAveraging` does as the other."""
    return swa_tf.StochasticWeightAveraging()


OF_BOTH = pytest.mark.parametrize("make", [exponential, equal])


def _initialize(session):
    session.run(v1.global_variables_initializer())


def _mirrored():
    return tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])


def _local(strategy, value):
    return [v.numpy() for v in strategy.experimental_local_results(value)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("make", "expected"),
    [(exponential, 1.5 - 0.5 * 0.999**10), (equal, (1.0 + 10 * 1.5) / 11)],
)
def test_half_precision(dtype, make, expected):
    variable = tf.Variable(tf.ones([2], dtype))
    theirs, ours = TENSORFLOW(0.999), make(0.999)
    for average in (theirs, ours):
        average.apply([variable])
    variable.assign(tf.fill([2], tf.constant(1.5, dtype)))
    for _ in range(10):
        for average in (theirs, ours):
            average.apply([variable])
    their, our = theirs.average(variable), ours.average(variable)
    assert (their.dtype, our.dtype) == (variable.dtype, tf.float32)
    np.testing.assert_allclose(our, [expected] * 2, rtol=1e-6)
    moved = 1.5 - 0.5 * 0.999**10
    assert np.abs(their.numpy().astype(float) - moved).max() > 1e-3
    swa_tf.assign_averages(ours, [variable])  # where `assign` would not cast
    np.testing.assert_allclose(
        variable.numpy().astype(float), [expected] * 2, rtol=2.0**-8
    )


@OF_BOTH
def test_keras_3_variables(make):
    layer = tf.keras.layers.Dense(1)
    layer.build([None, 1])
    if not isinstance(layer.kernel, tf.Variable):
        with pytest.raises(AttributeError):
            TENSORFLOW(0.5).apply(layer.trainable_variables)
    ours = make(0.5)
    ours.apply(layer.trainable_variables)
    assert ours.average(layer.kernel).shape == [1, 1]


@OF_BOTH
def test_checkpoint_of_the_object(make):
    with pytest.raises(ValueError, match="trackable"):
        tf.train.Checkpoint(average=TENSORFLOW(0.5))
    tf.train.Checkpoint(average=make(0.5))


@pytest.mark.parametrize("decay", [1.0, 1.5, -0.5, np.nan, 0.99999999])
def test_decay_out_of_range(decay):
    TENSORFLOW(decay).apply([tf.Variable(1.0)])
    with pytest.raises(ValueError, match="`decay` must be"):
        exponential(decay)
    with pytest.raises(TypeError, match="decay"):
        swa_tf.StochasticWeightAveraging(decay=decay)


@pytest.mark.parametrize("decay", [[0.5], np.array([0.5]), True])
def test_decay_that_is_no_scalar(decay):
    TENSORFLOW(decay).apply([tf.Variable([1.0])])
    with pytest.raises(ValueError, match="`decay` must be"):
        exponential(decay)


def test_no_decay():
    with pytest.raises(TypeError, match="decay"):
        TENSORFLOW()
    with pytest.raises(ValueError, match="`decay` and `half_life`"):
        exponential()
    swa_tf.StochasticWeightAveraging()


@pytest.mark.parametrize("dtype", [tf.float64, tf.bfloat16, tf.int32])
def test_decay_of_another_dtype(dtype):
    decay, variable = tf.Variable(0, dtype=dtype), tf.Variable(1.0)
    with pytest.raises(ValueError, match=dtype.name):
        TENSORFLOW(decay).apply([variable])
    exponential(decay).apply([variable])


@pytest.mark.parametrize("num_updates", [-1, np.nan, np.inf, True])
def test_num_updates_out_of_range(num_updates):
    TENSORFLOW(0.5, num_updates).apply([tf.Variable(1.0)])
    with pytest.raises(ValueError, match="`num_updates` must be"):
        exponential(0.5, num_updates)
    with pytest.raises(TypeError, match="num_updates"):
        swa_tf.StochasticWeightAveraging(num_updates=num_updates)


@OF_BOTH
def test_variable_twice(make):
    for ema_class, expected in ((TENSORFLOW, 1.75), (make, 1.0)):
        variable = tf.Variable(1.0)
        average = ema_class(0.5)
        average.apply([variable])
        variable.assign(2.0)
        if ema_class is TENSORFLOW:
            average.apply([variable, variable])
        else:
            with pytest.raises(ValueError, match="once"):
                average.apply([variable, variable])
        assert float(average.average(variable)) == expected


@OF_BOTH
@pytest.mark.parametrize("var_list", [[], None])
def test_nothing_to_average(make, var_list):
    TENSORFLOW(0.5).apply(var_list)
    with pytest.raises(ValueError, match="`var_list` must"):
        make(0.5).apply(var_list)
    TENSORFLOW(0.5).variables_to_restore()
    with pytest.raises(ValueError, match="`moving_avg_variables` must"):
        make(0.5).variables_to_restore()


@OF_BOTH
def test_generator(make):
    for ema_class in (TENSORFLOW, make):
        variable = tf.Variable(1.0)
        average = ema_class(0.5)
        average.apply(each for each in [variable])
        is_averaged = average.average(variable) is not None
        assert is_averaged == (ema_class is not TENSORFLOW)


@OF_BOTH
@pytest.mark.parametrize("value", [1.0, np.ones(2), None, "w", "nested"])
def test_what_is_no_variable(make, value):
    if isinstance(value, str) and value == "nested":
        value = [tf.Variable(1.0)]
    with pytest.raises(AttributeError):
        TENSORFLOW(0.5).apply([value])
    with pytest.raises(TypeError, match="`var_list` must hold variables"):
        make(0.5).apply([value])


@OF_BOTH
def test_variables_made_by_the_function(make):
    def first_average(average):
        made = []

        @tf.function
        def step():
            if not made:
                made.append(tf.Variable(3.0))
            made[0].assign(2.0)
            average.apply(made)

        step()
        return float(average.average(made[0]))

    with pytest.raises(RuntimeError):
        first_average(TENSORFLOW(0.5))
    assert first_average(make(0.5)) == 2.0


@OF_BOTH
def test_another_shape(make):
    for ema_class in (TENSORFLOW, make):
        variable = tf.Variable([1.0], shape=tf.TensorShape([None]))
        average = ema_class(0.5)
        average.apply([variable])
        variable.assign([1.0, 2.0])
        error = (
            tf.errors.InvalidArgumentError
            if ema_class is TENSORFLOW
            else ValueError
        )
        with pytest.raises(error, match="shape"):
            average.apply([variable])


@OF_BOTH
def test_second_graph(make):
    for ema_class in (TENSORFLOW, make):
        average = ema_class(0.5)
        average.apply([tf.Variable(1.0)])
        with tf.Graph().as_default():
            variable = tf.Variable(1.0)
            if ema_class is TENSORFLOW:
                average.apply([variable])
            else:
                with pytest.raises(ValueError, match="graph of the first"):
                    average.apply([variable])


@OF_BOTH
def test_debiasing_by_the_second_op(make):
    for ema_class, expected in ((TENSORFLOW, 0.5), (make, 1.0)):
        with tf.Graph().as_default(), v1.Session() as session:
            tensor = tf.constant(1.0)
            average = ema_class(0.5, zero_debias=True)
            average.apply([tensor])
            second = average.apply([tensor])
            _initialize(session)
            session.run(second)
            assert session.run(average.average(tensor)) == expected


@OF_BOTH
def test_mirrored_variable_outside_its_scope(make):
    strategy = _mirrored()
    with strategy.scope():
        variable = tf.Variable(1.0)
    with pytest.raises(TypeError):
        TENSORFLOW(0.5).apply([variable])
    average = make(0.5)
    average.apply([variable])
    variable.assign(2.0)
    average.apply([variable])
    assert _local(strategy, average.average(variable)) == [1.5, 1.5]


def _on_read(strategy, aggregation):
    """A variable of which each replica has a value of its own."""
    with strategy.scope():
        return tf.Variable(
            0.0,
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=aggregation,
        )


@OF_BOTH
def test_variable_that_is_a_mean_over_replicas(make):
    strategy = _mirrored()
    for ema_class, expected in (
        (TENSORFLOW, [0.5, 1.5]),
        (make, [1.0, 1.0]),
    ):
        variable = _on_read(strategy, tf.VariableAggregation.MEAN)
        with strategy.scope():
            average = ema_class(0.5)
            average.apply([variable])
            for component, value in zip(variable.values, (1.0, 3.0)):
                component.assign(value)
            average.apply([variable])
        assert _local(strategy, average.average(variable)) == expected


@OF_BOTH
@pytest.mark.parametrize("aggregation", ["SUM", "NONE"])
def test_variable_that_is_no_number_for_all_replicas(make, aggregation):
    strategy = _mirrored()
    variable = _on_read(strategy, tf.VariableAggregation[aggregation])
    with strategy.scope():
        for ema_class in (TENSORFLOW, make):
            average = ema_class(0.5)

            def step(average=average):
                average.apply([variable])

            if ema_class is TENSORFLOW:
                strategy.run(step)
            else:
                with pytest.raises(ValueError, match="for all replicas"):
                    strategy.run(step)


@OF_BOTH
def test_tensors_in_replica_context(make):
    with tf.Graph().as_default():
        strategy = _mirrored()
        with strategy.scope():
            for ema_class in (TENSORFLOW, make):
                average = ema_class(0.5)

                def step(average=average):
                    average.apply([tf.zeros([]) + 1.0])

                match = "replica" if ema_class is TENSORFLOW else "`var_list`"
                with pytest.raises(ValueError, match=match):
                    strategy.run(step)


@OF_BOTH
def test_reference_variables(make):
    for ema_class in (TENSORFLOW, make):
        with tf.Graph().as_default():
            variable = v1.Variable(1.0, use_resource=False)
            average = ema_class(0.5)
            average.apply([variable])
            is_reference = average.average(variable).dtype != tf.float32
            assert is_reference == (ema_class is TENSORFLOW)


@OF_BOTH
def test_names_in_eager_mode(make):
    variable = tf.Variable(1.0, name="some_variable")
    with tf.name_scope("scope"):
        for ema_class in (TENSORFLOW, make):
            one, two = ema_class(0.5), ema_class(0.5)
            for average in (one, two):
                average.apply([variable])
            names = [each.average(variable).name for each in (one, two)]
            name = f"some_variable/{one.name}"
            if ema_class is TENSORFLOW:
                assert names == [f"{name}:0", f"{name}_1:0"]
            else:
                assert names == [f"scope/{name}:0"] * 2


@OF_BOTH
def test_the_number_of_models_in_a_graph(make):
    with tf.Graph().as_default(), v1.Session() as session:
        average = make(0.5)
        update = average.apply([tf.Variable(1.0)])
        session.run(v1.global_variables_initializer())
        missing = session.run(v1.report_uninitialized_variables()).tolist()
        of_ema = [f"{average.name}/n_models".encode()]
        assert missing == (of_ema if make is exponential else [])
        _initialize(session)
        session.run(update)
        assert session.run(average.n_models) == 1
        is_local = average.n_models in v1.local_variables()
        is_global = average.n_models in v1.global_variables()
        assert (is_local, is_global) == (make is exponential, make is equal)
        TENSORFLOW(0.5, name="other").apply([tf.Variable(1.0, name="v")])
        names = [v.name for v in v1.global_variables() + v1.local_variables()]
        assert "other/n_models:0" not in names


def _evaluated(restored, directory):
    """The weight that a monitored session restores by a `Saver`."""
    (v,) = v1.trainable_variables()
    scaffold = v1.train.Scaffold(saver=v1.train.Saver(restored))
    creator = v1.train.ChiefSessionCreator(scaffold, checkpoint_dir=directory)
    with v1.train.MonitoredSession(creator) as session:
        return session.run(v)


@OF_BOTH
def test_monitored_session_that_evaluates(make, tmp_path):
    for ema_class in (TENSORFLOW, make):
        directory = str(tmp_path / ema_class.__name__)
        with tf.Graph().as_default(), v1.Session() as session:
            v = v1.get_variable("v", initializer=1.0)
            update = ema_class(0.5).apply([v])
            _initialize(session)
            session.run(update)
            session.run(v.assign(7.0))
            v1.train.Saver().save(session, f"{directory}/m")
        with tf.Graph().as_default():
            v1.get_variable("v", initializer=0.0)
            average = ema_class(0.5)
            restored = average.variables_to_restore()
            if ema_class is equal:
                with pytest.raises(RuntimeError, match="n_models"):
                    _evaluated(restored, directory)
        with tf.Graph().as_default():
            v1.get_variable("v", initializer=0.0)
            average = ema_class(0.5)
            restored = average.variables_to_restore()
            if ema_class is equal:
                restored[average.n_models.op.name] = average.n_models
            assert _evaluated(restored, directory) == 1.0


def test_the_table_lists_every_test():
    text = (ROOT / "docs" / "ema.md").read_text(encoding="utf-8")
    listed = re.findall(
        r"^\|(?: [^|]+\|){4} (?:[^|]+)?\| `(test_\w+)` \|$", text, re.M
    )
    tests = [name for name in globals() if name.startswith("test_")]
    assert listed == [
        t for t in tests if t != "test_the_table_lists_every_test"
    ]
