"""Files, and errors."""

from __future__ import annotations

import tempfile

import pytest
import tensorflow as tf

from tests.ema_scripts.sessions import initialize

v1 = tf.compat.v1


# --- Files ------------------------------------------------------------------


def checkpoints_of_averages(ema_class):
    """`tf.train.Checkpoint` of averages: they are plain variables."""
    variables = [tf.Variable([1.0, 3.0]), tf.Variable(2.0)]
    ema = ema_class(0.25)
    ema.apply(variables)
    averages = [ema.average(v) for v in variables]
    with tempfile.TemporaryDirectory() as directory:
        path = tf.train.Checkpoint(averages=averages).save(f"{directory}/c")
        keys = [name for name, _ in tf.train.list_variables(path)]
        for v in variables:
            v.assign(tf.zeros_like(v))
        # Into the weights themselves, as TensorFlow's docs have it.
        tf.train.Checkpoint(averages=variables).restore(path)
    return keys, [v.numpy() for v in variables]


def session_savers(ema_class):
    """v1 `Saver`: saves averages by name, and reads them as weights."""
    with tempfile.TemporaryDirectory() as directory:
        with tf.Graph().as_default(), v1.Session() as session:
            v = v1.get_variable("v", initializer=1.0)
            ema = ema_class(0.25)
            update = ema.apply([v])
            initialize(session)
            session.run(v.assign(5.0))
            session.run(update)
            path = v1.train.Saver().save(session, f"{directory}/m")
        keys = [name for name, _ in tf.train.list_variables(path)]
        with tf.Graph().as_default(), v1.Session() as session:
            v = v1.get_variable("v", initializer=0.0)
            restored = ema_class(0.25).variables_to_restore()
            v1.train.Saver(restored).restore(session, path)
            return keys, session.run(v)


def saved_models(ema_class):
    """A SavedModel of a function that averages: goes on where it was."""
    module = tf.Module()
    module.v = tf.Variable([1.0])
    ema = ema_class(0.25)
    ema.apply([module.v])
    module.average = ema.average(module.v)
    module.of = ema if isinstance(ema, tf.Module) else None

    @tf.function(input_signature=[tf.TensorSpec([1])])
    def step(value):
        module.v.assign(value)
        ema.apply([module.v])
        return module.average.read_value()

    module.step = step
    averages = [step(tf.constant([3.0])).numpy()]
    with tempfile.TemporaryDirectory() as directory:
        tf.saved_model.save(module, directory)
        loaded = tf.saved_model.load(directory)
        averages.append(loaded.step(tf.constant([5.0])).numpy())
    return averages


# --- Errors -----------------------------------------------------------------


def integer_variables(ema_class):
    """A variable that is no float: TypeError."""
    with pytest.raises(TypeError, match="float"):
        ema_class(0.25).apply([tf.Variable(1)])


def tensors_in_eager_mode(ema_class):
    """A tensor in eager mode, or in a `tf.function`: TypeError."""
    ema = ema_class(0.25)
    for apply in (ema.apply, tf.function(lambda each: ema.apply(each))):
        with pytest.raises(TypeError, match="tensors"):
            apply([tf.constant(1.0)])
