"""The numbers: initial values, `decay`, `num_updates`, `zero_debias`."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tests.ema_scripts.sessions import initialize

v1 = tf.compat.v1


def eager_numbers(ema_class):
    """Initial value, eager: that of the variable in the first `apply`."""
    ema = ema_class(0.25)
    v, w = tf.Variable(1.0), tf.Variable([2.0, -2.0])
    averages = []
    for value in (1.0, 2.0, 5.0):
        v.assign(value)
        ema.apply([v, w])
        w.assign_add([value, 1.0])
        averages += [ema.average(v).numpy(), ema.average(w).numpy()]
    return averages


def function_numbers(ema_class):
    """Initial value, `tf.function`: that of the variable at the trace."""
    ema = ema_class(0.25)
    v = tf.Variable([1.0, 2.0])

    @tf.function
    def step(value):
        v.assign(value)
        ema.apply([v])

    for value in ([3.0, 3.0], [4.0, 0.0]):
        step(tf.constant(value))
    return ema.average(v).numpy()


def graph_numbers(ema_class):
    """Initial value, v1 graph: the variable's own; zero for a tensor."""
    with tf.Graph().as_default(), v1.Session() as session:
        ema = ema_class(0.25)
        v = tf.Variable([10.0, 20.0])
        tensor = v * 2.0
        update = ema.apply([v, tensor])
        averages = [ema.average(v), ema.average(tensor)]
        initialize(session)
        seen = [session.run(averages)]
        for value in ([30.0, 0.0], [-5.0, 5.0]):
            session.run(v.assign(value))
            session.run(update)
            seen.append(session.run(averages))
        return seen


def long_numbers(ema_class):
    """A thousand updates at 0.999: its float32 value is what counts."""
    rng = np.random.default_rng(0)
    ema = ema_class(0.999)
    v = tf.Variable(tf.zeros([50]))
    ema.apply([v])

    @tf.function
    def step(value):
        v.assign(value)
        ema.apply([v])

    for _ in range(1000):
        step(tf.constant(1.0 + rng.normal(size=50).astype(np.float32)))
    return ema.average(v).numpy()


def float64_numbers(ema_class):
    """float64: so is the average; the decay is rounded to float32."""
    ema = ema_class(0.999)
    v = tf.Variable(tf.zeros([3], tf.float64))
    for value in (0.0, 1.0, -7.0):
        v.assign(tf.fill([3], tf.constant(value, tf.float64)))
        ema.apply([v])
    return ema.average(v).dtype.name, ema.average(v).numpy()


def num_updates_as_an_integer(ema_class):
    """`num_updates` as a number: min(decay, (1 + n) / (10 + n))."""
    averages = []
    for n in (0, 1, 5, 1000):
        ema = ema_class(0.9, num_updates=n)
        v = tf.Variable(1.0)
        ema.apply([v])
        v.assign(2.0)
        ema.apply([v])
        averages.append(ema.average(v).numpy())
    return averages


def num_updates_as_a_variable(ema_class):
    """`num_updates` as a variable: of any number type, read each time."""
    averages = []
    for dtype in (tf.int32, tf.int64, tf.float32):
        step = tf.Variable(0, dtype=dtype)
        ema = ema_class(0.9, num_updates=step)
        v = tf.Variable(0.0)

        @tf.function
        def update(v=v, ema=ema, step=step):
            v.assign_add(1.0)
            step.assign_add(1)
            ema.apply([v])

        for _ in range(4):
            update()
        averages.append(ema.average(v).numpy())
    return averages


def num_updates_as_a_global_step(ema_class):
    """`num_updates`, v1 graph: the global step, or a tensor of it."""
    averages = []
    for as_tensor in (False, True):
        with tf.Graph().as_default(), v1.Session() as session:
            step = v1.train.get_or_create_global_step()
            ema = ema_class(0.9, num_updates=step * 2 if as_tensor else step)
            v = tf.Variable(1.0)
            update = ema.apply([v])
            initialize(session)
            session.run(v.assign(5.0))
            for _ in range(3):
                session.run(update)
                session.run(step.assign_add(1))
                averages.append(session.run(ema.average(v)))
    return averages


def decay_as_a_variable(ema_class):
    """`decay` as a variable: read in each update, in every mode."""
    decay = tf.Variable(0.75)
    ema = ema_class(decay)
    v = tf.Variable(1.0)
    ema.apply([v])
    v.assign(2.0)

    @tf.function
    def step():
        ema.apply([v])

    step()
    decay.assign(0.5)
    step()
    ema.apply([v])
    averages = [ema.average(v).numpy()]
    with tf.Graph().as_default(), v1.Session() as session:
        decay = tf.Variable(0.75)
        ema = ema_class(decay)
        v = tf.Variable(1.0)
        update = ema.apply([v])
        initialize(session)
        session.run(v.assign(2.0))
        session.run(decay.assign(0.25))
        session.run(update)
        return [*averages, session.run(ema.average(v))]


def decay_as_a_tensor(ema_class):
    """`decay` as a tensor: as a number; a placeholder is read each time."""
    ema = ema_class(tf.constant(0.25))
    v = tf.Variable(1.0)
    ema.apply([v])
    v.assign(2.0)
    ema.apply([v])
    averages = [ema.average(v).numpy()]
    with tf.Graph().as_default(), v1.Session() as session:
        decay = v1.placeholder(tf.float32, [])
        ema = ema_class(decay)
        v = tf.Variable(1.0)
        update = ema.apply([v])
        initialize(session)
        session.run(v.assign(2.0))
        for value in (0.25, 0.75):
            session.run(update, {decay: value})
            averages.append(session.run(ema.average(v)))
    return averages


def zero_debias_of_tensors(ema_class):
    """`zero_debias` of a tensor: its average divided by 1 - decay^n."""
    seen = []
    for num_updates in (None, 1):
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, [2])
            v = tf.Variable([1.0, 2.0])
            tensor = x + v
            ema = ema_class(0.25, num_updates, zero_debias=True)
            update = ema.apply([v, tensor])
            initialize(session)
            seen.append(session.run(ema.average(tensor)))
            for value in ([1.0, 2.0], [3.0, -3.0], [0.0, 0.0]):
                session.run(update, {x: value})
                seen += session.run([ema.average(v), ema.average(tensor)])
    return seen


def tensors_of_unknown_shape(ema_class):
    """Tensor of unknown shape: averaged from zeros of its shape."""
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 2])
        ema = ema_class(0.25)
        update = ema.apply([x])
        value = {x: np.ones([3, 2])}
        session.run(v1.global_variables_initializer(), value)
        session.run(update, value)
        return ema.average(x).shape.as_list(), session.run(ema.average(x))
