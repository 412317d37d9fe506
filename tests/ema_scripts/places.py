"""Where and when averages are updated."""

from __future__ import annotations

import pytest
import tensorflow as tf

from tests.ema_scripts.sessions import initialize, names_of

v1 = tf.compat.v1


def devices(ema_class):
    """Device: with the variable; for a tensor, that of `apply`."""
    with tf.Graph().as_default():
        with tf.device("/job:one"):
            v = tf.Variable(10.0, name="v")
        tensor = v + 1.0
        ema = ema_class(0.25)
        with tf.device("/job:two"):
            ema.apply([v, tensor])
        return (
            ema.average(v).device,
            ema.average(tensor).device,
            ema.average(v).op.colocation_groups(),
        )


def control_dependencies(ema_class):
    """Control dependencies: hold back updates, not initial values."""
    with tf.Graph().as_default(), v1.Session() as session:
        counter = tf.Variable(0)
        v = tf.Variable([10.0])
        ema = ema_class(0.25)
        with tf.control_dependencies([counter.assign_add(1)]):
            update = ema.apply([v])
        average = ema.average(v)
        assert average.initializer.control_inputs == []
        assert average.value().op.control_inputs == []
        session.run(average.initializer)  # before the variable itself
        seen = [session.run(average)]
        initialize(session)
        session.run(v.assign([20.0]))
        session.run(update)
        return [*seen, session.run(average), session.run(counter)]


def returned_by_apply(ema_class):
    """Result of `apply`: an op in a v1 graph, None in eager mode."""
    eager = ema_class(0.25).apply([tf.Variable(1.0)])
    with tf.Graph().as_default():
        op = ema_class(0.25).apply([tf.Variable(1.0)])
    return eager, type(op).__name__


def inside_control_flow(ema_class):
    """First `apply` inside `tf.cond`: makes averages outside of it."""
    with tf.Graph().as_default(), v1.Session() as session:
        v = tf.Variable(1.0)
        ema = ema_class(0.25)

        def update():
            with tf.control_dependencies([ema.apply([v])]):
                return tf.constant(1)

        go = v1.placeholder(tf.bool, [])
        op = tf.cond(go, update, lambda: tf.constant(0))
        initialize(session)
        session.run(v.assign(2.0))
        seen = []
        for value in (False, True):
            session.run(op, {go: value})
            seen.append(session.run(ema.average(v)))
        return seen


def loops(ema_class):
    """A loop, in a `tf.function` and a v1 graph: one update each time."""
    v = tf.Variable(0.0)
    ema = ema_class(0.5)
    ema.apply([v])

    @tf.function
    def steps(n):
        for _ in tf.range(n):
            v.assign_add(1.0)
            ema.apply([v])

    steps(tf.constant(3))
    averages = [ema.average(v).numpy()]
    with tf.Graph().as_default(), v1.Session() as session:
        v = v1.get_variable("v", initializer=0.0)
        ema = ema_class(0.5)

        def body(i):
            with tf.control_dependencies([v.assign_add(1.0)]):
                with tf.control_dependencies([ema.apply([v])]):
                    return i + 1

        end = tf.while_loop(lambda i: i < 3, body, [0])
        initialize(session)
        session.run(end)
        return [*averages, session.run(ema.average(v))]


def compiled_functions(ema_class):
    """`jit_compile=True`: as without."""
    v = tf.Variable([1.0, 2.0])
    ema = ema_class(0.25)

    @tf.function(jit_compile=True)
    def step(value):
        v.assign(value)
        ema.apply([v])

    for value in ([3.0, 3.0], [4.0, 0.0]):
        step(tf.constant(value))
    return ema.average(v).numpy()


def gradients(ema_class):
    """Gradients: `apply` is not watched, and averages are not trainable."""
    v = tf.Variable([3.0], name="v")
    ema = ema_class(0.25)
    with tf.GradientTape() as tape:
        ema.apply([v])
        loss = v * v * ema.average(v)
    return (
        names_of(tape.watched_variables()),
        tape.gradient(loss, v).numpy(),
        ema.average(v).trainable,
    )


def before_initializers(ema_class):
    """An update before the initializers: FailedPreconditionError."""
    with tf.Graph().as_default(), v1.Session() as session:
        v = tf.Variable(1.0)
        update = ema_class(0.25).apply([v])
        for ready in ([], [v.initializer]):
            session.run(ready)
            with pytest.raises(tf.errors.FailedPreconditionError):
                session.run(update)
