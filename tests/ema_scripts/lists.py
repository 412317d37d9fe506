"""Lists of variables."""

from __future__ import annotations

import tensorflow as tf

from tests.ema_scripts.sessions import initialize

v1 = tf.compat.v1


def apply_again_in_a_graph(ema_class):
    """`apply` again, v1 graph: another op, of the same averages."""
    with tf.Graph().as_default(), v1.Session() as session:
        ema = ema_class(0.25)
        v = tf.Variable(1.0)
        first = ema.apply([v])
        average = ema.average(v)
        second = ema.apply([v])
        assert ema.average(v) is average
        initialize(session)
        session.run(v.assign(5.0))
        seen = []
        for op in (first, second, first):
            session.run(op)
            seen.append(session.run(average))
        return seen, [first.name, second.name]


def variables_that_join(ema_class):
    """Subset of variables, eager: may join later, and be left out."""
    ema = ema_class(0.25)
    v, w = tf.Variable(1.0), tf.Variable(1.0)
    ema.apply([v])
    v.assign(2.0)
    w.assign(3.0)
    ema.apply([v, w])
    w.assign(4.0)
    ema.apply([w])
    return ema.average(v).numpy(), ema.average(w).numpy()


def variables_that_join_a_graph(ema_class):
    """Subset of variables, v1 graph: an op for each list."""
    with tf.Graph().as_default(), v1.Session() as session:
        ema = ema_class(0.25)
        v, w = tf.Variable(1.0), tf.Variable(1.0)
        one, both = ema.apply([v]), ema.apply([w, v])
        initialize(session)
        session.run([v.assign(2.0), w.assign(3.0)])
        session.run(one)
        session.run(both)
        return session.run([ema.average(v), ema.average(w)])


def trainable_variables_by_default(ema_class):
    """`apply()`, v1 graph: takes the trainable variables."""
    with tf.Graph().as_default():
        v = tf.Variable(1.0, name="v")
        w = tf.Variable(1.0, name="w", trainable=False)
        ema = ema_class(0.25)
        ema.apply()
        return ema.average(v).name, ema.average(w)


def assigned_averages(ema_class):
    """An average that is assigned to: updates go on from there."""
    ema = ema_class(0.25)
    v = tf.Variable(1.0)
    ema.apply([v])
    ema.average(v).assign(10.0)
    v.assign(2.0)
    ema.apply([v])
    return ema.average(v).numpy()


def unknown_variables(ema_class):
    """`average` of what is not averaged: None."""
    ema = ema_class(0.25)
    ema.apply([tf.Variable(1.0)])
    return ema.average(tf.Variable(1.0))
