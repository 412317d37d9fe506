"""For each average of an EMA, whether its first model has come."""

from __future__ import annotations

import contextlib
from typing import Any

import tensorflow as tf

from swa_tf.support import variables as variables_lib


class StartedAverages:
    """For each average whether it goes on, or begins as the weight itself.

    One boolean vector, in the order in which the variables joined. It grows
    as they do, and takes any length from a checkpoint. An average that it has
    no element for has not begun.

    The EMA tracks `variable` for its checkpoints, and says how many averages
    it has.
    """

    def __init__(self, name: str, value: Any = ()) -> None:
        self._name = name
        self.variable = tf.Variable(
            value,
            dtype=tf.bool,
            trainable=False,
            name=name,
            shape=tf.TensorShape(None),
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> StartedAverages:
        """The copy, which is made before whatever else has the variable."""
        # TensorFlow's copy of a variable can no longer grow.
        strategy = variables_lib.strategy_of(self.variable)
        with strategy.scope() if strategy else contextlib.nullcontext():
            value = variables_lib.components(self.variable)[0].read_value()
            copied = StartedAverages(self._name, value)
        memo[id(self)] = copied
        memo[id(self.variable)] = copied.variable
        return copied

    def of(self, indices: list[int], n_averages: int) -> tf.Tensor:
        """Whether the averages at `indices` go on."""
        return tf.gather(self._read(n_averages), indices)

    def begin(self, indices: list[int], now: tf.Tensor, n_averages: int) -> Any:
        """Has those at `indices` go on from here, if `now`, for all or each."""
        begun = self._read(n_averages)
        at = [[i] for i in indices]
        values = tf.gather_nd(begun, at) | now
        begun = tf.tensor_scatter_nd_update(begun, at, values)
        return self.variable.assign(begun)

    def join(self, joined: list[bool], n_before: int) -> None:
        """Adds whether `joined` go on to the `n_before` that are known."""
        # A checkpoint has more of averages that waited when it was written.
        known = self._read(n_before)[:n_before]
        begun = [*known.numpy(), *joined]
        if self.variable.read_value().shape != [len(begun)]:
            self.variable.assign(begun)

    def reset(self) -> Any:
        """Has none go on."""
        return self.variable.assign(tf.zeros_like(self.variable))

    def _read(self, n: int) -> tf.Tensor:
        """A vector, of `n` elements at least."""
        handle = variables_lib.components(self.variable)[0].handle
        if tf.executing_eagerly():
            return _padded(handle, n)
        return _padded_in_a_graph(handle, tf.constant(n))


def _padded(handle: Any, n: Any) -> tf.Tensor:
    begun = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.bool)
    missing = tf.maximum(n - tf.size(begun), 0)
    return tf.concat([begun, tf.fill([missing], False)], axis=0)


# A function of its own, not inlined: where TensorFlow sees that a vector is
# written, it takes for granted that one is read, whatever was restored.
_padded_in_a_graph = tf.function(
    _padded,
    autograph=False,
    experimental_attributes={"_noinline": True},
)
