"""Shadow variables: where they are, and what their names and values are.

In a v1 graph they are made as `tf.train.ExponentialMovingAverage` makes its
own, by `get_variable` in a variable scope of their name: so names are made
unique, scopes are reused and partitioners are left out in the same way, and a
checkpoint written with one is read with the other.
"""

from __future__ import annotations

import contextlib
from typing import Any

import tensorflow as tf

from swa_tf.support import stack
from swa_tf.support import variables as variables_lib


def make(variable: Any, suffix: str, device: str | None = None) -> tf.Variable:
    """A variable `<variable>/<suffix>` for the average of `variable`.

    It has the device of the variable, unless `device` is given, and the value
    that the variable has now or, in a v1 graph, will be given first; zeros for
    a tensor.
    """
    dtype = variables_lib.dtype_of_average(variable)
    name = f"{stack.variable_name(variable)}/{suffix}"
    if not isinstance(variable, tf.Variable):
        # Not `tf.device(None)`, which would leave the caller's device.
        with tf.device(device) if device else contextlib.nullcontext():
            return _of_tensor(variable, dtype, name)
    strategy = variables_lib.strategy_of(variable)
    with tf.init_scope():
        value = tf.cast(variables_lib.initial_value(variable), dtype)
        place = device or variable.device
        with strategy.scope() if strategy else tf.device(place):
            if tf.executing_eagerly():
                return tf.Variable(value, trainable=False, name=name)
            with _beside(variable, strategy, device):
                average = _graph_variable(value, name)
        stack.copy_slices_and_sharding(variable, average, suffix)
        v1 = tf.compat.v1
        v1.add_to_collection(v1.GraphKeys.MOVING_AVERAGE_VARIABLES, variable)
    return average


def _beside(variable: Any, strategy: Any, device: str | None) -> Any:
    """Has TensorFlow place what a v1 graph makes where it places `variable`.

    Without the name of a device it is free to choose.
    """
    if strategy or device:
        return contextlib.nullcontext()
    graph = tf.compat.v1.get_default_graph()
    return graph.colocate_with(variable.op)


def _of_tensor(tensor: tf.Tensor, dtype: tf.DType, name: str) -> tf.Variable:
    """Of a v1 graph. TensorFlow's class, too, places it where `apply` is."""
    with tf.init_scope():
        if tensor.shape.is_fully_defined():
            # Named, or the caller's next `tf.zeros` would get another name.
            zeros = tf.zeros(tensor.shape, dtype, name=f"{name}/zeros")
            return _graph_variable(zeros, name)
        return _graph_variable(tf.zeros(tf.shape(tensor), dtype), name)


def _graph_variable(value: tf.Tensor, name: str) -> tf.Variable:
    v1 = tf.compat.v1
    with v1.variable_scope(None, default_name=name) as scope:
        scope.set_partitioner(None)
        return v1.get_variable(
            "",
            initializer=value,
            trainable=False,
            use_resource=True,
            validate_shape=value.shape.is_fully_defined(),
        )
