"""Averages in v1 graphs, made and named as TensorFlow makes its own."""

from __future__ import annotations

import contextlib
from typing import Any

import tensorflow as tf

from swa_tf.support import compat
from swa_tf.support import variables as variables_lib


def made(variable: Any, suffix: str, device: str | None) -> tf.Variable:
    """Returns a new average: of a tensor zeros, else the initial value."""
    v1 = tf.compat.v1
    dtype = variables_lib.dtype_of_average(variable)
    name = f"{compat.variable_name(variable)}/{suffix}"
    # Not `tf.device(None)`, which would leave the caller's device.
    place: Any = tf.device(device) if device else contextlib.nullcontext()
    if not isinstance(variable, tf.Variable):
        with place, tf.init_scope():
            return _variable(_zeros(variable, dtype, f"{name}/zeros"), name)
    strategy = variables_lib.strategy_of(variable)
    with tf.init_scope():
        value = tf.cast(variables_lib.initial_value(variable), dtype)
        if strategy:
            place = strategy.scope()
        elif not device:  # TensorFlow may be free to choose the variable's
            place = v1.get_default_graph().colocate_with(variable.op)
        with place:
            average = _variable(value, name)
        compat.copy_slices_and_sharding(variable, average, suffix)
        v1.add_to_collection(v1.GraphKeys.MOVING_AVERAGE_VARIABLES, variable)
    return average


def _zeros(tensor: tf.Tensor, dtype: tf.DType, name: str) -> tf.Tensor:
    if tensor.shape.is_fully_defined():
        # Named, or the caller's next `tf.zeros` would get another name.
        return tf.zeros(tensor.shape, dtype, name=name)
    return tf.zeros(tf.shape(tensor), dtype)


def _variable(value: tf.Tensor, name: str) -> tf.Variable:
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


class DebiasedTensor:
    """The average of a tensor, without the zero that `biased` starts at.

        average <- biased / share

    with share = 1 - decay^n after n updates, as in TensorFlow, if the updates
    are `counted`. Otherwise it is the sum of the weights of what was averaged:
    share <- share + c * (1 - share).
    """

    def __init__(self, average: Any, counted: bool) -> None:
        self._average, self._counted = average, counted
        v1, dtype = tf.compat.v1, average.dtype
        name = "local_step" if counted else "share"
        with tf.init_scope(), v1.variable_scope(average.op.name):
            zeros = tf.zeros_like(average.initial_value), tf.zeros([], dtype)
            self.biased, self._progress = self.variables = [
                v1.get_variable(
                    each,
                    initializer=zero,
                    trainable=False,
                    use_resource=True,
                    validate_shape=zero.shape.is_fully_defined(),
                )
                for each, zero in zip(("biased", name), zeros)
            ]

    def divide(self, c: tf.Tensor) -> list[Any]:
        """Returns the ops to run when `biased` has moved by `c`."""
        biased, done = self.biased.read_value(), self._progress.read_value()
        if self._counted:
            done += 1.0
            share = 1.0 - tf.pow(1.0 - c, tf.cast(done, c.dtype))
        else:
            share = done = done + tf.cast(c, done.dtype) * (1.0 - done)
        return [
            self._progress.assign(done),
            self._average.assign(biased / tf.cast(share, biased.dtype)),
        ]
