"""Flags that say which averages of an EMA have had their first update.

A boolean vector in one variable, in the order in which the variables joined.
It takes any length from a checkpoint: averages beyond its end have not begun.
"""

from __future__ import annotations

import contextlib
from typing import Any

import tensorflow as tf

from swa_tf.support import compat
from swa_tf.support import variables as variables_lib


def made(name: str, value: Any = ()) -> tf.Variable:
    """Returns the variable, of no averages yet."""
    shape = tf.TensorShape(None)
    return tf.Variable(value, False, dtype=tf.bool, name=name, shape=shape)


def copied(begun: tf.Variable) -> tf.Variable:
    """Returns a copy that can grow, which TensorFlow's cannot."""
    strategy = variables_lib.strategy_of(begun)
    with strategy.scope() if strategy else contextlib.nullcontext():
        value = variables_lib.components(begun)[0].read_value()
        return made(compat.variable_name(begun), value)


def begin(
    begun: tf.Variable, indices: list[int], now: tf.Tensor, n_averages: int
) -> Any:
    """Marks the averages at `indices` as begun, where `now` is true."""
    before = read(begun, n_averages)
    at = [[i] for i in indices]
    values = tf.gather_nd(before, at) | now
    return begun.assign(tf.tensor_scatter_nd_update(before, at, values))


def join(begun: tf.Variable, joined: list[bool], n_before: int) -> None:
    """Appends whether `joined` have begun to the first `n_before`."""
    # A checkpoint has more of averages that waited when it was written.
    values = [*read(begun, n_before)[:n_before].numpy(), *joined]
    if begun.read_value().shape != [len(values)]:
        begun.assign(values)


def read(begun: tf.Variable, n_averages: int) -> tf.Tensor:
    """Returns a vector of at least `n_averages` elements."""
    handle = variables_lib.components(begun)[0].handle
    if tf.executing_eagerly():
        return _padded(handle, n_averages)
    return _padded_in_a_graph(handle, tf.constant(n_averages))


def _padded(handle: Any, n: Any) -> tf.Tensor:
    begun = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.bool)
    missing = tf.maximum(n - tf.size(begun), 0)
    return tf.concat([begun, tf.fill([missing], False)], axis=0)


# Not inlined, or TensorFlow would infer from a vector written before that the
# variable still holds one of that length, whatever was restored since.
_padded_in_a_graph = tf.function(
    _padded, autograph=False, experimental_attributes={"_noinline": True}
)
