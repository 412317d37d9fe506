"""Averages under `tf.distribute`."""

from __future__ import annotations

import tensorflow as tf

from tests.ema_scripts.sessions import initialize

v1 = tf.compat.v1


def _strategies():
    return [
        tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"]),
        tf.distribute.OneDeviceStrategy("/cpu:0"),
    ]


def _local(strategy, value):
    return [v.numpy() for v in strategy.experimental_local_results(value)]


def replica_context(ema_class):
    """Replica context: each average moves once, by the mean."""
    seen = []
    for strategy in _strategies():
        for compiled in (False, True):
            with strategy.scope():
                w = tf.Variable([1.0], aggregation=tf.VariableAggregation.MEAN)
                ema = ema_class(0.8)

                def replica_step(w=w, ema=ema):
                    ema.apply([w])
                    w.assign_sub([0.5])
                    ema.apply([w])
                    return ema.average(w).read_value()

                def step(strategy=strategy, replica_step=replica_step):
                    return strategy.run(replica_step)

                results = (tf.function(step) if compiled else step)()
            seen.append(_local(strategy, results))
    return seen


def cross_replica_context(ema_class):
    """Cross-replica context: the average of every replica moves."""
    seen = []
    for strategy in _strategies():
        for compiled in (False, True):
            with strategy.scope():
                w = tf.Variable([1.0])
                ema = ema_class(0.8)

                def step(w=w, ema=ema):
                    ema.apply([w])
                    w.assign_sub([0.5])
                    ema.apply([w])

                (tf.function(step) if compiled else step)()
            seen.append(_local(strategy, ema.average(w)))
    return seen


def _replica_graph(ema_class):
    w = tf.Variable([1.0], name="w", aggregation=tf.VariableAggregation.MEAN)
    ema = ema_class(0.8)
    apply = ema.apply([w])
    return w.assign_sub([0.5]), apply, ema.average(w)


def _run_in_graph(ema_class, in_replicas):
    seen = []
    for strategy in _strategies():
        with tf.Graph().as_default(), strategy.scope():
            made = (
                strategy.run(_replica_graph, args=(ema_class,))
                if in_replicas
                else _replica_graph(ema_class)
            )
            assign, apply, average = map(
                strategy.experimental_local_results, made
            )
            seen.append(made[2].name)
            with v1.Session() as session:
                initialize(session)
                for op in (apply, assign, apply):
                    session.run(op)
                seen.append(session.run(average))
    return seen


def replica_context_of_a_graph(ema_class):
    """Replica context, v1 graph: objects of replicas are one average."""
    return _run_in_graph(ema_class, in_replicas=True)


def cross_replica_context_of_a_graph(ema_class):
    """Cross-replica context, v1 graph: an op moves every replica's."""
    return _run_in_graph(ema_class, in_replicas=False)
