"""The modes in which one sequence of updates must give one average."""

import numpy as np
import tensorflow as tf

import swa_tf


def name_of(value):
    """The name of a mode, for the id of a test; None of other values."""
    return getattr(value, "__name__", None)


def eager(values, dtype, when=None, make=swa_tf.StochasticWeightAveraging):
    variable = tf.Variable(tf.zeros(values[0].shape, dtype))
    swa = make(when=when)
    for value in values:
        variable.assign(tf.cast(value, dtype))
        swa.apply([variable])
    return swa.average(variable).numpy(), int(swa.n_models)


def function(
    values,
    dtype,
    jit_compile=False,
    when=None,
    make=swa_tf.StochasticWeightAveraging,
):
    """A `tf.function` in which also the first `apply` happens."""
    variable = tf.Variable(tf.zeros(values[0].shape, dtype), dtype=dtype)
    swa = make(when=when)

    @tf.function(jit_compile=jit_compile)
    def step(value):
        variable.assign(tf.cast(value, dtype))
        swa.apply([variable])

    for value in values:
        step(tf.constant(value))
    return swa.average(variable).numpy(), int(swa.n_models)


def xla(values, dtype, **kwargs):
    """The same, compiled by XLA."""
    return function(values, dtype, jit_compile=True, **kwargs)


def graph(values, dtype, when=None, make=swa_tf.StochasticWeightAveraging):
    """A v1 graph: one op, run in a session, after the op that trains."""
    with tf.Graph().as_default():
        value = tf.compat.v1.placeholder(values[0].dtype, values[0].shape)
        variable = tf.Variable(tf.zeros(values[0].shape, dtype), dtype=dtype)
        swa = make(when=when)
        assign = variable.assign(tf.cast(value, dtype))
        with tf.control_dependencies([assign]):
            apply = swa.apply([variable])
        with tf.compat.v1.Session() as session:
            session.run(tf.compat.v1.global_variables_initializer())
            session.run(tf.compat.v1.local_variables_initializer())
            for v in values:
                session.run(apply, {value: v})
            return session.run([swa.average(variable), swa.n_models])


def _mirrored(values, dtype):
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    with strategy.scope():
        variable = tf.Variable(
            tf.zeros(values[0].shape, dtype),
            dtype=dtype,
            aggregation=tf.VariableAggregation.MEAN,
        )
    return strategy, variable


def _same_on_both(strategy, variable):
    first, second = (
        v.numpy() for v in strategy.experimental_local_results(variable)
    )
    np.testing.assert_array_equal(first, second)
    return first


def cross_replica(
    values, dtype, when=None, make=swa_tf.StochasticWeightAveraging
):
    strategy, variable = _mirrored(values, dtype)
    swa = make(when=when)
    for value in values:
        variable.assign(tf.cast(value, dtype))
        swa.apply([variable])
    return _same_on_both(strategy, swa.average(variable)), int(swa.n_models)


def replica(values, dtype, when=None, make=swa_tf.StochasticWeightAveraging):
    """`apply` inside `strategy.run`, in a `tf.function`."""
    strategy, variable = _mirrored(values, dtype)
    with strategy.scope():
        swa = make(when=when)

    def step(value):
        variable.assign(tf.cast(value, dtype))
        swa.apply([variable])

    @tf.function
    def distributed_step(value):
        strategy.run(step, args=(value,))

    for value in values:
        distributed_step(tf.constant(value))
    return _same_on_both(strategy, swa.average(variable)), int(swa.n_models)


ALL = [eager, function, xla, graph, cross_replica, replica]
